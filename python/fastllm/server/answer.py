"""JSON answers."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from fastllm.server.context import RequestContext
from fastllm.server.errors import ApiError

_encode = msgspec.json.Encoder().encode


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(_encode(value), status, headers, media_type="application/json")


def error_answer(error: ApiError, context: RequestContext) -> Response:
    """An error in the shape of the endpoint's dialect, with its ``Retry-After`` where the client may try again."""
    return json_answer(context.error_body(error), error.status, error.headers)
