"""Errors as OpenAI writes them. Texts are fixed and name the parameter; nothing that a client sent is repeated."""

from __future__ import annotations

from typing import Any

from fastllm.errors import (
    EngineClosedError,
    FastLLMError,
    InvalidRequestError,
    OutOfMemoryError,
    QueueFullError,
)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    411: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# Names that the engine's texts start with, as far as clients can set them.
_PARAMS = frozenset(
    """n temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty seed stop stop_token_ids
    bad_words max_tokens min_tokens logprobs prompt_logprobs logit_bias allowed_token_ids cache_salt
    dimensions pooling""".split()  # noqa: SIM905
)


class ApiError(Exception):
    """An answer with a status and OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after_s is None and status in (429, 503):
            retry_after_s = 1
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)

    @property
    def kind(self) -> str:
        return _TYPES.get(self.status, "server_error")

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer, or of an event on a stream that has begun."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def anthropic_body(self, request_id: str) -> dict[str, Any]:
        """The same as Anthropic writes it."""
        kind = {413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}.get(self.status, self.kind)
        error = {"type": "api_error" if kind == "server_error" else kind, "message": self.message}
        return {"type": "error", "error": error, "request_id": request_id}


def invalid(message: str, param: str | None = None, *, code: str | None = None) -> ApiError:
    """A 400 about a parameter."""
    return ApiError(400, message, param=param, code=code)


def from_engine(error: FastLLMError, renamed: dict[str, str] | None = None) -> ApiError:
    """The answer for an error of the engine. ``renamed``: engine's parameter name -> the endpoint's."""
    renamed = renamed or {}
    text = str(error)
    if isinstance(error, InvalidRequestError):
        first = text.split(" ", 1)[0]
        if first in _PARAMS:
            param = renamed.get(first, first)
            return invalid(param + text[len(first) :], param)
        if first == "prompt_token_ids" or first.startswith("prompt") or text.startswith("the prompt"):
            too_long = "max_model_len" in text or "together" in text or "no room" in text
            return invalid(text, renamed.get("prompt", "prompt"), code="context_length_exceeded" if too_long else None)
        if first == "structured_outputs:":
            param = renamed.get("structured_outputs", "structured_outputs")
            return invalid(param + text[len(first) - 1 :], param, code="invalid_grammar")
        if text.startswith("chat template") or text.startswith("messages["):
            return invalid(text[:300], "messages")
        return invalid(text[:300])
    if isinstance(error, QueueFullError):
        return ApiError(503, "the queue is full; try again later", code="overloaded")
    if isinstance(error, EngineClosedError):
        return ApiError(503, "the engine has stopped", code="engine_stopped")
    if isinstance(error, OutOfMemoryError):
        return ApiError(503, "not enough memory for this request just now; try again later", code="out_of_memory")
    return ApiError(500, "the model failed on this request", code="engine_error")


def internal_error() -> ApiError:
    """The fixed text for a bug."""
    return ApiError(500, "internal error; the log of the server has the cause", code="internal_error")
