"""Log-probability of a continuation after a context, through the engine, which batches the prompts.

Each is computed whole: log-probabilities of a prompt cannot come from the prefix cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastllm.errors import InvalidRequestError
from fastllm.llm import LLM
from fastllm.params import SamplingParams


def encode_pair(encode: Callable[[str], list[int]], context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of both, cut where the context ends when it is encoded alone.

    Spaces at the end of the context move to the continuation, because tokenizers write them at the front of words.
    """
    cut = len(encode(context.rstrip()))
    whole = encode(context + continuation)
    return whole[:cut], whole[cut:]


def loglikelihoods(
    llm: LLM, pairs: Sequence[tuple[list[int], list[int]]], *, start_id: int | None = None, use_tqdm: bool = False
) -> list[tuple[float, bool]]:
    """For (context, continuation): sum of log-probabilities of the continuation, and whether greedy would write it.

    A context that is too long loses its beginning. An empty one becomes `start_id`; without that, the first token of
    the continuation is not counted.
    """
    longest = llm.info()["max_model_len"] - 1
    prompts: list[list[int]] = []
    counts: list[int] = []
    for context, continuation in pairs:
        if not continuation or len(continuation) > longest:
            raise InvalidRequestError(
                f"a continuation has {len(continuation)} tokens, expected 1 to {longest} (max_model_len)"
            )
        context = context or ([] if start_id is None else [start_id])
        prompt = [*context, *continuation][-longest:]
        prompts.append(prompt)
        counts.append(min(len(continuation), len(prompt) - 1))
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, ignore_eos=True)
    found = []
    for output, count in zip(llm.generate(prompts, params, use_tqdm=use_tqdm), counts, strict=True):
        tail = list(zip(output.prompt_token_ids, output.prompt_logprobs or [], strict=True))[-count:] if count else []
        entries = [(entry or {})[token] for token, entry in tail]
        found.append((sum(entry.logprob for entry in entries), all(entry.rank == 1 for entry in entries)))
    return found
