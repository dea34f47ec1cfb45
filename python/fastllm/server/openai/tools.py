"""Tools: their declaration, what they add to a prompt, and calls as they are found in the output.

A parser is an automaton over the growing text: what may still become a call is held back, so no chunking shows half a
marker. Calls are JSON and parsed as JSON; nothing of a model's output is ever evaluated.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Sequence
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
    """Splits a growing text into pieces in order: plain text and calls. What is no valid call comes out as text.

    White space around calls is left out; what stands before the first of them stays if text follows.

    Args:
        names: of the functions that there are; a call of another is text.
    """

    def __init__(self, style: Style, names: Collection[str]) -> None:
        self._style = style
        self._names = names
        self._held = ""  # what may be the beginning of a marker
        self._space: list[str] = []  # what a call that follows takes along
        self._begun = False  # something other than white space has come
        self._has_text = self._after_call = False
        # Of a payload, once it has begun: its marker, all of it, and its end as far as that may begin the other marker.
        self._payload: list[str] | None = None
        self._marker = self._tail = ""

    def feed(self, text: str) -> list[str | Call]:
        """Text that is surely no call, and calls that are complete."""
        return self._advance(text, is_last=False)

    def finish(self) -> list[str | Call]:
        """What was held back."""
        return self._advance("", is_last=True)

    def _advance(self, text: str, *, is_last: bool) -> list[str | Call]:
        found: list[str | Call] = []
        rest: str | None = text
        while rest is not None:
            if self._payload is None:
                rest = self._take_text(rest, found, is_last=is_last)
            else:
                rest = self._take_payload(self._payload, rest, found, is_last=is_last)
        if is_last and not self._after_call and (space := "".join(self._space)):
            found.append(space)
        return found

    def _take_text(self, text: str, found: list[str | Call], *, is_last: bool) -> str | None:
        """Moves plain text out. The rest, if a payload begins."""
        style = self._style
        text, self._held = self._held + text, ""
        stripped = text.lstrip()
        if style.bare and not self._begun and stripped.startswith("{"):
            self._add_text(text[: len(text) - len(stripped)], found)
            self._payload, self._marker = [], ""
            return stripped
        at = text.find(style.begin)
        if at >= 0:
            self._add_text(text[:at], found)
            self._payload, self._marker = [], style.begin
            return text[at + len(style.begin) :]
        plain = text if is_last else text[: len(text) - overlap(text, style.begin)]
        self._held = text[len(plain) :]
        self._begun = self._begun or bool(plain.strip())
        self._add_text(plain, found)
        return None

    def _take_payload(self, payload: list[str], text: str, found: list[str | Call], *, is_last: bool) -> str | None:
        """Parses a payload that is complete. The rest, if it has an end."""
        end = self._style.end
        payload.append(text)
        window = self._tail + text
        at = window.find(end) if end else -1
        if at < 0 and not is_last:
            self._tail = window[1 - len(end) :] if len(end) > 1 else ""
            return None
        whole, rest = "".join(payload), None
        if at >= 0:
            size = len(whole) - len(window) + at
            whole, rest = whole[:size], whole[size + len(end) :]
        calls = _calls(whole, self._names)
        if calls:
            if not self._has_text:
                self._space.clear()
            found += calls
            self._after_call = True
        else:
            self._add_text(self._marker + whole + ("" if rest is None else end), found)
        self._payload, self._tail, self._begun = None, "", True
        return rest

    def _add_text(self, text: str, found: list[str | Call]) -> None:
        if self._after_call:
            text = text.lstrip()
        stripped = text.rstrip()
        if stripped:
            found.append("".join(self._space) + stripped)
            self._space.clear()
            self._has_text, self._after_call = True, False
        self._space.append(text[len(stripped) :])


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``marker``."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-size:]):
            return size
    return 0


def _calls(payload: str, names: Collection[str]) -> list[Call]:
    """The calls of a payload: an object, a list of objects, or several objects; [] if it is anything else."""
    try:
        values = _values(payload)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return []
    found = []
    for value in values:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in names:
            return []
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments)
            except (msgspec.DecodeError, RecursionError):
                return []
        if not isinstance(arguments, dict):
            return []
        found.append(Call(name, msgspec.json.encode(arguments).decode()))
    return found


_BETWEEN = re.compile(r"[\s;]*")
_DECODER = json.JSONDecoder()


def _values(text: str) -> list[Any]:
    """JSON values one after the other, with nothing but ; and white space between (Llama 3); those of a list alone."""
    found: list[Any] = []
    at = len(text) - len(text.lstrip())
    while at < len(text):
        end = _DECODER.raw_decode(text, at)[1]  # only where it ends: msgspec is stricter
        found.append(msgspec.json.decode(text[at:end]))
        at = end + len(_BETWEEN.match(text, end)[0])  # type: ignore[index]
    return found[0] if len(found) == 1 and isinstance(found[0], list) else found
