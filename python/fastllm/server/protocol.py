"""uvicorn's HTTP/1.1 protocol with limits on what comes before the app: connections, size and time of a head.

Also puts the way to cut a connection into the scope: closing waits for a client that does not read.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fastllm.server.config import ServerConfig
from fastllm.server.errors import ApiError


def guarded_protocol(limits: ServerConfig) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn's ``http`` setting."""

    class GuardedProtocol(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._in_head = True
            self._head_bytes = 0
            self._head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                self._refuse(ApiError(503, "too many connections; try again later", code="overloaded"))
                return
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            was_in_head = self._in_head
            super().data_received(data)
            if was_in_head and self._in_head and not self.transport.is_closing():
                self._head_bytes += len(data)
                if self._head_bytes > limits.max_header_bytes:
                    self._refuse(ApiError(431, f"the head is larger than {limits.max_header_bytes} bytes"))

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._head_bytes = True, 0
            self._arm()
            extensions: dict[str, Any] = {"fastllm.cut": self.transport.abort}
            self.scope["extensions"] = extensions

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._disarm()
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(ApiError(400, "this is not valid HTTP/1.1"))

        def _arm(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(limits.head_timeout_s, self._late)

        def _disarm(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _late(self) -> None:
            self._head_timer = None
            self._refuse(ApiError(408, f"the head did not arrive within {limits.head_timeout_s:g} s"))

        def _refuse(self, error: ApiError) -> None:
            """Answers without the app, and closes. A response that has begun is only cut."""
            self._disarm()
            if self.transport.is_closing():
                return
            if self.cycle is None or self.cycle.response_complete:
                body = msgspec.json.encode(error.body())
                head = [f"HTTP/1.1 {error.status} Refused", "content-type: application/json", "connection: close"]
                head += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in error.headers.items())]
                self.transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
            self.transport.close()

    return GuardedProtocol
