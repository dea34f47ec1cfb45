"""Types of the answers in Anthropic's dialect, as ``openai/answers.py`` has OpenAI's."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class AnthropicErrorFields(_Strict):
    type: str
    message: str


class AnthropicError(_Strict):
    """Every answer that is no success."""

    type: Literal["error"]
    error: AnthropicErrorFields
    request_id: str


class AnswerText(_Strict, tag="text"):
    text: str
    citations: None


class AnswerThinking(_Strict, tag="thinking"):
    thinking: str
    signature: str


class AnswerToolUse(_Strict, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(_Strict):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(_Strict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerText | AnswerThinking | AnswerToolUse]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"] | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(_Strict):
    input_tokens: int
