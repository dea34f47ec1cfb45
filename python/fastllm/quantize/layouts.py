"""Quantized matrices as the tensors of published formats, and the quantization_config that says so.

gptq                qweight [K / f, N], f = 32 / bits codes of consecutive columns in a word; qzeros [G, N / f] holds
                    zero - 1; scales [G, N] float16; g_idx [K]
awq                 qweight [K, N / 8] and qzeros [G, N / 8] with eight rows in a word, order 0 2 4 6 1 3 5 7;
                    scales [G, N] float16
compressed-tensors  pack-quantized: weight_packed [N, K / f], weight_scale [N, G], weight_zero_point [N / f, G],
                    weight_shape, weight_g_idx; int-quantized (with activations, W8A8): weight [N, K] int8,
                    weight_scale [N, 1]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastllm.errors import InvalidRequestError
from fastllm.quantize.grid import Codes
from fastllm.quantize.settings import Scheme, Settings
from fastllm.quantize.source import Module

_CODES_AT_ONCE = 1 << 20  # a head has hundreds of millions
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def scale_dtype(settings: Settings, model_dtype: torch.dtype) -> torch.dtype:
    """float16 where the format's kernels want it, and where it is finer: bfloat16 has 8 bits."""
    if settings.layout == "compressed-tensors" and model_dtype != torch.float32:
        return model_dtype
    return torch.float16


def check_shape(module: Module, scheme: Scheme, settings: Settings) -> None:
    """Raises InvalidRequestError if the format cannot hold a matrix of this shape."""
    hint = f"leave it in float with an override, '{module.name}=none'"
    if scheme.group != -1 and module.num_cols % scheme.group != 0:
        raise InvalidRequestError(
            f"{module.name}: group {scheme.group} does not divide its {module.num_cols} columns; choose another, or "
            f"{hint}"
        )
    per_word = 32 // scheme.bits
    if settings.layout != "compressed-tensors" and (module.num_rows % per_word or module.num_cols % per_word):
        raise InvalidRequestError(
            f"{module.name}: [{module.num_rows}, {module.num_cols}] are not multiples of {per_word}, which the "
            f"{settings.layout} format needs; use compressed-tensors, or {hint}"
        )


def pack(codes: Tensor, bits: int, order: Sequence[int] | None = None) -> Tensor:
    """Codes [N, K] along the last axis into int32 words, filled up with zeros. Place i of a word: code order[i]."""
    per_word = 32 // bits
    num_rows, num_cols = codes.shape
    num_words = -(-num_cols // per_word)
    out = torch.zeros(num_rows, num_words, dtype=torch.int32, device=codes.device)
    step = max(1, _CODES_AT_ONCE // num_cols)
    for begin in range(0, num_rows, step):
        rows = slice(begin, begin + step)
        padded = torch.nn.functional.pad(codes[rows].to(torch.int32), (0, num_words * per_word - num_cols))
        words = padded.reshape(-1, num_words, per_word)
        for place, i in enumerate(order or range(per_word)):
            out[rows] |= words[..., i] << (bits * place)
    return out


def tensors_of(name: str, found: Codes, settings: Settings) -> dict[str, Tensor]:
    """The tensors of one module, by their names in the checkpoint."""
    if settings.layout == "gptq":
        parts = _gptq(found)
    elif settings.layout == "awq":
        parts = _awq(found)
    else:
        parts = _compressed(found, settings.quantizes_activations)
    return {f"{name}.{part}": tensor.contiguous().cpu() for part, tensor in parts.items()}


def _gptq(found: Codes) -> dict[str, Tensor]:
    bits, num_cols = found.scheme.bits, found.codes.shape[1]
    group_of = found.group_of
    if group_of is None:
        group_of = torch.arange(num_cols, dtype=torch.int32) // (num_cols // found.scales.shape[1])
    return {
        "qweight": pack(found.codes, bits).T,
        "qzeros": pack(found.zeros.T - 1, bits),
        "scales": found.scales.T.to(found.scale_dtype),
        "g_idx": group_of,
    }


def _awq(found: Codes) -> dict[str, Tensor]:
    return {
        "qweight": pack(found.codes.T, 4, AWQ_ORDER),
        "qzeros": pack(found.zeros.T, 4, AWQ_ORDER),
        "scales": found.scales.T.to(found.scale_dtype),
    }


def _compressed(found: Codes, quantizes_activations: bool) -> dict[str, Tensor]:
    scales = found.scales.to(found.scale_dtype)
    if quantizes_activations:
        return {"weight": (found.codes ^ 128).view(torch.int8), "weight_scale": scales}
    parts = {
        "weight_packed": pack(found.codes, found.scheme.bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(found.codes.shape, dtype=torch.int64),
    }
    if not found.scheme.symmetric:
        parts["weight_zero_point"] = pack(found.zeros.T, found.scheme.bits).T
    if found.group_of is not None:
        parts["weight_g_idx"] = found.group_of
    return parts


def config_of(
    settings: Settings, schemes: Mapping[str, Scheme | None], kept: list[str], also_kept: list[str], ordered: bool
) -> dict[str, Any]:
    """quantization_config for modules with these schemes, and for linear layers `kept` in float; `also_kept`: regular
    expressions for their other names. `ordered`: g_idx is not k // group."""
    if settings.layout == "gptq":
        config: dict[str, Any] = {
            "quant_method": "gptq", "bits": settings.bits, "group_size": settings.group, "sym": settings.symmetric,
            "desc_act": ordered, "damp_percent": settings.damp, "checkpoint_format": "gptq",
            "lm_head": any(is_head(name) and scheme is not None for name, scheme in schemes.items()),
        }  # fmt: skip
        inner = [name for name in kept if not is_head(name)]
        if inner:
            config["dynamic"] = {f"-:^{_escaped(name)}$": {} for name in inner}
        return config
    if settings.layout == "awq":
        return {
            "quant_method": "awq", "bits": 4, "group_size": settings.group, "zero_point": not settings.symmetric,
            "version": "gemm", "modules_to_not_convert": kept,
        }  # fmt: skip
    usual = Scheme(settings.bits, settings.group, settings.symmetric)
    by_scheme: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        if scheme is not None and scheme != usual:
            by_scheme.setdefault(scheme, []).append(name)
    groups: dict[str, Any] = {"group_0": _group(["Linear"], usual, settings)}
    for i, (scheme, names) in enumerate(by_scheme.items(), start=1):
        groups[f"group_{i}"] = _group([f"re:^{_escaped(name)}$" for name in sorted(names)], scheme, settings)
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if settings.quantizes_activations else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [*kept, *(f"re:^{pattern}$" for pattern in also_kept)],
        "config_groups": groups,
    }


def is_head(name: str) -> bool:
    return name.rpartition(".")[2] == "lm_head"


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def _group(targets: list[str], scheme: Scheme, settings: Settings) -> dict[str, Any]:
    weights: dict[str, Any] = {
        "num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, "dynamic": False,
        "strategy": "channel" if scheme.group == -1 else "group",
        "group_size": None if scheme.group == -1 else scheme.group,
    }  # fmt: skip
    if settings.act_order == "group" and settings.method == "gptq" and scheme.group != -1:
        weights["actorder"] = "group"
    activations = None
    if settings.quantizes_activations:
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {"targets": targets, "weights": weights, "input_activations": activations}
