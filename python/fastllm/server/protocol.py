"""uvicorn's HTTP/1.1 protocol with limits on all that no request of the app accounts for.

Before one: connections, size and time of a head. Beside the bytes of a body: what frames them, and trailers. After its
answer: the rest of a message, bytes that begin no other, and how long a client may leave what was sent to it.

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
            self._is_whole = True  # the message; also before the first
            self._num_framing_bytes = 0  # since the last byte of a body
            self._timer: asyncio.TimerHandle | None = None  # while no request runs, but something has come
            self._send_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                self._refuse(ApiError(503, "too many connections; try again later", code="overloaded"))
                return
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            if self._send_timer is not None:
                self._send_timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            self._num_framing_bytes += len(data)
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self._num_framing_bytes > limits.max_header_bytes:
                self._refuse(ApiError(431, f"the head is larger than {limits.max_header_bytes} bytes"))
            elif self._is_idle():
                self._arm()  # uvicorn's own timer has ended with the first byte

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._is_whole = True, False
            self._arm()
            extensions: dict[str, Any] = {"fastllm.cut": self.transport.abort}
            self.scope["extensions"] = extensions

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._in_head:  # else a trailer, which nobody reads
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._num_framing_bytes = 0
            self._disarm()
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._num_framing_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._is_whole = True
            self._num_framing_bytes = 0
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch_sending()
            if self._is_idle() and not self._is_whole:
                self._arm()  # the client may send the rest, so that it gets to read the answer

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def send_400_response(self, msg: str) -> None:
            self._refuse(ApiError(400, "this is not valid HTTP/1.1"))

        def _arm(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(limits.head_timeout_s, self._late)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self._timer = None
            if self._in_head:
                self._refuse(ApiError(408, f"the head did not arrive within {limits.head_timeout_s:g} s"))
            else:
                self.transport.close()

        def _watch_sending(self) -> None:
            """After an answer nobody waits for its bytes to leave. While it is made, ``sse`` does."""
            if self._send_timer is None and (size := self.transport.get_write_buffer_size()):
                self._send_timer = self.loop.call_later(limits.send_timeout_s, self._check_sending, size)

        def _check_sending(self, size_before: int) -> None:
            self._send_timer = None
            if self.transport.get_write_buffer_size() >= size_before:
                self.transport.abort()
            else:
                self._watch_sending()

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
            self._watch_sending()

    return GuardedProtocol
