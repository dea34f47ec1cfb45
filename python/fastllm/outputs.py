"""What a request gives back. Frozen, plain, printable."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Logprob:
    """Natural logarithm of a token's probability under the raw logits, and its rank (1 is the most likely)."""

    logprob: float
    rank: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times in seconds since the request arrived (None until it happened), and token counts.

    Attributes:
        queued_s: until the first scheduled step.
        first_token_s: until the first generated token.
        total_s: until the end.
        inter_token_s: mean time between generated tokens of the first sequence; None for fewer than two.
        num_prompt_tokens: length of the prompt.
        num_cached_tokens: of these, taken from the prefix cache.
        num_generated_tokens: over all sequences.
        num_preemptions: times the request lost its pages and was recomputed.
        device_s: its share of the engine's time; those of all requests add up to the time that the engine worked.
        kv_page_s: KV pages that it held, times seconds; a shared page counts in equal parts.
    """

    queued_s: float | None
    first_token_s: float | None
    total_s: float | None
    inter_token_s: float | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_preemptions: int
    device_s: float = 0.0
    kv_page_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One generated sequence.

    Attributes:
        index: 0 to n - 1.
        text: generated text so far; always whole characters.
        token_ids: generated ids so far.
        logprobs: per generated token, token id -> Logprob; None unless asked for.
        cumulative_logprob: sum over the generated tokens; None unless logprobs were asked for.
        finish_reason: "stop", "length", "abort", "error", or None while running.
        stop_reason: the stop string or stop token id that ended it, if one did.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    cumulative_logprob: float | None
    finish_reason: str | None
    stop_reason: int | str | None


@dataclasses.dataclass(frozen=True, slots=True)
class RequestOutput:
    """One prompt and its sequences."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EmbeddingOutput:
    """One prompt and its embedding: float32 [E], or [dimensions]."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    embedding: np.ndarray[tuple[int], np.dtype[np.float32]]
    metrics: RequestMetrics
