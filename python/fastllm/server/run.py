"""Serving an app with uvicorn: sockets, signals, the drain.

The first SIGTERM or SIGINT: new requests get 503, running ones go on for ``drain_timeout_s``, and the process ends as
soon as nothing runs. The second ends it at once.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from fastllm.server.app import ServerApp
from fastllm.server.protocol import guarded_protocol


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: ServerApp, announce: Callable[[str, int], None]) -> None:
        super().__init__(config)
        self._app = app
        self._announce = announce
        self._drain_until: float | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup()
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._announce(host, port)

    async def on_tick(self, counter: int) -> bool:
        await super().on_tick(counter)
        if self.force_exit:
            return True
        if self._drain_until is None:
            return False
        return not self.server_state.tasks or time.monotonic() > self._drain_until

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


def serve(app: ServerApp, announce: Callable[[str, int], None]) -> None:
    """Serves until a signal. ``announce`` gets the address when it listens. For the main thread."""
    config = app.state.config
    uvicorn_config = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
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
    _Server(uvicorn_config, app, announce).run()
