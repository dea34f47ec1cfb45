"""How to sample. Names, meanings and defaults follow vLLM's ``SamplingParams``; ranges are those of the engine."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fastllm.errors import InvalidRequestError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """What the text must be; exactly one of the first five. Needs the extra ``[structured]``.

    The end of the grammar ends the sequence with ``finish_reason`` "stop"; ``max_tokens``, stop strings and stop tokens
    may end it earlier.

    Args:
        json: a JSON schema, as an object or as text; at most 64 KiB and 32 levels. Keywords that are not implemented
            are refused.
        regex: a regular expression for the whole text, of at most 1 KiB; no look-around, no back-references.
        choice: the text is one of these strings.
        grammar: Lark (llguidance's variant) or GBNF, at most 64 KiB.
        json_object: True: any JSON object.
        disable_any_whitespace: JSON without any white space outside strings; else at most one space after "," and ":".
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one request.

    The order is fixed: penalties, then ``logit_bias`` and bans, then temperature, ``top_k``, ``top_p``, ``min_p``.
    Wrong types and ranges are refused when the request is submitted, with the name of the parameter.

    Args:
        n: sequences per prompt, 1 to 128.
        temperature: 0 is greedy; otherwise logits are divided by it. At most 100.
        top_p: keep the smallest set of tokens with at least this probability, (0, 1].
        top_k: keep this many most likely tokens; 0 or -1 keeps all.
        min_p: drop tokens below this share of the most likely token's probability, [0, 1].
        repetition_penalty: divides positive, multiplies negative logits of tokens seen in prompt or output; 1 is none.
        presence_penalty: subtracted once from the logit of each token generated so far, [-2, 2].
        frequency_penalty: subtracted once per occurrence in the output, [-2, 2].
        seed: makes the request reproducible in any company; None derives one from the engine's seed.
        stop: string or strings at which the text ends.
        stop_token_ids: token ids at which the sequence ends.
        bad_words: strings that must not be generated.
        include_stop_str_in_output: keep the stop string in the text.
        ignore_eos: go on after the end-of-sequence token.
        max_tokens: tokens to generate at most; None: until ``max_model_len``.
        min_tokens: no end-of-sequence or stop token before this many tokens.
        logprobs: report the log-probability of each token and of this many most likely ones, 0 to 20.
        prompt_logprobs: the same for the tokens of the prompt.
        logit_bias: token id -> number added to its logit.
        allowed_token_ids: only these tokens may be generated.
        banned_token_ids: these tokens may not be generated.
        skip_special_tokens: leave special tokens out of the text.
        detokenize: False returns token ids only.
        structured_outputs: what the text must be: a JSON schema, a regular expression, ...
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    banned_token_ids: Sequence[int] = ()
    skip_special_tokens: bool = True
    detokenize: bool = True
    structured_outputs: StructuredOutputsParams | None = None

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SamplingParams:
        """Builds parameters from names and values; an unknown name is refused with the nearest known one."""
        known = [field.name for field in dataclasses.fields(SamplingParams)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
                raise InvalidRequestError(f"sampling parameter {name!r} is not known{hint}")
        return SamplingParams(**values)

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some parameters changed."""
        return dataclasses.replace(self, **changes)
