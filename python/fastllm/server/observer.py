"""What the server counts. The base class counts nothing: metrics are one implementation of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastllm import EmbeddingOutput, RequestOutput

if TYPE_CHECKING:
    from fastllm.server.context import RequestContext


class Observer:
    """Called on the event loop; must not block."""

    def first_output(self, context: RequestContext, output: RequestOutput, now: float) -> None:
        """An engine request has given its first tokens."""

    def more_output(self, context: RequestContext, num_tokens: int, seconds: float) -> None:
        """It has given more, ``seconds`` after the last."""

    def finished(self, context: RequestContext, output: RequestOutput, reasons: list[str], now: float) -> None:
        """It has ended by itself, each of its sequences for one of the reasons."""

    def embedded(self, context: RequestContext, output: EmbeddingOutput, now: float) -> None:
        """A prompt has got its embedding."""

    def answered(self, context: RequestContext, method: str) -> None:
        """A request of the API has been answered, or its client has gone."""
