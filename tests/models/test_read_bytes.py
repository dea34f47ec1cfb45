"""What steps must read is counted exactly: tokens of each expert, weights in use, K/V of contexts and windows."""

import json
import time

import numpy as np
import pytest

from fastllm import LLM, SamplingParams

SMALL = {
    "vocab_size": 263, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "hidden_act": "silu", "rope_theta": 1e4,
}  # fmt: skip
MIXTRAL = {**SMALL, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 5,
           "num_experts_per_tok": 2, "sliding_window": None}  # fmt: skip
SPARSE = {**SMALL, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 7,
          "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True, "mlp_only_layers": [1],
          "decoder_sparse_step": 1, "head_dim": 16}  # fmt: skip
WINDOWED = {**SMALL, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 13}

PROMPTS = [[1, *range(5, 5 + length)] for length in (3, 30, 17)]
NUM_OUT = 9
# The last token of an answer is never fed.
NUM_FED = sum(map(len, PROMPTS)) + len(PROMPTS) * (NUM_OUT - 1)


def run(tmp_path, config, device="cpu", **options):
    """(counters, expert_use, bytes of each matrix, bytes of a token's K/V in all layers)."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = {"max_model_len": 128, "max_num_seqs": 4, "kv_cache_tokens": 1024, "max_num_batched_tokens": 128,
               **options}  # fmt: skip
    with LLM(str(tmp_path), load_format="dummy", skip_tokenizer_init=True, device=device,
             enable_prefix_caching=False, **options) as llm:  # fmt: skip
        params = SamplingParams(temperature=0, max_tokens=NUM_OUT, ignore_eos=True, detokenize=False)
        llm.generate(PROMPTS, params)
        while llm.info()["engine"]["num_running"]:
            time.sleep(0.001)
        matrices = llm._runtime._native.matrix_bytes()
        return llm.info()["engine"], llm.expert_use(), matrices, llm.work_per_token().kv_bytes


@pytest.mark.parametrize("device", ["reference", "cpu", "cuda:emulated"])
@pytest.mark.parametrize("chunk", [128, 8])
def test_every_token_counts_for_the_experts_that_it_chose(tmp_path, device, chunk):
    stats, use, _, _ = run(tmp_path, SPARSE, device, max_num_batched_tokens=chunk)
    tokens, reads = use[..., 0], use[..., 1]
    assert use.shape == (3, 7, 2) and not use[1].any()
    of_layers = tokens.sum(axis=1)[[0, 2]]
    if device == "cuda:emulated":  # rows that pad a recorded step count too
        assert (of_layers >= 3 * NUM_FED).all()
    else:
        assert of_layers.tolist() == [3 * NUM_FED] * 2
    assert (reads <= np.minimum(tokens, stats["num_steps"])).all() and ((reads > 0) == (tokens > 0)).all()


def test_of_experts_only_those_that_were_chosen_are_read(tmp_path):
    stats, use, matrices, kv = run(tmp_path, MIXTRAL)
    expected = stats["num_steps"] * (matrices["lm_head"] + of_layers(matrices))
    for i in range(3):
        expert = sum(matrices[f"layers.{i}.experts.{name}"] for name in ("gate_up", "down")) / 5
        expected += use[i, :, 1].sum() * expert
    contexts = sum(len(prompt) + i for prompt in PROMPTS for i in range(NUM_OUT))
    assert use[..., 1].sum() < stats["num_steps"] * 3 * 5
    assert stats["read_bytes"] == pytest.approx(expected + contexts * kv, rel=1e-12)


def test_of_a_window_only_what_is_in_it_is_read(tmp_path):
    stats, use, matrices, kv = run(tmp_path, WINDOWED)
    assert use.shape == (0, 0, 2)
    contexts = sum(map(len, PROMPTS)) + sum(min(len(p) + i, 13) for p in PROMPTS for i in range(1, NUM_OUT))
    expected = stats["num_steps"] * (matrices["lm_head"] + of_layers(matrices)) + contexts * kv
    assert stats["read_bytes"] == pytest.approx(expected, rel=1e-12)


def of_layers(matrices):
    """Without experts."""
    return sum(size for name, size in matrices.items() if name.startswith("layers.") and ".experts." not in name)


# Products of a token of SPARSE: qkv and o; three experts in two layers, dense in one; routers; head.
ATTENTION, FFN, ROUTERS, HEAD = (
    3 * 2 * (128 + 64) * 64,
    2 * (2 * 3 * 3 * 64 * 32 + 3 * 64 * 48),
    2 * 2 * 7 * 64,
    2 * 263 * 64,
)


@pytest.mark.parametrize(
    "options, layers, head, pairs",
    [
        ({"dtype": "float32"}, {"float32": ATTENTION + FFN + ROUTERS}, "float32", "float32"),
        ({"dtype": "bfloat16"}, {"bfloat16": ATTENTION + FFN, "float32": ROUTERS}, "bfloat16", "bfloat16"),
        ({"quantization": "int8"}, {"int8": ATTENTION + FFN, "float32": ROUTERS}, "int8", "bfloat16"),
        (
            {"quantization": "int4", "activation_mode": {"*.qkv": "a15", "*.o": "a15", "lm_head": "f32", "*": "a8"},
             "kv_cache_dtype": "float16"},
            {"int8x2": ATTENTION, "int8": FFN, "float32": ROUTERS}, "float32", "float32",
        ),
    ],
    ids=["float32", "bfloat16", "int8", "modes"],
)  # fmt: skip
def test_operations_are_counted_by_the_arithmetic_that_they_run_in(tmp_path, options, layers, head, pairs):
    (tmp_path / "config.json").write_text(json.dumps({**SPARSE, "torch_dtype": "bfloat16"}))
    with LLM(str(tmp_path), load_format="dummy", skip_tokenizer_init=True, device="cpu", kv_cache_tokens=256,
             **options) as llm:  # fmt: skip
        work, matrices = llm.work_per_token(), llm._runtime._native.matrix_bytes()
    assert work.layer_ops == layers and work.head_ops == {head: HEAD}
    assert work.pair_ops == {pairs: 3 * 4 * 4 * 16}  # q . k and p * v, of 4 heads of 16
    experts = sum(size for name, size in matrices.items() if ".experts." in name)
    assert work.weight_bytes == pytest.approx(of_layers(matrices) + matrices["lm_head"] + experts * 3 / 7, rel=1e-12)


def test_the_bandwidth_is_that_of_reading_the_weights():
    with LLM(max_model_len=64, kv_cache_tokens=128) as llm:
        assert llm.measure_read_bandwidth() > 1e8
    with LLM(max_model_len=64, kv_cache_tokens=128, device="cuda:emulated") as llm:
        assert llm.measure_read_bandwidth() is None  # its memory is not this machine's
