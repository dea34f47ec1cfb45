"""``GET /v1/models`` and ``GET /v1/models/{model}``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fastllm.server.answer import json_answer
from fastllm.server.context import RequestContext
from fastllm.server.errors import ApiError
from fastllm.server.openai.answers import ModelCard, ModelList
from fastllm.server.operation import operation


@operation(ModelList)
async def list_models(request: Request) -> Response:
    """What is served."""
    context = RequestContext.of(request)
    return json_answer({"object": "list", "data": [_card(context, name) for name in context.config.served_model_names]})


@operation(ModelCard)
async def show_model(request: Request) -> Response:
    """One of the names that are served."""
    context = RequestContext.of(request)
    name = request.path_params["model"]
    if name not in context.config.served_model_names:
        raise ApiError(404, "this model is not served here; GET /v1/models lists what is", code="model_not_found")
    return json_answer(_card(context, name))


def _card(context: RequestContext, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(context.server.started),
        "owned_by": "fastllm",
        "root": context.config.served_model_names[0],
        "parent": None,
        "max_model_len": context.server.max_model_len,
    }
