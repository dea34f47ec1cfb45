"""Whole models: a quantized folder gives the bits of the folder with its decoded values; damaged ones are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantized_files as files
import torch
from quantized_files import Made, Tensors
from safetensors.torch import save_file

import fastllm
from fastllm.checkpoint.loader import load
from fastllm.errors import CheckpointError, UnsupportedModelError

E, F, V, D = 64, 96, 32, 16
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": E, "intermediate_size": F, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": V, "max_position_embeddings": 64,
    "torch_dtype": "float32",
}  # fmt: skip
LINEAR = {
    "self_attn.q_proj": (4 * D, E), "self_attn.k_proj": (2 * D, E), "self_attn.v_proj": (2 * D, E),
    "self_attn.o_proj": (E, 4 * D), "mlp.gate_proj": (F, E), "mlp.up_proj": (F, E), "mlp.down_proj": (E, F),
}  # fmt: skip
MAKERS: dict[str, Callable[..., Made]] = {
    "gptq": lambda n, k, seed: files.gptq(n=n, k=k, seed=seed, act_order=True),
    "awq": lambda n, k, seed: files.awq(n=n, k=k, seed=seed),
    "compressed packed": lambda n, k, seed: files.compressed_packed(n=n, k=k, seed=seed, symmetric=False),
    "compressed int8": lambda n, k, seed: files.compressed_bytes("int", "channel", n=n, k=k, seed=seed),
    "compressed fp8": lambda n, k, seed: files.compressed_bytes("float", "tensor", n=n, k=k, seed=seed),
    "fp8": lambda n, k, seed: files.fp8(n, k, 32, seed),
    "bitsandbytes nf4": lambda n, k, seed: files.bnb4(nested=True, n=n, k=k, seed=seed) if k % 64 == 0 else
    files.bnb4(block=32, nested=True, n=n, k=k, seed=seed),
    "bitsandbytes int8": lambda n, k, seed: files.bnb8(n, k, seed),
}  # fmt: skip


def _floats() -> Tensors:
    """What stays unquantized: embedding, head, norms, and the attention of the last layer."""
    g = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn((V, E), generator=g) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    tensors["model.norm.weight"] = torch.ones(E)
    for i in range(2):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = torch.ones(E)
    for name, shape in LINEAR.items():
        if name.startswith("self_attn"):
            tensors[f"model.layers.1.{name}.weight"] = torch.randn(shape, generator=g) * 0.1
    return tensors


def _write(folder: Path, make: Callable[..., Made], parts: bool = True) -> Path:
    folder.mkdir()
    tensors = _floats()
    config = dict(CONFIG)
    for seed, (i, (name, (n, k))) in enumerate((i, item) for i in range(2) for item in LINEAR.items()):
        module = f"model.layers.{i}.{name}."
        if f"{module}weight" in tensors:
            continue
        made = make(n, k, seed)
        config["quantization_config"] = made.config
        tensors |= {module + suffix: t for suffix, t in made.parts.items()} if parts else {
            f"{module}weight": made.values.float()
        }  # fmt: skip
    if not parts:
        del config["quantization_config"]
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _logprobs(folder: Path, num_threads: int) -> tuple[list[float], Any]:
    params = fastllm.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=0)
    # Activations as they are: what is compared is the weights.
    options = {"dtype": "float32", "activation_mode": "f32", "max_num_seqs": 2, "kv_cache_tokens": 256}
    with fastllm.LLM(str(folder), num_threads=num_threads, **options) as llm:
        output = llm.generate([[1, 2, 3]], params)[0].outputs[0]
        return [entry[t].logprob for t, entry in zip(output.token_ids, output.logprobs, strict=True)], llm.info()


# What becomes of the linear weights, and of how many tensors and why not.
HELD: dict[str, tuple[str, dict[str, int]]] = {
    "gptq": ("float32", {"act-order": 10}),
    "awq": ("int4 g32, zeros", {}),
    "compressed packed": ("int4 g32, zeros", {}),
    "compressed int8": ("int8 row", {}),
    "bitsandbytes int8": ("float32", {"its scale is rounded twice": 10}),
}
FLOATS = ("float32", {"its codes are no integers": 10})


@pytest.mark.parametrize("name", MAKERS)
def test_model_gives_the_logprobs_of_its_decoded_values(name: str, tmp_path: Path) -> None:
    expected, plain = _logprobs(_write(tmp_path / "plain", MAKERS[name], parts=False), 1)
    got, info = _logprobs(_write(tmp_path / "quantized", MAKERS[name]), 2)
    if "packed" in name:  # the package rounds the values to the type of the scales, bf16
        assert got == pytest.approx(expected, abs=0.05)
    elif info["quantization"]["matrices_kept_packed"]:
        assert got == pytest.approx(expected, abs=2e-5)  # the same weights, other orders of sums
    else:
        assert got == expected
    assert plain["quantization"] is None
    found, held = info["quantization"], info["weights"]
    kind, decoded = HELD.get(name, FLOATS)
    assert found["tensors"] == 2 * len(LINEAR) - 4 and found["tensors_decoded"] == decoded
    assert held.keys() == {"float32", "vectors", kind} and sum(held.values()) == info["memory"]["weight_bytes"]
    assert sum(held.values()) <= sum(plain["weights"].values())


@pytest.mark.parametrize(("strategy", "held"), [("tensor", "fp8 row"), ("block", "fp8 g32")])
def test_fp8_stays_packed_on_cuda(strategy: str, held: str, tmp_path: Path) -> None:
    """Scales are powers of two, so that the decoded values are exact in bfloat16: the same weights, other sums. With
    activations in fp8 results are near that; so near that nothing but them was rounded, and not the same."""

    def make(n: int, k: int, seed: int) -> Made:
        made = files.compressed_bytes("float", strategy, n=n, k=k, seed=seed)
        scale = made.parts["weight_scale"].log2().floor().exp2()
        rows, columns = (8, 32) if strategy == "block" else (n, k)
        spread = scale.reshape(-(-n // rows), -(-k // columns)).repeat_interleave(rows, 0)[:n]
        values = made.parts["weight"].float() * spread.repeat_interleave(columns, 1)[:, :k]
        return Made(made.config, made.parts | {"weight_scale": scale}, values)

    params = fastllm.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, prompt_logprobs=0)
    ids = [1, 2, 3, 7, 11, 13]
    found = []
    for parts, mode in ((False, "auto"), (True, "fp8"), (True, "auto")):
        folder = tmp_path / f"{parts}"
        if not folder.exists():
            _write(folder, make, parts=parts)
        options = {"device": "cuda:emulated", "dtype": "bfloat16", "max_num_seqs": 2, "kv_cache_tokens": 256}
        options["activation_mode"] = mode
        with fastllm.LLM(str(folder), **options) as llm:
            output, info = llm.generate([ids], params)[0], llm.info()
        found.append([output.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))])
        if parts:
            assert info["activation_mode"] == ("fp8" if mode == "fp8" else "bf16")
            assert info["weights"].keys() == {"bfloat16", "vectors", held}
            assert info["quantization"]["tensors_decoded"] == {}
    assert found[2] == pytest.approx(found[0], abs=2e-2)
    assert found[1] == pytest.approx(found[0], abs=0.3) and found[1] != found[2]
    with fastllm.LLM(str(folder), **{**options, "quantization": "int8"}) as llm:  # asked for: not kept
        assert not any(name.startswith("fp8") for name in llm.info()["weights"])


def test_bias_of_zeros_beside_a_quantized_weight_is_left_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = _write(tmp_path / "q", MAKERS["gptq"])
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.down_proj.bias"
    save_file({**tensors, name: torch.zeros(E)}, path)
    assert load(folder).ignored == [name]
    save_file({**tensors, name: torch.ones(E)}, path)
    with pytest.raises(CheckpointError, match=f"tensor {name} has no place"):
        load(folder)


def test_gpt_oss_in_mxfp4_is_the_transposed_float_model(tmp_path: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from checkpoints import CASES, make_config, make_model, save
    from safetensors.torch import load_file
    from stand_in import Weights

    case = next(case for case in CASES if case.name == "gpt-oss")
    case.values.update(hidden_size=64, intermediate_size=96)
    assert make_config(case).hidden_size == 64
    save(make_model(case), tmp_path / "float")
    tensors = load_file(tmp_path / "float" / "model.safetensors")
    quantized = dict(tensors)
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, cols, rows = tensors[name].shape
        made = files.mxfp4(experts, rows, cols, seed=len(name))
        tensors[name] = made.values.transpose(1, 2).contiguous()
        del quantized[name]
        quantized |= {name + suffix.removeprefix("x"): t for suffix, t in made.parts.items()}
    config = json.loads((tmp_path / "float" / "config.json").read_text())
    seen = []
    for folder, content, extra in (("a", tensors, {}), ("b", quantized, {"quantization_config": {
            "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}})):  # fmt: skip
        (tmp_path / folder).mkdir()
        save_file(content, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text(json.dumps({**config, **extra}))
        plan = load(tmp_path / folder)
        weights = Weights(plan.spec)
        plan.fill(weights, num_threads=2)
        seen.append(weights)
    for name, matrix in seen[0].matrices.items():
        assert (matrix == seen[1].matrices[name]).all(), name


# Damaged parts. An edit takes the parts of one module and the config; the message names what the pattern says.

Edit = Callable[[Tensors, dict[str, Any]], Any]


def _put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    def edit(parts: Tensors, config: dict[str, Any]) -> None:
        parts[name] = change(parts[name]).contiguous()

    return edit


def _poison(value: float, at: int = 3) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(t: torch.Tensor) -> torch.Tensor:
        t = t.clone()
        t.view(-1)[at if t.numel() > at else 0] = value
        return t

    return change


def _drop(name: str) -> Edit:
    return lambda parts, config: parts.pop(name)


def _configure(**values: Any) -> Edit:
    return lambda parts, config: config.update(values)


NAN, INF = float("nan"), float("inf")
STATE = "weight.quant_state.bitsandbytes__nf4"


def _state(**values: Any) -> Edit:
    def edit(parts: Tensors, config: dict[str, Any]) -> None:
        state = {**json.loads(bytes(parts[STATE].tolist())), **values}
        parts[STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return edit


BAD: list[tuple[str, str, Edit, str]] = [
    *[("gptq", f"bits {b}", _configure(bits=b), "bits") for b in (3, 0, -4, 5, 2**40, "4", None, NAN)],
    *[("gptq", f"group {g}", _configure(group_size=g), "group_size") for g in (0, -2, 48, 2**40, "32", 1.5)],
    ("gptq", "layout", _configure(checkpoint_format="marlin"), "checkpoint_format"),
    ("gptq", "desc_act", _configure(desc_act="yes"), "desc_act"),
    *[("gptq", f"no {n}", _drop(n), f"m.{n} is missing") for n in ("qzeros", "scales")],
    ("gptq", "no g_idx", lambda p, c: (p.pop("g_idx"), c.update(desc_act=True)), "m.g_idx is missing"),
    ("gptq", "no qweight", _drop("qweight"), "no tensor is quantized"),
    *[("gptq", f"{n} cut", _put(n, lambda t: t[:-1]), f"m.{n}: shape") for n in ("qzeros", "scales", "g_idx")],
    ("gptq", "qweight cut", _put("qweight", lambda t: t[:-1]), r"m.qweight: group_size = 32 does not divide"),
    ("gptq", "qweight flat", _put("qweight", lambda t: t.reshape(-1)), "m.qweight: shape"),
    ("gptq", "qweight empty", _put("qweight", lambda t: t[:0]), "m.qweight: shape"),
    ("gptq", "qweight as int64", _put("qweight", lambda t: t.long()), "m.qweight: dtype"),
    ("gptq", "scales as ints", _put("scales", lambda t: t.int()), "m.scales: dtype"),
    *[("gptq", f"scale {v}", _put("scales", _poison(v)), "m.scales: element 3 is") for v in (NAN, INF, -INF)],
    *[("gptq", f"g_idx {v}", _put("g_idx", _poison(v)), "m.g_idx: element 3 is") for v in (-1, 8, 2**31 - 1)],
    *[("awq", f"bits {b}", _configure(bits=b), "bits is") for b in (8, 0, "4")],
    *[("awq", f"group {g}", _configure(group_size=g), "group_size") for g in (0, 48, -7)],
    ("awq", "layout", _configure(version="gemv"), "version"),
    *[("awq", f"no {n}", _drop(n), f"m.{n} is missing") for n in ("qzeros", "scales")],
    *[("awq", f"{n} cut", _put(n, lambda t: t[:, :-1]), "shape") for n in ("qweight", "qzeros", "scales")],
    ("awq", "scale", _put("scales", _poison(NAN)), "m.scales: element 3 is nan"),
    ("packed", "format", _configure(format="marlin-24"), "format"),
    ("packed", "format number", _configure(format=7), "format"),
    *[("packed", f"no {n}", _drop(n), f"m.{n} is missing") for n in ("weight_scale", "weight_shape")],
    *[("packed", f"true shape {s}", _put("weight_shape", lambda t, s=s: torch.tensor(s)), "weight_shape")
      for s in ([20, 0], [20, 97], [21, 96], [-20, 96], [20, 2**62], [20, 96, 1])],
    ("packed", "scale shape", _put("weight_scale", lambda t: t[:, :2]), "m.weight_(scale|zero_point)"),
    ("packed", "scale groups", _put("weight_scale", lambda t: torch.cat([t, t, t], 1)[:, :7]), "m.weight_scale: shape"),
    ("packed", "zero shape", _put("weight_zero_point", lambda t: t[:-1]), "m.weight_zero_point: shape"),
    ("packed", "scale", _put("weight_scale", _poison(INF)), "m.weight_scale: element 3 is inf"),
    ("packed", "g_idx", _put("weight_g_idx", _poison(99)), "m.weight: group index of column 3 is 99"),
    ("int8", "no scale", _drop("weight_scale"), "m.weight_scale is missing"),
    ("int8", "scale shape", _put("weight_scale", lambda t: t[:-1]), "m.weight_scale: shape"),
    ("int8", "scale", _put("weight_scale", _poison(NAN)), "m.weight_scale: element 3 is nan"),
    ("int8", "weight dtype", _put("weight", lambda t: t.short()), "m.weight: dtype is I16"),
    ("fp8", "no scale", _drop("weight_scale_inv"), "weight_scale_inv is missing|no tensor is quantized"),
    ("fp8", "scale shape", _put("weight_scale_inv", lambda t: t[:-1]), "m.weight_scale_inv: shape"),
    ("fp8", "scale", _put("weight_scale_inv", _poison(INF)), "m.weight_scale_inv: element 3 is inf"),
    ("fp8", "NaN", _put("weight", lambda t: _poison(127)(t.view(torch.uint8)).view(t.dtype)), "m.weight: holds NaN"),
    *[("fp8", f"block {b}", _configure(weight_block_size=b), "weight_block_size") for b in (7, [0, 1], [1], ["a", 1])],
    *[("nf4", f"no {n}", _drop(f"weight.{n}"), f"m.weight.{n} is missing|absmax") for n in
      ("absmax", "quant_map", "nested_absmax", "nested_quant_map")],
    ("nf4", "no state", _drop(STATE), "no tensor is quantized|are missing"),
    ("nf4", "state no JSON", _put(STATE, lambda t: t[:-1]), "quant_state.*JSON"),
    *[("nf4", f"shape {s}", _state(shape=s), "shape|half a byte") for s in
      ([24, 129], [24], [-24, -128], [2**31, 2**31], "x", None, [24.0, 128])],
    *[("nf4", f"blocksize {s}", _state(blocksize=s), "blocksize|blocks") for s in (0, -64, 32, 2**40, "64")],
    *[("nf4", f"nested blocksize {s}", _state(nested_blocksize=s), "nested_") for s in (0, 1, "x")],
    *[("nf4", f"offset {s}", _state(nested_offset=s), "nested_offset") for s in (NAN, INF, "x", None)],
    ("nf4", "type", _state(quant_type="fp4"), "quant_type"),
    ("nf4", "absmax that overflows", lambda p, c: (
        p["weight.nested_absmax"].fill_(3e38), p["weight.nested_quant_map"].fill_(10.0)), "absmax: with its second"),
    ("nf4", "map", _put("weight.quant_map", _poison(NAN)), "quant_map: element 3 is nan"),
    ("nf4", "weight cut", _put("weight", lambda t: t[:-1]), "m.weight: has"),
    ("bnb8", "no SCB", _drop("SCB"), "no tensor is quantized|are missing"),
    ("bnb8", "SCB cut", _put("SCB", lambda t: t[:-1]), "m.SCB: shape"),
    ("bnb8", "SCB", _put("SCB", _poison(NAN)), "m.SCB: element 3 is nan"),
    ("mxfp4", "no scales", _drop("x_scales"), "m.x_scales is missing"),
    ("mxfp4", "scales cut", _put("x_scales", lambda t: t[:-1]), "m.x_scales: shape"),
    ("mxfp4", "blocks of 15", _put("x_blocks", lambda t: t[..., :-1]), "m.x_blocks: shape"),
    ("mxfp4", "blocks flat", _put("x_blocks", lambda t: t.reshape(-1)), "m.x_blocks: shape"),
    ("mxfp4", "scale NaN", _put("x_scales", _poison(255)), "m.x_blocks: a scale is NaN"),
]  # fmt: skip
GOOD: dict[str, Callable[[], Made]] = {
    "gptq": files.gptq, "awq": files.awq, "int8": lambda: files.compressed_bytes("int", "channel"),
    "packed": lambda: files.compressed_packed(symmetric=False, act_order=True), "fp8": lambda: files.fp8(block=64),
    "nf4": lambda: files.bnb4(nested=True), "bnb8": files.bnb8, "mxfp4": files.mxfp4,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "what", "edit", "pattern"), BAD, ids=[f"{b[0]}: {b[1]}" for b in BAD])
def test_damaged_parts_are_refused_by_name(kind: str, what: str, edit: Edit, pattern: str, tmp_path: Path) -> None:
    made = GOOD[kind]()
    edit(made.parts, made.config)
    with pytest.raises((CheckpointError, UnsupportedModelError)) as info:
        files.read_all(files.decoded(made, tmp_path))
    message = str(info.value)
    assert re.search(pattern, message) and str(tmp_path) in message, message


def test_unknown_method_names_those_that_are_supported(tmp_path: Path) -> None:
    made = files.gptq()
    made.config["quant_method"] = "aqlm"
    with pytest.raises(UnsupportedModelError, match=r"'aqlm'; supported are gptq, awq, compressed-tensors, fp8, bits"):
        files.decoded(made, tmp_path)
