"""Whole models through the CUDA kernels, in the emulator and on a GPU where there is one: every architecture against
transformers, and batch invariance of whole generations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CASES, Case, make_model, prompt_ids, reference_greedy, reference_logits, save, settle_rope

fastllm = pytest.importorskip("fastllm")
pytest.importorskip("fastllm.ops")

NUM_TOKENS = 8
TOLERANCE = 1e-4


def _devices() -> list[str]:
    try:
        fastllm.ops.Device("cuda")
    except fastllm.DeviceError:
        return ["cuda:emulated"]
    return ["cuda:emulated", "cuda"]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> Any:
    return request.param


def _open(folder: Path, case: Case, device: str, **options: Any) -> Any:
    return fastllm.LLM(str(folder), device=device, max_model_len=case.max_model_len, **{"dtype": "float32", **options})


def _params(**values: Any) -> Any:
    return fastllm.SamplingParams(**{"temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True, **values})


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_tokens_and_logprobs_are_those_of_transformers(device: str, case: Case, tmp_path: Path) -> None:
    model = make_model(case)
    save(model, tmp_path)
    settle_rope(model, case)
    ids = prompt_ids(case)
    rows = torch.log_softmax(reference_logits(model, ids).double(), -1)
    tokens, margin = reference_greedy(model, ids, NUM_TOKENS)
    with _open(tmp_path, case, device) as llm:
        output = llm.generate([ids], _params(prompt_logprobs=0))[0]
    for i in range(1, len(ids)):
        wanted = float(rows[i - 1, ids[i]])
        got = output.prompt_logprobs[i][ids[i]].logprob
        assert abs(got - wanted) <= TOLERANCE * max(1.0, abs(wanted)), f"position {i}: {got} is not {wanted}"
    if margin > 10 * TOLERANCE:
        assert list(output.outputs[0].token_ids) == tokens


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "fp8"])
def test_a_generation_does_not_depend_on_its_batch_or_on_chunks(device: str, tmp_path: Path, kv_dtype: str) -> None:
    case = CASES[0]
    save(make_model(case), tmp_path)
    prompts = [prompt_ids(case, seed)[:n] for seed, n in ((1, 24), (2, 1), (3, 17), (4, 33))]
    params = _params(logprobs=1)

    def generate(llm: Any, some: list[list[int]]) -> list[Any]:
        results = llm.generate(some, params)
        return [
            [(t, o[t].logprob) for t, o in zip(r.outputs[0].token_ids, r.outputs[0].logprobs, strict=True)]
            for r in results
        ]

    options = {"dtype": "bfloat16", "kv_cache_dtype": kv_dtype, "max_num_seqs": 4}
    with _open(tmp_path, case, device, **options) as llm:
        together = generate(llm, prompts)
        assert [generate(llm, [p])[0] for p in prompts] == together
    with _open(tmp_path, case, device, max_num_batched_tokens=7, **options) as llm:
        assert generate(llm, prompts) == together


@pytest.mark.parametrize(
    ("quantization", "mode"), [("int4", "bf16"), ("int8", "bf16"), ("int8", "a8"), ("int4", "a8r")]
)
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("llama-gqa", "qwen3-moe")], ids=lambda c: c.name)
def test_integer_weights_give_what_the_processor_gives(
    device: str, case: Case, quantization: str, mode: str, tmp_path: Path
) -> None:
    save(make_model(case), tmp_path)
    ids = prompt_ids(case)
    options = {"quantization": quantization, "activation_mode": mode}
    found = []
    for one in ("cpu", device):
        with _open(tmp_path, case, one, **options) as llm:
            assert any(name.startswith("int") for name in llm.info()["weights"])
            output = llm.generate([ids], _params(prompt_logprobs=0))[0]
        logprobs = [output.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))]
        found.append((list(output.outputs[0].token_ids), logprobs))
    assert found[1][0] == found[0][0]
    # Both round activations before each product; a sum in another order (norms, attention) may round the other way.
    assert found[1][1] == pytest.approx(found[0][1], rel=2e-2, abs=2e-2)


def test_decode_steps_are_recorded_at_the_start_and_repeated(device: str, tmp_path: Path) -> None:
    """Recorded steps give what steps of another shape give, and records are counted, bounded and in the plan."""
    case = CASES[0]
    save(make_model(case), tmp_path)
    prompts = [prompt_ids(case, seed)[:n] for seed, n in ((1, 24), (2, 1), (3, 17))]

    def tokens(llm: Any, some: list[list[int]]) -> list[list[int]]:
        return [list(r.outputs[0].token_ids) for r in llm.generate(some, _params())]

    with _open(tmp_path, case, device, max_num_seqs=3) as llm:
        at_start = llm.info()
        together = tokens(llm, prompts)
        after = llm.info()
        assert [tokens(llm, [p])[0] for p in prompts] == together
    with _open(tmp_path, case, device, max_num_seqs=2, max_num_batched_tokens=4) as llm:
        assert tokens(llm, prompts) == together
    assert 0 < at_start["num_graphs"] <= 16 and at_start["num_graphs"] <= after["num_graphs"] <= 32
    assert after["num_graphs"] == at_start["num_graphs"], "all shapes of this engine are recorded at the start"
