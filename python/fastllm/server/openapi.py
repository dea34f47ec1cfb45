"""``GET /openapi.json``: the routes, and the types that bodies are read with, as an OpenAPI 3.1 document.

Nothing is written twice: fields come from the structs that parse, ranges and help of sampling parameters from the
engine's table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import fastllm
from fastllm import _core
from fastllm.server.answer import json_answer
from fastllm.server.openai.answers import AnyObject, ErrorAnswer
from fastllm.server.operation import Endpoint, Operation, operation_of

# What may go wrong on every route, and in addition where there is a body.
_ANY = {
    400: "the request is wrong",
    401: "no valid API key",
    404: "no such model or endpoint",
    405: "not this method",
    421: "Host is not a name of this machine",
    429: "the key has used its requests, tokens, or places",
    431: "the head is too large",
    500: "the model or the server failed",
    503: "overloaded, stopping, or not healthy",
}
_WITH_BODY = {
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not JSON",
    504: "the request's time limit",
}
# Fields that the engine knows by another name.
_TABLE_NAMES = {"max_completion_tokens": "max_tokens", "top_logprobs": "logprobs"}

Routes = Iterable[tuple[str, str, Endpoint]]


def document(routes: Routes) -> dict[str, Any]:
    """The OpenAPI document of an app with these routes."""
    routes = list(routes)
    operations = [operation_of(endpoint) for _, _, endpoint in routes]
    types = [t for one in operations for t in (one.answer, one.body, one.chunk, one.error) if t is not None]
    schemas, components = msgspec.json.schema_components(
        [*types, ErrorAnswer], ref_template="#/components/schemas/{name}"
    )
    bodies = {one.body.__name__ for one in operations if one.body is not None and one.body is not AnyObject}
    for name in bodies:
        _add_ranges(components[name])
    refs = {id(t): schema for t, schema in zip([*types, ErrorAnswer], schemas, strict=True)}
    paths: dict[str, Any] = {}
    for (method, path, run), one in zip(routes, operations, strict=True):
        shown = path.replace(":path}", "}")
        paths.setdefault(shown, {})[method.lower()] = _operation(shown, run, one, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fastllm", "version": fastllm.__version__, "description": "docs/server.md has the limits."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # None is needed on a server without keys.
        "security": [{}, {"key": []}],
    }


def _operation(path: str, run: Endpoint, one: Operation, refs: dict[int, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {one.media_type: {"schema": refs[id(one.answer)] if one.answer else {"type": "string"}}}
    if one.chunk is not None:
        content["text/event-stream"] = {
            "schema": {"type": "string"},
            "x-event-schema": refs[id(one.chunk)],
        }
    errors = {**_ANY, **(_WITH_BODY if one.body is not None else {})}
    error = {"application/json": {"schema": refs[id(one.error or ErrorAnswer)]}}
    retry = {"retry-after": {"schema": {"type": "integer"}, "description": "seconds"}}
    found: dict[str, Any] = {
        "summary": (run.__doc__ or path).split("\n", 1)[0],
        "operationId": run.__name__,
        "responses": {"200": {"description": "success", "content": content}}
        | {
            str(status): {"description": text, "content": error, **({"headers": retry} if status in (429, 503) else {})}
            for status, text in sorted(errors.items())
        },
    }
    if "{" in path:
        name = path[path.index("{") + 1 : path.index("}")]
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if one.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[id(one.body)]}}}
    if path == "/health":
        found["security"] = [{}]
    return found


@functools.cache
def _table() -> dict[str, Any]:
    return {row["name"]: row for row in _core.sampling_param_table()}


def _add_ranges(component: dict[str, Any]) -> None:
    """Ranges and help of sampling parameters, where a body has them."""
    for name, schema in component["properties"].items():
        row = _table().get(_TABLE_NAMES.get(name, name))
        if row is None:
            continue
        schema["description"] = row["help"]
        for variant in schema.get("anyOf", [schema]):
            kind = variant.get("type")
            if kind in ("integer", "number"):
                low, high = row["min"], row["max"]
                # echo takes max_tokens = 0
                if abs(low) != float("inf") and name != "max_tokens":
                    variant.pop("minimum", None)
                    variant["exclusiveMinimum" if row["is_open"] else "minimum"] = low
                if high != float("inf"):
                    variant["maximum"] = high
            elif kind == "array" and row["max_items"]:
                variant["maxItems"] = row["max_items"]


def endpoint(routes: Routes) -> Endpoint:
    """Serves the document of ``routes``, made when it is first asked for."""
    made = functools.cache(lambda: document(routes))

    async def openapi(request: Request) -> Response:
        return json_answer(made())

    return openapi
