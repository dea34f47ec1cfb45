"""``response_format``: text, any JSON object, or JSON under a schema."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from fastllm import StructuredOutputsParams
from fastllm.server.errors import invalid

_NAME = re.compile(r"[A-Za-z0-9_\-]{1,64}")


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``strict`` changes nothing: the answer always fits. No model here reads name and description."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


def wanted_format(wanted: ResponseFormat) -> StructuredOutputsParams:
    """For a type other than text. Raises ApiError 400."""
    where = "response_format.json_schema"
    if wanted.type == "json_object":
        if wanted.json_schema is not None:
            raise invalid(f'{where}: only with type "json_schema"', where)
        return StructuredOutputsParams(json_object=True)
    if wanted.json_schema is None:
        raise invalid(f"{where}: this field is required", where, code="missing_required_parameter")
    return schema_format(wanted.json_schema, where)


def schema_format(named: NamedSchema, where: str) -> StructuredOutputsParams:
    """A schema under a name, wherever a dialect puts it."""
    if not _NAME.fullmatch(named.name):
        raise invalid(f"{where}.name: 1 to 64 of A-Z a-z 0-9 _ -", f"{where}.name")
    if named.schema is None:
        raise invalid(f"{where}.schema: this field is required", f"{where}.schema", code="missing_required_parameter")
    return StructuredOutputsParams(json=named.schema)
