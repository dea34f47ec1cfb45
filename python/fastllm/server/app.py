"""The app factory: routes, and what stands around them. An ASGI app; mount it in one's own, or serve it alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from fastllm import AsyncLLM
from fastllm.server import dashboard, health, metrics, openapi, tokens
from fastllm.server.answer import error_answer
from fastllm.server.anthropic import messages
from fastllm.server.config import ServerConfig
from fastllm.server.context import RequestContext
from fastllm.server.errors import ApiError, internal_error
from fastllm.server.generation import ClientGoneError
from fastllm.server.guard import Guard
from fastllm.server.limits import Limiter
from fastllm.server.openai import chat, completions, embeddings, models, responses
from fastllm.server.operation import Endpoint
from fastllm.server.state import ServerState

_DESCRIBED: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/health", health.health),
    ("GET", "/ready", health.ready),
    ("GET", "/version", health.version),
    ("GET", "/metrics", metrics.metrics),
    ("GET", "/dashboard", dashboard.page),
    ("GET", "/dashboard/data", dashboard.data),
    ("GET", "/v1/models", models.list_models),
    ("GET", "/v1/models/{model:path}", models.show_model),
    ("POST", "/v1/completions", completions.create_completion),
    ("POST", "/v1/chat/completions", chat.create_chat_completion),
    ("POST", "/v1/responses", responses.create_response),
    ("POST", "/v1/messages", messages.create_message),
    ("POST", "/v1/messages/count_tokens", messages.count_tokens),
    ("POST", "/v1/embeddings", embeddings.create_embeddings),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
)
ROUTES = (*_DESCRIBED, ("GET", "/openapi.json", openapi.endpoint(_DESCRIBED)))

OPERATOR_PATHS = frozenset({"/health", "/ready", "/metrics", "/version"})


class ServerApp:
    """The app, and its state for who embeds it."""

    def __init__(self, llm: AsyncLLM, config: ServerConfig) -> None:
        self.metrics = metrics.Metrics()
        self.state = ServerState(llm, config, self.metrics)
        self.metrics.attach(self.state)
        is_moved = config.metrics_port is not None
        starlette = _starlette([route for route in ROUTES if not (is_moved and route[1] == "/metrics")], self._lifespan)
        if config.allowed_origins:
            starlette.add_middleware(
                CORSMiddleware,
                allow_origins=config.allowed_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["x-request-id", "retry-after"],
            )
        limiter = Limiter(config.api_keys)
        self._app: ASGIApp = Guard(starlette, self.state, limiter)
        # For another port; with the same keys.
        self.operator_app: ASGIApp = Guard(
            _starlette([route for route in ROUTES if route[1] in OPERATOR_PATHS], None), self.state, limiter
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        watchdog = asyncio.create_task(self._watch())
        await self.state.warm_up()
        try:
            yield
        finally:
            watchdog.cancel()

    async def _watch(self) -> None:
        while True:
            self.state.look()
            await asyncio.sleep(1)


def _starlette(routes: Sequence[tuple[str, str, Endpoint]], lifespan: Any) -> Starlette:
    return Starlette(
        routes=[Route(path, _named(path, endpoint), methods=[method]) for method, path, endpoint in routes],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, ClientGoneError: _gone, Exception: _bug},
        lifespan=lifespan,
    )


def create_app(llm: AsyncLLM, config: ServerConfig | None = None) -> ServerApp:
    """An ASGI app that serves ``llm``. The caller owns the engine and closes it."""
    return ServerApp(llm, config or ServerConfig())


def _named(path: str, endpoint: Endpoint) -> Endpoint:
    async def run(request: Request) -> Response:
        RequestContext.of(request).endpoint = path
        return await endpoint(request)

    return run


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    RequestContext.of(request).outcome = error.code or error.kind
    return error_answer(error, RequestContext.of(request))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    texts = {404: "there is no such endpoint", 405: "this endpoint does not have this method"}
    answer = ApiError(error.status_code, texts.get(error.status_code, "the request cannot be served"))
    answer.headers.update(error.headers or {})
    return await _api_error(request, answer)


async def _bug(request: Request, _: Exception) -> Response:
    return await _api_error(request, internal_error())


async def _gone(request: Request, error: Exception) -> Response:
    RequestContext.of(request).outcome = "disconnected"
    return Response(status_code=499)  # nobody reads it
