"""Input of ``/v1/responses``: text, or items; and the plain form that chat templates read."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fastllm.server.body import convert
from fastllm.server.errors import invalid
from fastllm.server.openai.messages import arguments_of

Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``annotations`` and ``logprobs`` come back from clients that send an answer as it was."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class MessageItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="message"):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[TextPart]
    id: str | None = None
    status: Status | None = None


class FunctionCallItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="function_call"):
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class FunctionOutputItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="function_call_output"):
    call_id: str
    output: str | list[TextPart]
    id: str | None = None
    status: Status | None = None


class ReasoningPart(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="reasoning"):
    summary: list[Any]
    content: list[ReasoningPart] | None = None
    id: str | None = None
    status: Status | None = None
    encrypted_content: None = None


Item = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem


def template_messages(
    instructions: str | None, given: str | list[dict[str, Any]], max_items: int
) -> list[dict[str, Any]]:
    """What the chat template gets. Calls that follow each other are of one message. Raises ApiError 400."""
    plain: list[dict[str, Any]] = []
    if instructions is not None:
        plain.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*plain, {"role": "user", "content": given}]
    if not 1 <= len(given) <= max_items:
        raise invalid(f"input: {len(given)} items, 1 to {max_items} are allowed", "input")
    thought = ""
    for i, value in enumerate(given):
        where = f"input[{i}]"
        # A message may come without its type.
        item: Item = convert({"type": "message", **value}, Item, where)
        if isinstance(item, ReasoningItem):
            thought += "".join(part.text for part in item.content or ())
        elif isinstance(item, FunctionOutputItem):
            plain.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            role = "system" if item.role == "developer" else item.role
            plain.append({"role": role, "content": _text(item.content)})
        else:
            message = _of_assistant(plain, item, where)
            if thought:
                message["reasoning_content"], thought = thought, ""
    return plain


def _of_assistant(plain: list[dict[str, Any]], item: MessageItem | FunctionCallItem, where: str) -> dict[str, Any]:
    """Adds an item to the assistant's message that it continues, or to a new one."""
    continues = bool(plain) and plain[-1]["role"] == "assistant"
    if isinstance(item, MessageItem):
        message: dict[str, Any] = {"role": "assistant", "content": _text(item.content)}
        plain.append(message)
        return message
    if not continues:
        plain.append({"role": "assistant", "content": ""})
    message = plain[-1]
    function = {"name": item.name, "arguments": arguments_of(item.arguments, f"{where}.arguments")}
    message.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    return message


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
