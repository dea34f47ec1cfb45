"""What rounding costs on the trained demo model: next-token distributions against those of its own bf16 weights.

The figures of docs/quality.md are those of the whole held-out text; here a part of it, with bounds near them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastllm.demo import DEMO_MODEL
from fastllm.evaluation.divergence import Divergence, compare
from fastllm.evaluation.scoring import ScoredModel

TEXT = Path(__file__).parents[1] / "data" / "heldout.txt"


@pytest.fixture(scope="module")
def measure() -> Any:
    known: dict[tuple[str, str], Divergence] = {}
    with ScoredModel(DEMO_MODEL) as original:
        assert original.tokenizer is not None
        ids = original.tokenizer.encode(TEXT.read_text(encoding="utf-8")[:10_000])
        windows = [ids[i : i + 257] for i in range(0, len(ids) - 1, 256)]

        def run(quantization: str, mode: str) -> Divergence:
            if (quantization, mode) not in known:
                with ScoredModel(DEMO_MODEL, quantization=quantization, activation_mode=mode) as model:
                    known[quantization, mode] = compare(model, original, windows)
            return known[quantization, mode]

        yield run


def _kl(found: Divergence) -> float:
    return float(found.summary()["kl"])


@pytest.mark.parametrize(
    ("quantization", "mode", "kl", "top1", "perplexity"),
    [
        ("int8", "f32", 2e-4, 0.985, 1.005),
        ("int8", "auto", 5e-4, 0.975, 1.01),
        ("int4", "auto", 0.011, 0.91, 1.02),
        ("int4-g32", "auto", 0.007, 0.92, 1.015),
    ],
)
def test_rounded_weights_stay_near_their_original(
    measure: Any, quantization: str, mode: str, kl: float, top1: float, perplexity: float
) -> None:
    found = measure(quantization, mode).summary()
    print(quantization, mode, found)
    assert found["kl"] <= kl and found["top1"] >= top1 and found["ppl"] <= perplexity * found["ppl_original"]


def test_bytes_for_activations_add_little_to_what_four_bits_cost(measure: Any) -> None:
    assert _kl(measure("int4", "auto")) <= 1.05 * _kl(measure("int4", "f32"))


def test_smaller_groups_and_more_bits_are_nearer(measure: Any) -> None:
    assert _kl(measure("int8", "auto")) < _kl(measure("int4-g32", "auto")) < _kl(measure("int4", "auto"))
