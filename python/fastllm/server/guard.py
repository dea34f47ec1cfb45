"""The outermost layer: request id, key, Host, size of the head, draining; a log line; and no error without a shape.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import secrets
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastllm.server.answer import error_answer
from fastllm.server.config import ApiKey, ServerConfig, is_loopback
from fastllm.server.context import RequestContext
from fastllm.server.errors import ApiError, internal_error
from fastllm.server.limits import Limiter
from fastllm.server.log import log_request
from fastllm.server.state import ServerState

OPEN_PATHS = frozenset({"/health"})  # without a key
ALWAYS_PATHS = frozenset({"/health", "/ready", "/metrics", "/version"})  # while draining
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_logger = logging.getLogger("fastllm.server")


class Guard:
    """Wraps the app; see the head of this file."""

    def __init__(self, app: ASGIApp, state: ServerState, limiter: Limiter) -> None:
        self._app = app
        self._state = state
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        context = RequestContext(
            self._state, _request_id(headers), speaks_anthropic=route_path(scope).startswith("/v1/messages")
        )
        scope["fastllm.context"] = context

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", context.request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if context.ignored_fields:
                    message["headers"].append((b"x-ignored-fields", ", ".join(context.ignored_fields).encode()))
            elif not message.get("more_body", False):
                context.is_complete = True
            await send(message)

        try:
            try:
                self._check(scope, context)
                self._state.num_requests += 1
                try:
                    async with self._limiter.admit(context, route_path(scope)):
                        await self._app(scope, receive, send_with_id)
                finally:
                    self._state.num_requests -= 1
            except ApiError as error:
                if context.status:
                    raise
                context.outcome = error.code or error.kind
                await error_answer(error, context)(scope, receive, send_with_id)
        except Exception:
            # A bug: the cause goes to the log, a fixed text to the client. Tracebacks hold code, not data.
            _logger.exception("request %s failed", context.request_id)
            context.outcome = "internal_error"
            if context.status and not context.is_complete:
                raise  # in the middle of a stream: the connection is closed, so that nobody takes it for whole
            if not context.status:
                await error_answer(internal_error(), context)(scope, receive, send_with_id)
        finally:
            self._state.observer.answered(context, scope["method"])
            if self._state.tracing is not None:
                self._state.tracing.answered(context, scope)
            if self._state.config.log_requests:
                log_request(context, scope)

    def _check(self, scope: Scope, context: RequestContext) -> None:
        config, headers, path = self._state.config, scope["headers"], route_path(scope)
        if len(headers) > config.max_header_count:
            raise ApiError(431, f"more than {config.max_header_count} header fields")
        size = sum(len(name) + len(value) + 4 for name, value in headers) + len(scope["raw_path"])
        if size + len(scope["query_string"]) > config.max_header_bytes:
            raise ApiError(431, f"the head is larger than {config.max_header_bytes} bytes")
        if is_loopback(config.host) and not _is_local_host(headers, config):
            # Else a web page could reach this server through a name that it lets point here.
            raise ApiError(421, "the Host header is not a name of this server; see --allowed-host", code="bad_host")
        if config.api_keys and path not in OPEN_PATHS and scope["method"] != "OPTIONS":
            context.key = find_key(_presented(headers), config.api_keys)
            if context.key is None:
                raise ApiError(
                    401,
                    "no valid API key; send it as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
        if self._state.is_draining and path not in ALWAYS_PATHS:
            raise ApiError(503, "the server is stopping", code="draining", headers={"connection": "close"})


def route_path(scope: Scope) -> str:
    """The path inside this app, wherever another app has mounted it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def find_key(presented: bytes, keys: Iterable[ApiKey]) -> ApiKey | None:
    """The key that was presented. The time does not tell which, nor how much of one was right."""
    found = None
    for key in keys:
        if hmac.compare_digest(presented, key.secret.encode()):
            found = key
    return found


def _presented(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":  # clients of Anthropic's dialect
            return value.strip()
    return b""


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's, if it is a plain short word; else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return secrets.token_hex(16)


def _is_local_host(headers: Iterable[tuple[bytes, bytes]], config: ServerConfig) -> bool:
    hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        return False
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d{1,5})?", hosts[0])
    if match is None:
        return False
    name = match[1].strip("[]")
    if name == "localhost" or name in config.allowed_hosts:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
