"""Serving an app with uvicorn: sockets, signals, the drain.

The first SIGTERM or SIGINT: new requests get 503, running ones go on for ``drain_timeout_s``, and the process ends as
soon as nothing runs. The second ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from fastllm.server.app import ServerApp
from fastllm.server.config import ServerConfig
from fastllm.server.protocol import guarded_protocol


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: ServerApp, announce: Callable[[str, int], None]) -> None:
        super().__init__(config)
        self._app = app
        self._announce = announce
        self._drain_until: float | None = None
        self._operator: _OperatorServer | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup()
        if self.started and (port := self._app.state.config.metrics_port) is not None:
            self._operator = _OperatorServer(_uvicorn_config(self._app.operator_app, self._app.state.config, port))
            self._operator_task = asyncio.create_task(self._operator.serve())
            while not self._operator.started:
                await asyncio.wait([self._operator_task], timeout=0.01)
                if self._operator_task.done():
                    self._operator_task.result()  # e.g. SystemExit: the port is taken
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._announce(host, port)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().shutdown()
        if self._operator is not None:
            self._operator.should_exit = True
            await self._operator_task

    async def on_tick(self, counter: int) -> bool:
        await super().on_tick(counter)
        if self.force_exit:
            return True
        if self._drain_until is None:
            return False
        # Those that are refused meanwhile are not waited for: clients that keep coming would keep it alive.
        return self._app.state.num_requests == 0 or time.monotonic() > self._drain_until

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_until is not None:
            self.force_exit = True
            return
        self._app.state.is_draining = True
        self._drain_until = time.monotonic() + self._app.state.config.drain_timeout_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signal again: a drained server has done its work, exit code 0."""
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


class _OperatorServer(uvicorn.Server):
    """Listens on the metrics port until the main server has ended, which also takes the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(app: ServerApp, announce: Callable[[str, int], None]) -> None:
    """Serves until a signal. ``announce`` gets the address when it listens. For the main thread."""
    config = app.state.config
    _Server(_uvicorn_config(app, config, config.port), app, announce).run()


def _uvicorn_config(app: ASGIApp, config: ServerConfig, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=config.host,
        port=port,
        http=guarded_protocol(config),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        # What still runs when the drain is over has had its time.
        timeout_graceful_shutdown=1,
    )
