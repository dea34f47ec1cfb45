"""Requests that use every sampling feature and every length around a page border, and what of their outputs must not
depend on the company."""

from __future__ import annotations

import random
import time
from typing import Any

from fastllm import SamplingParams

VOCAB = 259  # of the small checkpoints, less the ids that the tokenizer does not know
PAGE = 16


def ids(seed: int, length: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(3, VOCAB) for _ in range(length)]


SHARED = ids(100, 3 * PAGE)  # three pages that several prompts begin with
DEFAULTS: dict[str, Any] = {"max_tokens": 24, "logprobs": 2, "ignore_eos": True}


def _request(prompt: list[int], **params: Any) -> tuple[list[int], SamplingParams]:
    return prompt, SamplingParams(**{**DEFAULTS, **params})


REQUESTS = {
    "greedy": _request(ids(1, 40), temperature=0),
    "one-token": _request(ids(2, 1), temperature=1.0, seed=2),
    "one-page": _request(ids(3, PAGE), temperature=0.9, seed=3, logprobs=5),
    "page-and-one": _request(ids(4, PAGE + 1), temperature=0),
    "top-k": _request(SHARED + ids(5, 3), temperature=1.2, top_k=7, seed=5),
    "top-p-min-p": _request(SHARED[:40] + ids(6, 9), temperature=1.1, top_p=0.8, min_p=0.02, seed=6),
    "penalties": _request(
        SHARED[:32] + ids(7, 9), temperature=0.7, seed=7, repetition_penalty=1.3, presence_penalty=0.5,
        frequency_penalty=0.4,
    ),
    "bias-and-bans": _request(
        SHARED, temperature=0.8, seed=8, logit_bias={20: 4.0, 21: -100.0, 22: 2.5}, banned_token_ids=[5, 6, 7]
    ),
    "allowed": _request(ids(9, 23), temperature=1.0, seed=9, allowed_token_ids=[30, 31, 32, 40, 41], min_tokens=4),
    "bad-words": _request(ids(10, 31), temperature=0.9, seed=10, bad_words=["ab", "z"], stop_token_ids=[77]),
    "min-tokens": _request(ids(11, 7), temperature=1.0, seed=11, min_tokens=6, stop_token_ids=list(range(100, 180))),
    "three-sequences": _request(ids(12, 27), temperature=1.0, seed=12, n=3),
    "two-sequences-at-a-border": _request(SHARED[:32], temperature=0.9, seed=13, n=2, frequency_penalty=0.3),
    "prompt-logprobs": _request(SHARED + ids(14, 20), temperature=0, prompt_logprobs=3),
}  # fmt: skip


def filler(i: int) -> tuple[list[int], SamplingParams]:
    """Company: other prompts, some of which begin alike."""
    prompt = (SHARED[: PAGE * (i % 4)] if i % 3 == 0 else []) + ids(1000 + i, 1 + i * 7 % 29)
    return _request(prompt, temperature=(i % 3) / 2, seed=i, max_tokens=8 + i % 17)


def bits(output: Any) -> tuple[Any, ...]:
    """Everything of an output that must not depend on the batch. Floats compare as floats: equal bits."""
    return (
        [(c.index, c.token_ids, c.text, c.finish_reason, c.stop_reason, c.logprobs) for c in output.outputs],
        output.prompt_logprobs,
    )


def run_alone(llm: Any, requests: dict[str, tuple[list[int], SamplingParams]] = REQUESTS) -> dict[str, Any]:
    return {name: bits(llm.generate([prompt], params)[0]) for name, (prompt, params) in requests.items()}


def run_together(llm: Any, names: list[str], num_fillers: int = 0, seed: int = 0, salt: str = "") -> dict[str, Any]:
    """The named requests in a random order among fillers, in one call."""
    items = [(name, *REQUESTS[name]) for name in names] + [("", *filler(i)) for i in range(num_fillers)]
    random.Random(seed).shuffle(items)
    outputs = llm.generate([prompt for _, prompt, _ in items], [params for *_, params in items], cache_salt=salt)
    return {name: bits(output) for (name, *_), output in zip(items, outputs, strict=True) if name}


def idle_stats(llm: Any) -> dict[str, Any]:
    """Counters once the engine has nothing to do; they are published after the step that sent the last output."""
    deadline = time.monotonic() + 30
    while True:
        stats: dict[str, Any] = llm.info()["engine"]
        if not (stats["num_pages_referenced"] or stats["num_running"] or stats["num_waiting"]):
            break
        assert time.monotonic() < deadline, f"the engine does not come to rest: {stats}"
        time.sleep(0.001)
    assert stats["num_pages_free"] + stats["num_pages_cached"] == stats["num_pages"]
    return stats
