"""Types of the answers: what the OpenAPI document says of them. Answers are built as plain dicts where they are made;
tests read every answer with these types, strictly."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class ErrorFields(_Strict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Strict):
    """Every answer that is no success."""

    error: ErrorFields


class Status(_Strict):
    status: Literal["ok", "ready"]


class Version(_Strict):
    version: str


class ModelCard(_Strict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(_Strict):
    object: Literal["list"]
    data: list[ModelCard]


class CachedTokens(_Strict):
    cached_tokens: int


class CostFields(_Strict):
    device_seconds: float
    kv_byte_seconds: float
    amount: float | msgspec.UnsetType = msgspec.UNSET
    currency: str | msgspec.UnsetType = msgspec.UNSET


class Usage(_Strict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    cost: CostFields | msgspec.UnsetType = msgspec.UNSET


class CompletionLogprobLists(_Strict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Strict):
    index: int
    text: str
    logprobs: CompletionLogprobLists | None
    finish_reason: str | None
    stop_reason: int | str | None


class CompletionAnswer(_Strict):
    """Also one event of a stream, where usage is null or absent until it is asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class TopLogprobFields(_Strict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobFields(_Strict):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprobFields]


class ChatLogprobs(_Strict):
    content: list[TokenLogprobFields]
    refusal: None


class CalledFunction(_Strict):
    name: str
    arguments: str


class ToolCallFields(_Strict):
    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | msgspec.UnsetType = msgspec.UNSET


class ChatMessage(_Strict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallFields] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(_Strict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None


class ChatAnswer(_Strict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: None
    usage: Usage


class ChatDelta(_Strict):
    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    refusal: None | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallFields] | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(_Strict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None | msgspec.UnsetType = msgspec.UNSET


class ChatChunk(_Strict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: None
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class EmbeddingFields(_Strict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(_Strict):
    prompt_tokens: int
    total_tokens: int
    cost: CostFields | msgspec.UnsetType = msgspec.UNSET


class EmbeddingsAnswer(_Strict):
    object: Literal["list"]
    data: list[EmbeddingFields]
    model: str
    usage: EmbeddingUsage


class TokenizeAnswer(_Strict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(_Strict):
    prompt: str


AnyObject = dict[str, Any]
