"""``/health`` (alive: restart me if not), ``/ready`` (send me work) and ``/version``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

import fastllm
from fastllm.server.answer import json_answer
from fastllm.server.context import RequestContext
from fastllm.server.errors import ApiError
from fastllm.server.openai.answers import Status, Version
from fastllm.server.operation import operation


@operation(Status)
async def health(request: Request) -> Response:
    """200 while the engine makes steps or has nothing to do. Also without a key."""
    if trouble := RequestContext.of(request).server.trouble():
        raise ApiError(503, trouble, code="unhealthy")
    return json_answer({"status": "ok"})


@operation(Status)
async def ready(request: Request) -> Response:
    """200 after a first real token, and not while draining."""
    server = RequestContext.of(request).server
    if server.is_draining:
        raise ApiError(503, "the server is stopping", code="draining")
    if trouble := server.trouble():
        raise ApiError(503, trouble, code="unhealthy")
    if not server.is_ready:
        raise ApiError(503, "the server is starting", code="starting")
    return json_answer({"status": "ready"})


@operation(Version)
async def version(request: Request) -> Response:
    """The version of the server."""
    return json_answer({"version": fastllm.__version__})
