"""Tools: their declaration, what they add to a prompt, and calls as they are found in the output.

A parser is an automaton over the growing text: what may still become a call is held back, so no chunking shows half a
marker. Calls are JSON and parsed as JSON; nothing of a model's output is ever evaluated.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from fastllm.server.errors import invalid

MAX_TOOLS = 128
MAX_TOOL_BYTES = 64 << 10
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


class FunctionSpec(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class NamedTool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: NamedFunction


def function_tool(
    name: str, description: str | None, parameters: dict[str, Any] | None, *, strict: bool | None
) -> Tool:
    """A tool of a dialect that writes it in another way."""
    spec = FunctionSpec(name=name, description=description, parameters=parameters, strict=strict)
    return Tool(type="function", function=spec)


def named_tool(name: str) -> NamedTool:
    """The choice of a function, likewise."""
    return NamedTool(type="function", function=NamedFunction(name=name))


def template_tools(tools: Sequence[Tool], where: str = "tools") -> list[dict[str, Any]]:
    """What the chat template gets. Raises ApiError 400 that names the tool."""
    if len(tools) > MAX_TOOLS:
        raise invalid(f"{where}: {len(tools)} tools, at most {MAX_TOOLS} are allowed", where)
    plain = []
    for i, tool in enumerate(tools):
        spec = tool.function
        if not _NAME.fullmatch(spec.name):
            raise invalid(f"{where}[{i}].function.name: 1 to 64 of A-Z a-z 0-9 _ - .", f"{where}[{i}].function.name")
        if len(msgspec.json.encode(spec)) > MAX_TOOL_BYTES:
            raise invalid(f"{where}[{i}]: larger than {MAX_TOOL_BYTES} bytes", f"{where}[{i}]")
        function: dict[str, Any] = {"name": spec.name}
        if spec.description is not None:
            function["description"] = spec.description
        function["parameters"] = spec.parameters or {"type": "object", "properties": {}}
        plain.append({"type": "function", "function": function})
    return plain


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One call; ``arguments`` is JSON text."""

    name: str
    arguments: str


@dataclasses.dataclass(frozen=True, slots=True)
class Style:
    """How a family of models writes calls: ``begin`` payload ``end``. No ``end``: the payload goes to the end.

    ``bare``: a text that begins with ``{`` may be a call without a marker (Llama 3).
    """

    name: str
    begin: str
    end: str
    bare: bool = False


STYLES = {
    style.name: style
    for style in (
        Style("hermes", "<tool_call>", "</tool_call>"),
        Style("llama3_json", "<|python_tag|>", "", bare=True),
        Style("mistral", "[TOOL_CALLS]", ""),
    )
}


def tool_style(name: str, chat_template: str | None) -> Style | None:
    """The style of this name; "auto": the one whose marker the model's chat template writes."""
    if name == "auto":
        return next((style for style in STYLES.values() if style.begin in (chat_template or "")), None)
    return STYLES.get(name)


class ToolParser:
    """Splits a growing text into plain text and calls. What is no valid call comes out as text, unchanged."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._held = ""
        self._in_payload = False
        self._begun = False  # something other than white space has come

    def feed(self, text: str) -> tuple[str, list[Call]]:
        """(text that is surely no call, calls that are complete)."""
        self._held += text
        return self._advance(is_last=False)

    def finish(self) -> tuple[str, list[Call]]:
        """What was held back."""
        return self._advance(is_last=True)

    def _advance(self, *, is_last: bool) -> tuple[str, list[Call]]:
        shown: list[str] = []
        calls: list[Call] = []
        while True:
            if self._in_payload:
                if not self._take_payload(shown, calls, is_last=is_last):
                    break
            elif not self._take_text(shown, is_last=is_last):
                break
        return "".join(shown), calls

    def _take_text(self, shown: list[str], *, is_last: bool) -> bool:
        """Moves plain text out. True if a payload begins."""
        style = self._style
        if style.bare and not self._begun:
            stripped = self._held.lstrip()
            if stripped.startswith("{"):
                self._in_payload = True
                return True
            if not stripped and not is_last:
                return False  # white space may stand before a call
        at = self._held.find(style.begin)
        if at >= 0:
            shown.append(self._held[:at])
            self._held = self._held[at + len(style.begin) :]
            self._in_payload = self._begun = True
            return True
        keep = 0 if is_last else overlap(self._held, style.begin)
        plain = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        self._begun = self._begun or bool(plain.strip())
        shown.append(plain)
        return False

    def _take_payload(self, shown: list[str], calls: list[Call], *, is_last: bool) -> bool:
        """Parses a payload that is complete. True if more follows."""
        style = self._style
        at = self._held.find(style.end) if style.end else -1
        if at < 0 and not is_last:
            return False
        is_bare = style.bare and not self._begun
        payload = self._held if at < 0 else self._held[:at]
        found = _calls(payload)
        if found:
            calls += found
        elif is_bare:
            shown.append(payload)
        else:
            shown.append(style.begin + payload + (style.end if at >= 0 else ""))
        self._held = "" if at < 0 else self._held[at + len(style.end) :]
        self._in_payload, self._begun = False, True
        return at >= 0


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``marker``."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-size:]):
            return size
    return 0


def _calls(payload: str) -> list[Call]:
    """The calls of a payload: an object, a list of objects, or several objects; [] if it is anything else."""
    text = payload.strip()
    values: list[Any] = []
    for piece in (text,) if text[:1] == "[" else (text, *_split(text)):
        try:
            value = msgspec.json.decode(piece)
        except (msgspec.DecodeError, RecursionError):
            continue
        values += value if isinstance(value, list) else [value]
        if piece is text:
            break
    found = []
    for value in values:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return []
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments)
            except (msgspec.DecodeError, RecursionError):
                return []
        if not isinstance(arguments, dict):
            return []
        found.append(Call(value["name"], msgspec.json.encode(arguments).decode()))
    return found


def _split(text: str) -> list[str]:
    """Objects one after the other, with ; or white space between (Llama 3)."""
    pieces, depth, begin, in_string, escaped = [], 0, 0, False, False
    for i, c in enumerate(text):
        if in_string:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                in_string = False
        elif c == '"':
            in_string = True
        elif c == "{":
            if depth == 0:
                begin = i
            depth += 1
        elif c == "}":
            depth -= 1
            if depth == 0:
                pieces.append(text[begin : i + 1])
    return pieces if len(pieces) > 1 else []
