"""The standard workloads W1 to W5: what is asked, how much of it, and when. Deterministic in the seed.

Lengths are heavy-tailed, as those of real traffic are: prompts log-normal, outputs Pareto (most are short, a few take
the whole limit). All lengths are cut to what the server's context holds, so the same workloads run on a small model.
Prompts are token ids: no tokenizer stands between the plan and the work.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

# Ids that every vocabulary has and that mean plain text in most.
_LOW_ID, _HIGH_ID = 40, 250
_MEDIAN_PROMPT, _PROMPT_SPREAD = 64, 0.8
_SHORTEST_OUTPUT, _TAIL = 6, 1.05
_LONGEST_OUTPUT = 512


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """One request.

    Attributes:
        at_s: when it is sent, from the start of the run; None: as soon as a client is free.
        leave_after: tokens after which its client closes the connection; None: it stays.
        group: the report has figures of each.
        extra: further fields of the body.
    """

    prompt: list[int]
    max_tokens: int
    at_s: float | None = None
    leave_after: int | None = None
    group: str = "all"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """``concurrency`` clients take the requests without a time one after the other."""

    name: str
    text: str
    requests: list[Planned]
    concurrency: int


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """What a run is scaled to."""

    max_model_len: int
    num_requests: int
    concurrency: int
    seed: int = 0
    requests_per_s: float = 0.0  # of a server that is busy all the time; W2 takes shares of it

    def random(self, salt: str) -> random.Random:
        return random.Random(f"{self.seed}/{salt}")


def _prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randint(_LOW_ID, _HIGH_ID) for _ in range(length)]


def _mixed(rng: random.Random, max_model_len: int) -> Planned:
    longest_output = min(_LONGEST_OUTPUT, max_model_len // 2)
    length = round(_MEDIAN_PROMPT * math.exp(rng.gauss(0, _PROMPT_SPREAD)))
    tokens = round(_SHORTEST_OUTPUT * rng.paretovariate(_TAIL))
    prompt = _prompt(rng, max(4, min(length, max_model_len - longest_output)))
    return Planned(prompt, min(tokens, longest_output))


def mixed_lengths(sizes: Sizes) -> list[Workload]:
    """W1, as many clients as are asked for, each sending its next request when it has the last answer."""
    rng = sizes.random("W1")
    requests = [_mixed(rng, sizes.max_model_len) for _ in range(sizes.num_requests)]
    text = f"mixed lengths, {sizes.concurrency} clients in a closed loop"
    return [Workload("W1", text, requests, sizes.concurrency)]


def partial_load(sizes: Sizes) -> list[Workload]:
    """W2: the requests of W1 arrive at random (Poisson) at 30, 60 and 90 % of the rate that the server can hold."""
    found = []
    for share in (30, 60, 90):
        rng = sizes.random(f"W2/{share}")
        rate, at_s, requests = sizes.requests_per_s * share / 100, 0.0, []
        for _ in range(sizes.num_requests):
            at_s += rng.expovariate(rate)
            requests.append(dataclasses.replace(_mixed(rng, sizes.max_model_len), at_s=at_s))
        found.append(Workload(f"W2-{share}", f"Poisson arrivals, {rate:.2f} requests/s, {share} % load", requests, 0))
    return found


def shared_prompt(sizes: Sizes) -> list[Workload]:
    """W3: 100 users with a prompt of 1,000 tokens that is the same for all, and a few of their own."""
    rng = sizes.random("W3")
    common = _prompt(rng, min(1000, sizes.max_model_len // 2))
    requests = [Planned(common + _prompt(rng, 16), 32) for _ in range(100)]
    return [Workload("W3", f"100 users share {len(common)} prompt tokens", requests, sizes.concurrency)]


def long_prompt(sizes: Sizes) -> list[Workload]:
    """W4: one prompt of 8,000 tokens arrives while 8 streams run."""
    rng = sizes.random("W4")
    length = min(8000, sizes.max_model_len - 40)
    tokens = min(256, sizes.max_model_len - 40)
    streams = [Planned(_prompt(rng, 32), tokens, at_s=0.0, group="streams") for _ in range(8)]
    # After the streams have begun, on anything that is not hopelessly slow.
    arriving = Planned(_prompt(rng, length), 8, at_s=0.05, group="long")
    return [Workload("W4", f"a prompt of {length} tokens arrives among 8 streams", [*streams, arriving], 0)]


def leaving_clients(sizes: Sizes) -> list[Workload]:
    """W5: W1, and 30 % of the clients leave in the middle of their answer."""
    rng = sizes.random("W5")
    requests = []
    for i in range(sizes.num_requests):
        planned = _mixed(rng, sizes.max_model_len)
        if i % 10 < 3:
            planned = dataclasses.replace(
                planned, max_tokens=max(planned.max_tokens, 16), leave_after=rng.randint(1, 8), group="leaving"
            )
        requests.append(planned)
    rng.shuffle(requests)
    return [Workload("W5", "mixed lengths, 30 % of the clients leave", requests, sizes.concurrency)]


WORKLOADS: dict[str, Callable[[Sizes], list[Workload]]] = {
    "W1": mixed_lengths,
    "W2": partial_load,
    "W3": shared_prompt,
    "W4": long_prompt,
    "W5": leaving_clients,
}
