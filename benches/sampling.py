"""Sampling alone: microseconds per row of a vocabulary of 151,936, on one thread.

    python benches/sampling.py

Times are processor time, the least of many calls, so that other work on the machine counts little. "model": logits as a
trained model makes them (40 likely tokens above a wide normal bulk). "flat": as random weights make them.
"""

import time

import numpy as np

from fastllm import _core, ops
from fastllm.ops import SampleParams

VOCAB = 151_936
ROWS = 8
CASES = {
    "greedy": SampleParams(temperature=0),
    "temperature 1": SampleParams(seed=1),
    "top_k 50": SampleParams(top_k=50, seed=1),
    "top_p 0.9": SampleParams(top_p=0.9, seed=1),
    "min_p 0.05": SampleParams(min_p=0.05, seed=1),
    "top_k 50, top_p 0.9, temperature 0.7": SampleParams(top_k=50, top_p=0.9, temperature=0.7, seed=1),
    "temperature 1, 5 log-probabilities": SampleParams(seed=1, wants_logprob=True, num_top=5),
    # Masks of a grammar: within a string nearly all tokens are allowed, elsewhere a few.
    "temperature 1, most ids allowed": SampleParams(seed=1, mask=[0xFFFFFFFF, 0xFFFEFFFF] * (VOCAB // 64)),
    "temperature 1, few ids allowed": SampleParams(seed=1, mask=[*([0] * 99), 0x10] * (VOCAB // 3200 + 1)),
}


def main() -> None:
    device = ops.Device("cpu", num_threads=1)
    rng = np.random.default_rng(0)
    flat = 0.01 * rng.standard_normal((ROWS, VOCAB)).astype(np.float32)
    model = 2.5 * rng.standard_normal((ROWS, VOCAB)).astype(np.float32)
    model[:, rng.integers(0, VOCAB, 40)] += 12
    for kind, logits in (("model", model), ("flat", flat)):
        for name, params in CASES.items():
            rows = [ops._native_params(params)] * ROWS
            least = float("inf")
            for _ in range(40):
                overwritten = logits.copy()
                begin = time.thread_time()
                _core.ops_sample(device._native, overwritten, rows)
                least = min(least, time.thread_time() - begin)
            print(f"{kind:5}  {name:38} {least / ROWS * 1e6:8.1f} us")


if __name__ == "__main__":
    main()
