"""Server-sent events: a generator of JSON objects as a streaming response that ends with ``[DONE]``.

The head is sent with the first event, so what the engine refuses still gets its status. A client that leaves, or that
takes nothing for ``send_timeout_s``, ends the generator, which aborts its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fastllm.server.context import RequestContext
from fastllm.server.errors import ApiError
from fastllm.server.generation import ClientGoneError, until_gone

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(value: Mapping[str, Any]) -> bytes:
    """One event as OpenAI frames it."""
    return b"data: " + _encode(value) + b"\n\n"


def named_event(value: Mapping[str, Any]) -> bytes:
    """One event whose name is its ``type``, as Anthropic and /v1/responses frame them."""
    return b"event: " + str(value["type"]).encode() + b"\n" + event(value)


class EventStream(Response):
    """Sends framed events; whatever ends it closes the generator."""

    def __init__(
        self,
        context: RequestContext,
        events: AsyncGenerator[bytes, None],
        deadline: float | None,
        *,
        last: bytes = DONE,
        error_event: Callable[[ApiError], bytes] | None = None,
    ) -> None:
        """``error_event``: how an error is framed once the stream has begun; None: as OpenAI's object."""
        super().__init__()
        self._context = context
        self._events = events
        self._deadline = deadline
        self._last = last
        self._error_event = error_event or (lambda error: event(error.body()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        # send() waits only while the connection's buffer (64 KiB) is full: since when it does.
        sending_since = 0.0

        async def emit(data: bytes, *, more: bool) -> None:
            nonlocal started, sending_since
            sending_since = time.monotonic()
            if not started:
                await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
                started = True
            await send({"type": "http.response.body", "body": data, "more_body": more})
            sending_since = 0.0

        async def run() -> None:
            async with contextlib.aclosing(self._events) as events:
                async for data in events:
                    if data:
                        await emit(data, more=True)
            await emit(self._last, more=False)

        async def watch() -> None:
            limit = self._context.config.send_timeout_s
            while not sending_since or time.monotonic() - sending_since < limit:
                await asyncio.sleep(limit / 4)
            raise SlowClientError

        try:
            await until_gone(receive, run, self._deadline, watch)
        except ClientGoneError:
            self._context.outcome = "disconnected"
        except SlowClientError:
            self._context.outcome = "slow_client"
            if cut := scope.get("extensions", {}).get("fastllm.cut"):
                cut()
        except ApiError as error:
            if not started:
                raise
            self._context.outcome = error.code or "error"
            await asyncio.wait_for(emit(self._error_event(error), more=False), self._context.config.send_timeout_s)


class SlowClientError(Exception):
    """The client has taken nothing for ``send_timeout_s``."""
