"""What an endpoint takes and gives, declared beside it; ``openapi.py`` makes the document of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One endpoint.

    Attributes:
        answer: type of a 200's body; None: text of ``media_type``.
        body: type of the request's body; None: there is none.
        error: type of every other body; None: OpenAI's.
        chunk: type of one event of a streamed answer; None: it cannot be streamed.
    """

    answer: Any = None
    body: Any = None
    chunk: Any = None
    error: Any = None
    media_type: str = "application/json"


def operation(answer: Any = None, **more: Any) -> Callable[[Endpoint], Endpoint]:
    """Declares an endpoint; its docstring is the summary."""

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.operation = Operation(answer, **more)  # type: ignore[attr-defined]
        return endpoint

    return declare


def operation_of(endpoint: Endpoint) -> Operation:
    found: Operation = getattr(endpoint, "operation", Operation())
    return found
