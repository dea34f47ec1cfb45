"""Request bodies: bytes within a limit and a time, then strict JSON into a typed struct."""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from fastllm.server.config import ServerConfig
from fastllm.server.context import RequestContext
from fastllm.server.errors import ApiError, invalid

T = TypeVar("T", bound=msgspec.Struct)
_SMALL_BODY = 128 << 10
_DECODERS: dict[Any, Any] = {}
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$([^`]*)`)?", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `([A-Za-z_0-9]+)`(?: - at `\$([^`]*)`)?", re.DOTALL)
_WRONG_VALUE = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$(.*)`)?", re.DOTALL)


async def read_body(request: Request, config: ServerConfig) -> bytes:
    """The whole body. 413 above ``max_body_bytes``, 408 after ``body_timeout_s``, 415 unless it is plain JSON."""
    kind = request.headers.get("content-type", "application/json").split(";", 1)[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "the body must be JSON: content-type application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "content-encoding is not supported; send the body as it is")
    too_large = ApiError(413, f"the body is larger than {config.max_body_bytes} bytes", headers={"connection": "close"})
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > config.max_body_bytes:
        raise too_large
    try:
        return await asyncio.wait_for(_read(request, config.max_body_bytes, too_large), config.body_timeout_s)
    except asyncio.TimeoutError:
        raise ApiError(
            408, f"the body did not arrive within {config.body_timeout_s:g} s", headers={"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "the client went away") from None


async def _read(request: Request, limit: int, too_large: ApiError) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


async def parse_body(request: Request, kind: type[T], config: ServerConfig) -> T:
    """The body as ``kind``.

    Raises:
        ApiError: 400 that names the field which is unknown, missing, or of a wrong type or range.
    """
    data = await read_body(request, config)
    ignored = None if config.strict_openai else RequestContext.of(request).ignored_fields
    if len(data) <= _SMALL_BODY:
        return parse(data, kind, config.max_json_depth, ignored)
    # Megabytes of JSON take a while: not on the event loop.
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, parse, data, kind, config.max_json_depth, ignored)


def parse(data: bytes, kind: type[T], max_depth: int = 64, ignored: list[str] | None = None) -> T:
    """Strict JSON as ``kind``; see ``parse_body``. With a list for ``ignored``, fields of the outermost object that are
    not known are put there instead of being refused."""
    if data.count(b"[") + data.count(b"{") > max_depth and _depth(data, max_depth) > max_depth:
        raise invalid(f"the body is nested more than {max_depth} levels deep")
    try:
        # UTF-8 is checked here for all of the body: the decoder skips what it does not look at.
        data.decode("utf-8")
        decoded: T = _decoder(kind).decode(data)
        return decoded
    except msgspec.ValidationError as error:
        match = _UNKNOWN_FIELD.fullmatch(str(error))
        if ignored is None or match is None or match[2]:
            raise _refusal(str(error)) from None
        known = {field.encode_name for field in msgspec.structs.fields(kind)}
        body = msgspec.json.decode(data)
        ignored += sorted(_param("", name) for name in body.keys() - known)
        return parse(msgspec.json.encode({name: body[name] for name in body.keys() & known}), kind, max_depth)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        raise invalid("the body is not valid JSON in UTF-8") from None
    except RecursionError:
        raise invalid(f"the body is nested more than {max_depth} levels deep") from None


def convert(value: Any, kind: Any, where: str) -> Any:
    """Plain data as ``kind``, for a part of a body whose type its siblings tell. Raises ApiError 400, as ``parse``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        refusal = _refusal(str(error))
        name = f"{where}.{refusal.param}" if refusal.param else where
        raise invalid(f"{name}:{refusal.message.partition(':')[2]}", name, code=refusal.code) from None


def _decoder(kind: Any) -> Any:
    found = _DECODERS.get(kind)
    if found is None:
        found = _DECODERS[kind] = msgspec.json.Decoder(kind)
    return found


_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def _depth(data: bytes, limit: int) -> int:
    """How deep brackets are nested outside strings; stops above ``limit``."""
    depth = deepest = 0
    for match in _TOKENS.finditer(data):
        c = data[match.start()]
        if c in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > limit:
                break
        elif c in b"]}":
            depth -= 1
    return deepest


def _refusal(text: str) -> ApiError:
    if match := _UNKNOWN_FIELD.fullmatch(text):
        param = _param(match[2] or "", match[1])
        return invalid(f"{param}: this field is not supported", param, code="unsupported_parameter")
    if match := _MISSING_FIELD.fullmatch(text):
        param = _param(match[2] or "", match[1])
        return invalid(f"{param}: this field is required", param, code="missing_required_parameter")
    match = _WRONG_VALUE.fullmatch(text)
    what, path = (match[1], match[2] or "") if match else (text, "")
    if what.startswith("Invalid enum value"):
        what = "this value is not known"
    elif what.startswith("Invalid value"):
        what = "this value of the type is not known"
    param = _param(path, "")
    return invalid(f"{param or 'the body'}: {what}", param or None, code="invalid_value")


def _param(path: str, name: str) -> str:
    """``.messages[0]`` and ``content`` -> ``messages[0].content``. What a client made up is cut and made plain."""
    shown = re.sub(r"[^A-Za-z0-9_.\-\[\]]", "?", f"{path}.{name}" if name else path)
    return shown.lstrip(".")[:64]
