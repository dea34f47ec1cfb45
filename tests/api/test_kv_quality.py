"""What an int8 KV cache costs: next-token distributions of the demo model on text that it has not seen."""

from pathlib import Path

import numpy as np
import pytest

from fastllm.evaluation.divergence import Softmax
from fastllm.runtime import EngineOptions, Runtime

HELDOUT = Path(__file__).parents[1] / "data" / "heldout.txt"
WINDOW = 512
MAX_KL = 1e-3


def distributions(dtype, kv_dtype, num_windows):
    options = EngineOptions(
        dtype=dtype, kv_cache_dtype=kv_dtype, max_num_batched_tokens=WINDOW, max_num_seqs=WINDOW,
        kv_cache_tokens=WINDOW, enable_prefix_caching=False,
    )  # fmt: skip
    runtime = Runtime(None, options)
    try:
        ids = runtime.tokenizer.encode(HELDOUT.read_text())[: num_windows * WINDOW]
        scorer = runtime.scorer()
        found = []
        for begin in range(0, len(ids), WINDOW):
            scorer.clear()
            rows = np.empty((WINDOW, scorer.vocab_size), np.float32)
            scorer.append(ids[begin : begin + WINDOW], rows)
            found.append(Softmax.of(rows))
        return ids, found
    finally:
        runtime.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_int8_pages_add_little_divergence(dtype):
    """KL(K/V of the weights' type || int8 K/V), mean over the positions of 4 windows of 512 tokens."""
    ids, exact = distributions(dtype, "auto", 4)
    _, rounded = distributions(dtype, "int8", 4)
    kl = np.concatenate([a.kl_to(b) for a, b in zip(exact, rounded, strict=True)])
    top = np.mean([(a.logits.argmax(-1) == b.logits.argmax(-1)).mean() for a, b in zip(exact, rounded, strict=True)])
    losses = []
    for windows in (exact, rounded):
        losses.append(-np.mean([
            w.logprobs([*ids[i * WINDOW + 1 : (i + 1) * WINDOW], 0])[:-1].mean() for i, w in enumerate(windows)
        ]))  # fmt: skip
    print(f"\n{dtype}: KL {kl.mean():.2e} (99th percentile {np.quantile(kl, 0.99):.1e}, largest {kl.max():.1e}),")
    print(f"same most likely token {100 * top:.2f} %, loss {losses[0]:.5f} -> {losses[1]:.5f}, {len(kl)} positions")
    assert kl.mean() < MAX_KL
