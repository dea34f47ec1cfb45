"""Messages of a chat: their types, and the plain form that chat templates read."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fastllm.server.errors import invalid

ROLES = Literal["system", "developer", "user", "assistant", "tool"]


class ContentPart(msgspec.Struct, forbid_unknown_fields=True):
    """A piece of a message. Text is the only kind that the models here read."""

    type: Literal["text"]
    text: str


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``refusal``, ``annotations``, ``audio`` and ``function_call`` come back from clients that send an answer as it
    was; they are taken when empty."""

    role: ROLES
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


def template_messages(messages: list[Message], max_messages: int) -> list[dict[str, Any]]:
    """What the chat template gets: text content, and tool calls with their arguments as objects.

    Raises:
        ApiError: 400 that names the message.
    """
    if not 1 <= len(messages) <= max_messages:
        raise invalid(f"messages: {len(messages)} messages, 1 to {max_messages} are allowed", "messages")
    return [_plain(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _plain(message: Message, where: str) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    if message.annotations:
        raise invalid(f"{where}.annotations: only an empty list is supported", f"{where}.annotations")
    if message.tool_calls is not None and role != "assistant":
        raise invalid(f"{where}.tool_calls: only in messages of the assistant", f"{where}.tool_calls")
    if message.tool_call_id is not None and role != "tool":
        raise invalid(f"{where}.tool_call_id: only in messages of a tool", f"{where}.tool_call_id")
    if role == "tool" and message.tool_call_id is None:
        raise invalid(f"{where}.tool_call_id: this field is required in messages of a tool", f"{where}.tool_call_id")
    if message.content is None and not message.tool_calls:
        raise invalid(f"{where}.content: this field is required", f"{where}.content")
    plain: dict[str, Any] = {"role": role, "content": _text(message.content)}
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": arguments_of(call.function.arguments, f"{where}.tool_calls[{k}].function.arguments"),
                },
            }
            for k, call in enumerate(message.tool_calls)
        ]
    return plain


def _text(content: str | list[ContentPart] | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def arguments_of(text: str, where: str) -> Any:
    """The arguments of a call as an object. Raises ApiError 400."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise invalid(f"{where}: is not a JSON object", where) from None
    if not isinstance(value, dict):
        raise invalid(f"{where}: is not a JSON object", where)
    return value
