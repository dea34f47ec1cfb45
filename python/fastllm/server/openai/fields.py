"""Fields that generating endpoints share, and the way from a body to SamplingParams.

Types are checked here; ranges once, in the engine, whose texts name the parameter. A field that OpenAI has and this
server does not is in no struct, so it is refused by name; some are taken with their neutral value only.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from fastllm import SamplingParams, StructuredOutputsParams
from fastllm.server.errors import invalid
from fastllm.server.filters import FilterChain

Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Bias = dict[TokenId, float]
Prompts = str | list[str | Int | list[Int]]
MAX_USER_BYTES = 256


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """``include_usage``: a last chunk with the counts. ``continuous_usage_stats`` (vLLM): counts in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """As in vLLM; the engine checks that exactly one kind is given."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None

    def params(self) -> StructuredOutputsParams:
        values = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return StructuredOutputsParams(**values)


class Placement(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Extensions that every endpoint with work for the engine takes."""

    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | None = None
    cache_salt: str | None = None
    include_cost: bool | None = None
    request_timeout: Annotated[float, msgspec.Meta(gt=0, le=86400)] | None = None


class SamplingFields(Placement, forbid_unknown_fields=True, kw_only=True):
    """What both completion endpoints take. After ``user`` come the extensions, named as in vLLM."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Int | None = None
    stop: str | list[str] | None = None
    seed: Int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Bias | None = None
    max_tokens: Int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    top_k: Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[Int] | None = None
    structured_outputs: StructuredOutputs | None = None


_SAME_NAME = """temperature top_p n seed presence_penalty frequency_penalty logit_bias top_k min_p repetition_penalty
    min_tokens ignore_eos stop_token_ids include_stop_str_in_output skip_special_tokens bad_words
    allowed_token_ids""".split()  # noqa: SIM905


def sampling_params(body: SamplingFields, **more: Any) -> SamplingParams:
    """The engine's parameters; None is left to their defaults. ``more`` has what the endpoints name differently."""
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options: only together with stream = true", "stream_options")
    check_user(body.user)
    values = {name: getattr(body, name) for name in _SAME_NAME if getattr(body, name) is not None}
    if body.stop is not None:
        values["stop"] = [body.stop] if isinstance(body.stop, str) else body.stop
    if body.structured_outputs is not None:
        values["structured_outputs"] = body.structured_outputs.params()
    values.update(more)
    return SamplingParams(**values)


def check_user(user: str | None, name: str = "user") -> None:
    if user is not None and len(user.encode("utf-8", "replace")) > MAX_USER_BYTES:
        raise invalid(f"{name}: at most {MAX_USER_BYTES} bytes are allowed", name)


def prompt_list(value: Prompts, name: str, limit: int) -> list[Any]:
    """Strings or lists of token ids, whatever way one or many were given. Raises ApiError 400 naming the field."""
    many: list[Any] = value if isinstance(value, list) else [value]
    if len({type(item) for item in many}) > 1:
        raise invalid(f"{name}: a list holds strings, token ids, or lists of token ids, not several", name)
    if many and isinstance(many[0], int):
        many = [many]
    if not 1 <= len(many) <= limit:
        raise invalid(f"{name}: {len(many)} prompts, 1 to {limit} are allowed", name)
    return many


def refuse_unless(body: Any, **neutral: tuple[Any, ...]) -> None:
    """400 for fields that are known but only supported with these values (or absent)."""
    for name, values in neutral.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            shown = " or ".join("null" if v is None else msgspec.json.encode(v).decode() for v in values) or "null"
            raise invalid(f"{name}: only {shown} is supported", name, code="unsupported_parameter")


def check_count(n: int | None, num_prompts: int, limit: int) -> None:
    """Sequences of one request are bounded, whatever way they are asked for."""
    if (n or 1) * num_prompts > limit:
        raise invalid(f"n: n times the number of prompts is {(n or 1) * num_prompts}, at most {limit} are allowed", "n")


def check_input(filters: FilterChain, text: str, param: str) -> None:
    """400 for a prompt that a content filter does not let in."""
    if filters.matches(text):
        raise invalid(
            f"{param}: holds what the content filter of this server does not allow", param, code="content_filter"
        )


def wants_usage(body: SamplingFields) -> bool:
    options = body.stream_options
    return options is not None and bool(options.include_usage)


def wants_running_usage(body: SamplingFields) -> bool:
    options = body.stream_options
    return options is not None and bool(options.continuous_usage_stats)
