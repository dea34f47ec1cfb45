"""Clients that keep time: one connection and one streamed completion each, clocked when bytes arrive.

asyncio protocols with httptools' parser, and no client library: on a machine that the server shares, what the client
costs the server loses. Token counts come from the server's running usage, so a chunk with several tokens counts as
several.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from fastllm.bench_serve.workloads import Planned, Workload


@dataclasses.dataclass(slots=True)
class Record:
    """What became of one request. Times are of time.perf_counter().

    Attributes:
        arrivals: (time, tokens so far) of every chunk with tokens.
        outcome: "ok", "left" (as planned), "refused" (429, 503), or "error: ...".
    """

    planned: Planned
    sent: float = 0.0
    ended: float = 0.0
    arrivals: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    outcome: str = ""

    @property
    def num_tokens(self) -> int:
        return self.arrivals[-1][1] if self.arrivals else 0

    @property
    def ttft_s(self) -> float | None:
        return self.arrivals[0][0] - self.sent if self.arrivals else None

    def inter_token_s(self) -> list[float]:
        """One per token after the first chunk; those of a chunk share the time since the chunk before."""
        found: list[float] = []
        for (before, had), (now, has) in zip(self.arrivals, self.arrivals[1:], strict=False):
            if has > had:
                found += [(now - before) / (has - had)] * (has - had)
        return found


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_encode = msgspec.json.Encoder().encode


class Target:
    """Where the server is, and what the requests to it say."""

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url}: expected http://HOST:PORT")
        self.host, self.port = parts.hostname, parts.port or 80
        self.model = model
        self._path = parts.path.rstrip("/")
        self._head = f"host: {self.host}:{self.port}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        if api_key:
            self._head += f"authorization: Bearer {api_key}\r\n"

    def completion(self, planned: Planned) -> bytes:
        """The bytes of one request."""
        body: dict[str, Any] = {
            "prompt": planned.prompt,
            "max_tokens": planned.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **planned.extra,
        }
        if self.model is not None:
            body["model"] = self.model
        return self.message("POST", "/v1/completions", _encode(body))

    def message(self, method: str, path: str, data: bytes = b"") -> bytes:
        return (
            f"{method} {self._path}{path} HTTP/1.1\r\n{self._head}content-length: {len(data)}\r\n\r\n".encode() + data
        )


class _Exchange(asyncio.Protocol):
    """Sends one message and parses the answer; ``done`` is set when it is whole, or the connection ends."""

    def __init__(self, message: bytes) -> None:
        self.status = 0
        self.body = bytearray()
        self.failure = ""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._message = message
        self._parser = httptools.HttpResponseParser(self)
        self._is_whole = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, msgspec.DecodeError) as error:
            self.end(f"{type(error).__name__}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.end("" if self._is_whole else "the connection was closed")

    def end(self, failure: str = "") -> None:
        if self.done.done():
            return
        self.failure = failure
        self.done.set_result(None)
        if self.transport is not None:
            self.transport.abort()

    # httptools calls these.

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self._is_whole = True
        self.end()


class _Stream(_Exchange):
    """The exchange of one streamed completion."""

    def __init__(self, message: bytes, record: Record) -> None:
        super().__init__(message)
        self._record = record
        self._has_ended = False

    def on_body(self, data: bytes) -> None:
        now = time.perf_counter()
        self.body += data
        if self.status != 200:
            return
        *events, rest = bytes(self.body).split(b"\n\n")
        self.body = bytearray(rest)
        for event in events:
            self._take(event, now)

    def _take(self, event: bytes, now: float) -> None:
        if event == b"data: [DONE]":
            self._has_ended = True
            return
        chunk = _decode_chunk(event.removeprefix(b"data: "))
        if chunk.error is not None:
            self.end("an error event")
            return
        if not chunk.choices or chunk.usage is None:
            return
        record = self._record
        if chunk.usage.completion_tokens > record.num_tokens:
            record.arrivals.append((now, chunk.usage.completion_tokens))
        if record.planned.leave_after is not None and record.num_tokens >= record.planned.leave_after:
            self.end("left")

    def on_message_complete(self) -> None:
        self._is_whole = True
        self.end("" if self._has_ended or self.status != 200 else "the stream has no [DONE]")


async def fetch(target: Target, path: str, timeout_s: float = 30.0) -> bytes:
    """The body of one GET. Raises ConnectionError unless it is a 200."""
    loop = asyncio.get_running_loop()
    _, exchange = await loop.create_connection(lambda: _Exchange(target.message("GET", path)), target.host, target.port)
    await asyncio.wait_for(exchange.done, timeout_s)
    if exchange.status != 200:
        raise ConnectionError(f"GET {path}: status {exchange.status} {exchange.failure}")
    return bytes(exchange.body)


async def complete(target: Target, planned: Planned, timeout_s: float) -> Record:
    """Sends one request and reads its answer; never raises for what the server does."""
    record = Record(planned)
    message = target.completion(planned)
    record.sent = time.perf_counter()
    try:
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_connection(lambda: _Stream(message, record), target.host, target.port)
        try:
            await asyncio.wait_for(asyncio.shield(stream.done), timeout_s)
        except asyncio.TimeoutError:
            stream.end(f"no end within {timeout_s:g} s")
    except OSError as error:
        record.outcome = f"error: {type(error).__name__}"
    else:
        record.outcome = _outcome(stream)
    record.ended = time.perf_counter()
    return record


def _outcome(stream: _Stream) -> str:
    if stream.status in (429, 503):
        return "refused"
    if stream.failure == "left":
        return "left"
    if stream.failure:
        return f"error: {stream.failure}"
    return "ok" if stream.status == 200 else f"error: status {stream.status}"


async def drive(target: Target, workload: Workload, timeout_s: float = 600.0) -> list[Record]:
    """Runs one workload; records in the order of its requests."""
    records: list[Record | None] = [None] * len(workload.requests)
    start = time.perf_counter()

    async def one(index: int) -> None:
        planned = workload.requests[index]
        if planned.at_s is not None:
            await asyncio.sleep(max(0.0, start + planned.at_s - time.perf_counter()))
        records[index] = await complete(target, planned, timeout_s)

    free = iter([i for i, planned in enumerate(workload.requests) if planned.at_s is None])

    async def client() -> None:
        for index in free:
            await one(index)

    timed = [one(i) for i, planned in enumerate(workload.requests) if planned.at_s is not None]
    await asyncio.gather(*timed, *(client() for _ in range(workload.concurrency)))
    return [record for record in records if record is not None]
