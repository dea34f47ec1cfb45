"""Moving scales between a matrix and what feeds it, so that it rounds better and the layer computes the same.

x W^T = (x / s) (W s)^T. The division is folded into what makes x: the weight of a norm, the rows of v (for o), or the
rows of up (for down). AWQ (Lin et al. 2023, arXiv:2306.00978) looks for the s = mean|x|^r with the smallest error of
the rounded weights; SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) takes s = max|x|^(1/2) / max|W|^(1/2), which
shares the outliers of activations between both sides.

Scales that go into a norm are taken back from the norm's weight as it is stored, so that its rounding loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastllm import _core
from fastllm.quantize.grid import encode, fit, group_size
from fastllm.quantize.layer import Layer
from fastllm.quantize.settings import Scheme
from fastllm.quantize.statistics import InputStats, output_error

RATIOS = tuple(i / 20 for i in range(20))
_SMALL = 1e-4


Key = tuple[str, int]  # slot, expert


@dataclass(slots=True)
class Pair:
    """Inputs x of the matrices `readers`, and how to divide x by scales [K].

    `stats_key`: the matrix whose inputs are x. `schemes`: of each reader; None for those that stay in float.
    `changes`: the slots that fold() divides.
    """

    stats_key: Key
    readers: list[Key]
    schemes: list[Scheme | None]
    fold: Callable[[Tensor], Tensor]  # divides, returns the scales that it really divided by
    changes: tuple[str, ...]
    tie: int = 1  # heads of a group share v: so many channels share a scale
    head_dim: int = 0


def matrix(layer: Layer, key: Key) -> Tensor:
    slot = layer.slots[key[0]]
    return slot[key[1]] if slot.dim() == 3 else slot


def _fold_norm(layer: Layer, name: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def fold(scales: Tensor) -> Tensor:
        offset = getattr(layer.spec, name).weight_offset
        old = layer.slots[name] + offset
        new = (old / scales - offset).to(dtype).float()
        real = old / (new + offset)
        is_usable = torch.isfinite(real) & (real > 0)
        layer.slots[name] = torch.where(is_usable, new, layer.slots[name])
        return torch.where(is_usable, real, torch.ones_like(real))

    return fold


def _fold_rows(rows: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    def fold(scales: Tensor) -> Tensor:
        rows.div_(scales.unsqueeze(1))
        if bias is not None:
            bias.div_(scales)
        return scales

    return fold


def pairs_of(
    layer: Layer, scheme_of: Callable[[str, int], Scheme | None], dtype_of: Callable[[str], torch.dtype]
) -> list[Pair]:
    """Those of one layer that something quantized reads, in the order in which they are folded. `dtype_of`: type in
    which a norm is stored."""
    spec, slots = layer.spec, layer.slots
    pairs: list[Pair] = []

    def add(stats_key: Key, readers: list[Key], fold: Callable[[Tensor], Tensor], *changes: str) -> None:
        pairs.append(Pair(stats_key, readers, [scheme_of(*key) for key in readers], fold, changes))

    def add_norm(name: str, stats_key: Key, readers: list[Key]) -> None:
        if getattr(spec, name) is not None:  # else the block reads the residual itself
            add(stats_key, readers, _fold_norm(layer, name, dtype_of(name)), name)

    def add_up(gate_up: str, down: str, expert: int, activation: object) -> None:
        # The input of down is a product with up, except where up is clamped first.
        if activation != _core.Activation.CLAMPED_SWIGLU:
            rows = matrix(layer, (gate_up, expert))
            add((down, expert), [(down, expert)], _fold_rows(rows[len(rows) // 2 :]), gate_up)

    moe = spec.moe
    experts = range(moe.num_experts) if moe is not None else range(0)
    has_shared = moe is not None and moe.shared_ffn_dim > 0
    add_norm("attention_norm", ("qkv", 0), [("qkv", 0)])
    if moe is None:
        add_norm("ffn_norm", ("gate_up", 0), [("gate_up", 0)])
    else:
        shared: list[Key] = [("shared.gate_up", 0), ("shared_gate", 0)] if has_shared else []
        add_norm("ffn_norm", ("router", 0), [("router", 0), *(("experts.gate_up", e) for e in experts), *shared])

    attention = spec.attention
    kv_dim = attention.num_kv_heads * attention.head_dim
    bias = slots["qkv_bias"][-kv_dim:] if "qkv_bias" in slots else None
    add(("o", 0), [("o", 0)], _fold_rows(slots["qkv"][-kv_dim:], bias), "qkv", "qkv_bias")
    pairs[-1].tie = attention.num_heads // attention.num_kv_heads
    pairs[-1].head_dim = attention.head_dim

    if moe is None:
        add_up("gate_up", "down", 0, spec.ffn.activation.kind)
    for expert in experts:
        add_up("experts.gate_up", "experts.down", expert, moe.activation.kind)
    if has_shared:
        add_up("shared.gate_up", "shared.down", 0, moe.activation.kind)
    return [pair for pair in pairs if any(pair.schemes)]


def apply(layer: Layer, pair: Pair, scales: Tensor) -> Tensor:
    """Folds scales [K] of x in; returns the real ones, in the same form."""
    if pair.tie == 1:
        real = pair.fold(scales)
    else:
        heads = scales.reshape(-1, pair.tie, pair.head_dim)[:, 0]
        real = pair.fold(heads.reshape(-1)).reshape(-1, 1, pair.head_dim).expand(-1, pair.tie, -1).reshape(-1)
    for key in pair.readers:
        matrix(layer, key).mul_(real)
    return real


def _tied(values: Tensor, pair: Pair) -> Tensor:
    """The largest of the channels that share a scale, in the place of each."""
    if pair.tie == 1:
        return values
    heads = values.reshape(-1, pair.tie, pair.head_dim)
    return heads.amax(1, keepdim=True).expand_as(heads).reshape(-1)


def _centred(scales: Tensor) -> Tensor:
    scales = scales.clamp(min=_SMALL)
    return scales / (scales.max() * scales.min()).sqrt()


def awq_scales(layer: Layer, pair: Pair, stats: InputStats, scale_dtype: torch.dtype) -> Tensor | None:
    """None: no scales are better than none."""
    size = _tied(stats.abs_sum / max(stats.count, 1), pair)
    readers = zip(pair.readers, pair.schemes, strict=True)
    quantized = [(matrix(layer, key), scheme) for key, scheme in readers if scheme is not None]
    if not bool((size > 0).any()):
        return None
    best: tuple[float, Tensor] | None = None
    for ratio in RATIOS:
        scales = _centred(size.clamp(min=_SMALL * float(size.max())).pow(ratio))
        error = sum(_rounding_error(reader, scheme, scales, stats.gram, scale_dtype) for reader, scheme in quantized)
        if best is None or error < best[0]:
            best = error, scales
    assert best is not None
    return best[1]


def _rounding_error(weights: Tensor, scheme: Scheme, scales: Tensor, gram: Tensor, scale_dtype: torch.dtype) -> float:
    scaled = weights * scales
    groups = scaled.reshape(len(weights), -1, group_size(scheme, weights.shape[1]))
    scale, zero = fit(groups, scheme, scale_dtype)
    rounded = (encode(groups, scale, zero, scheme.bits) - zero) * scale
    return output_error(rounded.reshape(weights.shape) / scales - weights, gram)


def smooth_scales(layer: Layer, pair: Pair, stats: InputStats) -> Tensor:
    readers = zip(pair.readers, pair.schemes, strict=True)
    quantized = [matrix(layer, key) for key, scheme in readers if scheme is not None]
    weight = torch.stack([reader.abs().amax(0) for reader in quantized]).amax(0)
    x, w = (_tied(values, pair).clamp(min=1e-5) for values in (stats.abs_max, weight))
    return (x / w).sqrt().clamp(1e-3, 1e3)
