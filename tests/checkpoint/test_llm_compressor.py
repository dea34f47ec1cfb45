"""Checkpoints that llm-compressor made load here and give the log-probabilities that transformers gives for them.

llm-compressor pulls in 2 GB, so it is no requirement of the tests: `pip install llmcompressor` to run this.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastllm import LLM, SamplingParams
from fastllm.demo import CALIBRATION_TEXT, DEMO_MODEL

llmcompressor = pytest.importorskip("llmcompressor", reason="llm-compressor is not installed")


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8_DYNAMIC"])
def test_log_probabilities_are_those_of_transformers(scheme, tmp_path):
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    llmcompressor.oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
    model.save_pretrained(tmp_path, save_compressed=True)
    ids = tokenizer(CALIBRATION_TEXT.read_text())["input_ids"][3000:3096]
    if scheme == "W4A16":
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    else:  # transformers rounds the activations of these, which is each engine's own: the weights by their definition
        model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
        tensors = load_file(tmp_path / "model.safetensors")
        for name in [name for name in tensors if name.endswith(".weight_scale")]:
            weight = name.removesuffix("_scale")
            model.get_parameter(weight).data = tensors[weight].float() * tensors[name].float()
    with torch.no_grad():
        all_logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    expected = all_logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
    with LLM(tmp_path, dtype="float32", activation_mode="f32", kv_cache_tokens=512, num_threads=1) as llm:
        output = llm.generate([ids], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))[0]
    found = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
