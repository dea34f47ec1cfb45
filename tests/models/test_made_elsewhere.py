"""Checkpoints that other packages quantized and saved load here, and give the log-probabilities of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import CASES, Case, make_model, prompt_ids, save

import fastllm

TOLERANCE = 1e-4  # as for unquantized checkpoints: the weights are the same bits


def _case() -> Case:
    case = next(case for case in CASES if case.name == "llama-gqa")
    return Case("", case.config, case.model, {**case.values, "hidden_size": 64, "intermediate_size": 128}, 20)


def _check(folder: Path, model: Any, ids: list[int]) -> dict[str, Any]:
    """The folder against a float model; returns info()["quantization"]."""
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    params = fastllm.SamplingParams(max_tokens=1, prompt_logprobs=0)
    options = {"dtype": "float32", "activation_mode": "f32", "max_num_seqs": 2, "kv_cache_tokens": 256}
    with fastllm.LLM(str(folder), num_threads=1, **options) as llm:
        output = llm.generate([ids], params)[0]
        found: dict[str, Any] = llm.info()["quantization"]
    for i in range(1, len(ids)):
        wanted = float(expected[i - 1, ids[i]])
        assert abs(output.prompt_logprobs[i][ids[i]].logprob - wanted) <= TOLERANCE * max(1.0, abs(wanted)), i
    return found


@pytest.mark.parametrize(
    ("layout", "weights"),
    [
        ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}),
        ("pack-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}),
        ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}),
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}),
    ],
)
def test_compressed_tensors(layout: str, weights: dict[str, Any], tmp_path: Path) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    case = _case()
    model = make_model(case)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head"], format=layout, quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        groups = module.weight.data.reshape(
            module.weight.shape[0], -1, weights.get("group_size", module.weight.shape[1])
        )
        scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), module.quantization_scheme.weights)
        module.weight_scale.data.copy_(scale)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero_point)
    # Its modules compute with the rounded weights; logits are taken before they are packed.
    ids = prompt_ids(case)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(str(tmp_path))
    found = _check(tmp_path, lambda _: transformers.modeling_outputs.CausalLMOutput(logits=logits), ids)
    assert found["method"] == "compressed-tensors" and found["tensors"] == 14


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_bitsandbytes(kind: str, tmp_path: Path) -> None:
    import bitsandbytes as bnb

    case = _case()
    save(make_model(case), tmp_path / "float")
    values: dict[str, Any] = {"load_in_8bit": True}
    if kind != "int8":
        values = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": kind == "nf4"}
    quantized = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=transformers.BitsAndBytesConfig(**values), dtype=torch.float32,
        device_map="cpu",
    )  # fmt: skip
    # Its own kernels round activations (to bf16 or int8): a float model with the decoded weights is what counts.
    model = make_model(case)
    modules = dict(quantized.named_modules())
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(modules.get(name), "weight", None)
            if isinstance(weight, bnb.nn.Params4bit):
                module.weight.copy_(bnb.functional.dequantize_4bit(weight.data, weight.quant_state))
            elif isinstance(weight, bnb.nn.Int8Params):
                module.weight.copy_(bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB))
    quantized.save_pretrained(tmp_path / "quantized")
    found = _check(tmp_path / "quantized", model, prompt_ids(case))
    assert found["method"] == "bitsandbytes" and found["tensors"] == 14
