"""Quantized weights written by hand, one maker per format: parts as a checkpoint has them, and the values they define.

The values come from the packages that own the format, or from their arithmetic written out in torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fastllm.checkpoint import safetensors
from fastllm.checkpoint.config import Config
from fastllm.checkpoint.quantized import decode

Tensors = dict[str, torch.Tensor]


@dataclass
class Made:
    """`parts` by suffix of the module's name ("qweight", "weight.absmax", ...)."""

    config: dict[str, Any]
    parts: Tensors
    values: torch.Tensor  # float32 [N, K]
    suffix: str = "weight"
    extra: dict[str, Any] = field(default_factory=dict)


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pack(codes: torch.Tensor, bits: int, order: list[int] | None = None) -> torch.Tensor:
    """Codes along the last axis into int32 words; place i of a word holds code order[i]."""
    per_word = 32 // bits
    words = codes.to(torch.int64).reshape(*codes.shape[:-1], -1, per_word)
    order = order or list(range(per_word))
    packed = sum(words[..., order[i]] << (bits * i) for i in range(per_word))
    return (packed & 0xFFFFFFFF).to(torch.int64).numpy().astype(np.uint32).view(np.int32).reshape(packed.shape)  # type: ignore[union-attr]


def _int32(a: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))


def gptq(bits: int = 4, group: int = 32, sym: bool = False, act_order: bool = False, layout: str = "gptq",
         n: int = 24, k: int = 256, dtype: torch.dtype = torch.float16, seed: int = 0) -> Made:  # fmt: skip
    g = _rng(seed)
    size = k if group == -1 else group
    groups = k // size
    codes = torch.randint(0, 2**bits, (k, n), generator=g)
    # What is stored: the first layout cannot hold a zero of 0.
    low = 1 if layout == "gptq" else 0
    zeros = torch.randint(low, 2**bits, (groups, n), generator=g)
    if sym:
        zeros = torch.full_like(zeros, 2 ** (bits - 1))
    scales = (torch.rand((groups, n), generator=g) * 0.02 + 1e-3).to(dtype)
    g_idx = torch.arange(k) // size
    if act_order:
        g_idx = g_idx[torch.randperm(k, generator=g)]
    parts = {
        "qweight": _int32(pack(codes.T.contiguous(), bits).T),
        "qzeros": _int32(pack(zeros - low, bits)),
        "scales": scales,
        "g_idx": g_idx.to(torch.int32),
    }
    # AutoGPTQ: weight = scales[g_idx] * (weight - zeros[g_idx]); float32 holds the product exactly.
    values = scales[g_idx].float() * (codes - zeros[g_idx]).float()
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": act_order,
              "checkpoint_format": layout}  # fmt: skip
    return Made(config, parts, values.T.contiguous())


def awq(group: int = 32, n: int = 24, k: int = 128, seed: int = 0) -> Made:
    g = _rng(seed)
    groups = k // (k if group == -1 else group)
    codes = torch.randint(0, 16, (k, n), generator=g)
    zeros = torch.randint(0, 16, (groups, n), generator=g)
    scales = (torch.rand((groups, n), generator=g) * 0.02 + 1e-3).half()
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's order_map
    parts = {"qweight": _int32(pack(codes, 4, order)), "qzeros": _int32(pack(zeros, 4, order)), "scales": scales}
    rows = torch.arange(k) // (k // groups)
    values = (codes - zeros[rows]).float() * scales[rows].float()
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return Made(config, parts, values.T.contiguous())


def compressed_packed(bits: int = 4, group: int = 32, symmetric: bool = True, act_order: bool = False, n: int = 20,
                      k: int = 96, seed: int = 0) -> Made:  # fmt: skip
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    g = _rng(seed)
    groups = 1 if group == -1 else k // group
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (n, k), generator=g).to(torch.int8)
    scale = (torch.rand((n, groups), generator=g) * 0.02 + 1e-3).bfloat16()
    zero_point = torch.randint(low, high, (n, groups), generator=g).to(torch.int8)
    g_idx = (torch.arange(k) // (k // groups))[torch.randperm(k, generator=g)].to(torch.int32)
    strategy = "channel" if group == -1 else "group"
    args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy,
            "group_size": None if group == -1 else group}  # fmt: skip
    parts = {
        "weight_packed": pack_to_int32(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor([n, k]),
    }  # fmt: skip
    if not symmetric:
        parts["weight_zero_point"] = pack_to_int32(zero_point, bits, packed_dim=0).contiguous()
    if act_order:
        parts["weight_g_idx"] = g_idx
    if act_order:
        shifted = codes.to(scale.dtype) - (0 if symmetric else zero_point.to(scale.dtype)[:, g_idx])
        values = shifted * scale[:, g_idx]
    else:
        values = dequantize(codes, scale, None if symmetric else zero_point, QuantizationArgs(**args))
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
              "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}}}  # fmt: skip
    return Made(config, parts, values, extra={"dtype": torch.bfloat16})


def compressed_bytes(kind: str, strategy: str, symmetric: bool = True, n: int = 20, k: int = 96, seed: int = 0) -> Made:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    g = _rng(seed)
    shape = {"tensor": (1,), "channel": (n, 1), "group": (n, k // 32), "block": (-(-n // 8), -(-k // 32))}[strategy]
    scale = torch.rand(shape, generator=g) * 0.02 + 1e-3
    args: dict[str, Any] = {"num_bits": 8, "type": "int" if kind == "int" else "float", "symmetric": symmetric,
                            "strategy": strategy}  # fmt: skip
    if strategy == "group":
        args["group_size"] = 32
    if strategy == "block":
        args["block_structure"] = [8, 32]
    zero_point = torch.randint(-128, 128, shape, generator=g).to(torch.int8)
    if kind == "int":
        codes = torch.randint(-128, 128, (n, k), generator=g).to(torch.int8)
    else:
        codes = torch.randn((n, k), generator=g).to(torch.float8_e4m3fn)
    parts = {"weight": codes, "weight_scale": scale}
    if not symmetric:
        parts["weight_zero_point"] = zero_point
    values = dequantize(codes, scale, None if symmetric else zero_point, QuantizationArgs(**args))
    config = {"quant_method": "compressed-tensors", "format": f"{kind}-quantized",
              "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}}}  # fmt: skip
    return Made(config, parts, values)


def fp8(n: int = 200, k: int = 300, block: int = 128, seed: int = 0) -> Made:
    g = _rng(seed)
    codes = (torch.randn((n, k), generator=g) * 30).to(torch.float8_e4m3fn)
    scale = torch.rand((-(-n // block), -(-k // block)), generator=g) * 0.02 + 1e-3
    spread = scale.repeat_interleave(block, 0)[:n].repeat_interleave(block, 1)[:, :k]
    config = {"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"}
    return Made(config, {"weight": codes, "weight_scale_inv": scale}, codes.float() * spread)


def fp8_one_scale(n: int = 20, k: int = 30, seed: int = 0) -> Made:
    """As AutoFP8 saves it, with the scale of the activations beside it."""
    codes = (torch.randn((n, k), generator=_rng(seed)) * 30).to(torch.float8_e4m3fn)
    parts = {"weight": codes, "weight_scale": torch.tensor(0.0123), "input_scale": torch.tensor(0.5)}
    return Made({"quant_method": "fp8", "activation_scheme": "static"}, parts, codes.float() * parts["weight_scale"])


def bnb4(kind: str = "nf4", block: int = 64, nested: bool = False, n: int = 24, k: int = 128, seed: int = 0) -> Made:
    import bitsandbytes.functional as bnb

    weight = torch.randn((n, k), generator=_rng(seed))
    packed, state = bnb.quantize_4bit(weight, blocksize=block, compress_statistics=nested, quant_type=kind)
    parts = {"weight": packed} | {f"weight.{name}": t.contiguous() for name, t in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    if k % block == 0:
        values = bnb.dequantize_4bit(packed, state)
    else:  # the CPU kernel of bitsandbytes 0.50.2 begins a block with each row here, unlike its own quantizer
        codes = torch.stack([packed >> 4, packed & 15], -1).reshape(-1).long()
        values = (state.code[codes] * state.absmax.repeat_interleave(block)[: n * k]).reshape(n, k)
        assert (values - weight).abs().max() < 0.6
    return Made(config, parts, values)


def bnb8(n: int = 24, k: int = 100, seed: int = 0) -> Made:
    import bitsandbytes.functional as bnb

    weight = torch.randn((n, k), generator=_rng(seed)).half()
    codes, scb, _ = bnb.int8_vectorwise_quant(weight)
    parts = {"weight": codes, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Made({"quant_method": "bitsandbytes", "load_in_8bit": True}, parts, bnb.int8_vectorwise_dequant(codes, scb))


def mxfp4(experts: int = 3, n: int = 10, k: int = 96, seed: int = 0) -> Made:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    g = _rng(seed)
    blocks = torch.randint(0, 256, (experts, n, k // 32, 16), generator=g).to(torch.uint8)
    scales = torch.randint(110, 135, (experts, n, k // 32), generator=g).to(torch.uint8)
    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)  # [X, K, N]
    parts = {"x_blocks": blocks, "x_scales": scales}
    return Made({"quant_method": "mxfp4"}, parts, values.transpose(1, 2).contiguous(), suffix="x_blocks")


def decoded(made: Made, folder: Path, parts: Tensors | None = None) -> Any:
    """The QuantizedTensor of a file that holds the parts of one module."""
    path = folder / "model.safetensors"
    save_file({f"m.{name}": t.contiguous() for name, t in (made.parts if parts is None else parts).items()}, path)
    config = Config(json.loads(json.dumps({"quantization_config": made.config})), str(folder / "config.json"))
    tensors, _ = decode(config, safetensors.read(path))
    return tensors[f"m.{made.suffix}"]


def read_all(tensor: Any) -> np.ndarray:
    out = np.empty(tensor.num_elements, np.float32)
    tensor.read(0, out.data.cast("B"))
    return out.reshape(tensor.shape)
