"""Types of the answers of ``/v1/responses``."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

_Status = Literal["completed", "incomplete"]


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class OutputTextPart(_Strict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputReasoningPart(_Strict):
    type: Literal["reasoning_text"]
    text: str


class OutputMessage(_Strict, tag="message"):
    id: str
    status: _Status
    role: Literal["assistant"]
    content: list[OutputTextPart]


class OutputCall(_Strict, tag="function_call"):
    id: str
    status: _Status
    call_id: str
    name: str
    arguments: str


class OutputReasoning(_Strict, tag="reasoning"):
    id: str
    status: _Status
    summary: list[Any]
    content: list[OutputReasoningPart]


class IncompleteDetails(_Strict):
    reason: Literal["max_output_tokens", "content_filter"]


class InputDetails(_Strict):
    cached_tokens: int


class OutputDetails(_Strict):
    reasoning_tokens: int


class ResponseUsage(_Strict):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseAnswer(_Strict):
    id: str
    object: Literal["response"]
    created_at: int
    status: _Status
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputCall | OutputReasoning]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, None]
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, str]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage
    user: str | None
