"""What can go wrong, by who has to act. Native errors are raised as these classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastllm.outputs import RequestOutput


class FastLLMError(Exception):
    """Base of all errors of this package.

    Attributes:
        outputs: when ``LLM.generate`` or ``LLM.chat`` raises because a request failed while it ran: the outputs of all
            requests of the call, in order. Those that failed have ``finish_reason`` "error"; the others are complete.
    """

    outputs: list[RequestOutput] | None = None


class InvalidRequestError(FastLLMError, ValueError):
    """An argument, prompt or sampling parameter is wrong."""


class CheckpointError(FastLLMError):
    """A file of a checkpoint is missing or wrong; the text names file, tensor or field, expectation and finding."""


class UnsupportedModelError(FastLLMError):
    """A well-formed checkpoint uses an architecture or feature that is not implemented."""


class OutOfMemoryError(FastLLMError, MemoryError):
    """A memory plan does not fit its budget, or the system refused memory."""


class DeviceError(FastLLMError):
    """The machine cannot do what was asked."""


class QueueFullError(FastLLMError):
    """The bounded waiting queue is full; try again later."""


class EngineClosedError(FastLLMError):
    """The engine was closed, or made before a fork()."""


class InternalError(FastLLMError):
    """A bug of this package."""
