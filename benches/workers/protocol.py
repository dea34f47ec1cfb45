"""What every peer runs: a process that loads one model, then answers JSON lines on stdin with JSON lines on stdout.

    {"op": "prefill", "prompt": [ids]}                              -> {"seconds": s}   prompt in, first token out
    {"op": "decode", "prompts": [[ids], ...], "steps": n}           -> {"seconds": s}   one step of all the prompts
    {"op": "exit"}                                                  -> {"peak_rss": bytes}

The first line that it writes is {"ready": true, "version": "...", "settings": "..."}.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

Prompts = Sequence[Sequence[int]]


class Engine(Protocol):
    version: str
    settings: str  # what it runs: weight format, K/V format, threads

    def generate(self, prompts: Prompts, count: int) -> None:
        """Greedy, exactly `count` tokens for each prompt, all prompts in one batch."""


def time_prefill(engine: Engine, prompt: Sequence[int]) -> float:
    start = time.perf_counter()
    engine.generate([prompt], 1)
    return time.perf_counter() - start


def time_decode(engine: Any, prompts: Prompts, steps: int) -> float:
    """Seconds of one step. An engine with a `decode_seconds` of its own times its loop; for the others it is the
    difference of a long and a short generation."""
    if hasattr(engine, "decode_seconds"):
        return float(engine.decode_seconds(prompts, steps)) / steps
    seconds = []
    for count in (2, 2 + steps):
        start = time.perf_counter()
        engine.generate(prompts, count)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / steps


def serve(engine: Engine, answers: Any) -> None:
    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    answer(ready=True, version=engine.version, settings=engine.settings)
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "prefill":
            answer(seconds=time_prefill(engine, request["prompt"]))
        elif request["op"] == "decode":
            answer(seconds=time_decode(engine, request["prompts"], request["steps"]))
        else:
            answer(peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            return


def take_stdout() -> Any:
    """A private stream to the driver; what libraries print goes to stderr."""
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return private
