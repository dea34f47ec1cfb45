"""Messages as lists of blocks: their types, and the plain form that chat templates read.

``cache_control`` is taken and changes nothing: prefixes are cached anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from fastllm.server.errors import invalid


class CacheControl(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="text"):
    text: str
    citations: None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="thinking"):
    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock] = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    role: Literal["user", "assistant"]
    content: str | list[Block]


def template_messages(
    system: str | list[TextBlock] | None, messages: Sequence[Message], max_messages: int
) -> list[dict[str, Any]]:
    """What the chat template gets. Raises ApiError 400 that names the message."""
    if not 1 <= len(messages) <= max_messages:
        raise invalid(f"messages: {len(messages)} messages, 1 to {max_messages} are allowed", "messages")
    if messages[-1].role != "user":
        raise invalid(
            "messages: the last one must be of the user; an answer that was begun is not supported", "messages"
        )
    plain: list[dict[str, Any]] = []
    if system:
        plain.append({"role": "system", "content": _text(system)})
    for i, message in enumerate(messages):
        if isinstance(message.content, str):
            plain.append({"role": message.role, "content": message.content})
        elif message.role == "user":
            plain += _of_user(message.content, f"messages[{i}].content")
        else:
            plain.append(_of_assistant(message.content, f"messages[{i}].content"))
    return plain


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _of_user(blocks: Sequence[Block], where: str) -> list[dict[str, Any]]:
    """Results of tools are messages of their own for a template."""
    plain: list[dict[str, Any]] = []
    for k, block in enumerate(blocks):
        if isinstance(block, ToolResultBlock):
            plain.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content)})
        elif not isinstance(block, TextBlock):
            raise invalid(f"{where}[{k}].type: only in messages of the assistant", f"{where}[{k}].type")
        elif plain and plain[-1]["role"] == "user":
            plain[-1]["content"] += block.text
        else:
            plain.append({"role": "user", "content": block.text})
    if not plain:
        raise invalid(f"{where}: is empty", where)
    return plain


def _of_assistant(blocks: Sequence[Block], where: str) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": "assistant", "content": ""}
    calls = []
    for k, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            plain["content"] += block.text
        elif isinstance(block, ThinkingBlock):
            plain["reasoning_content"] = plain.get("reasoning_content", "") + block.thinking
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        else:
            raise invalid(f"{where}[{k}].type: only in messages of the user", f"{where}[{k}].type")
    if calls:
        plain["tool_calls"] = calls
    return plain
