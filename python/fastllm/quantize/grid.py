"""The grid that weights are rounded to, and round-to-nearest with a search for the best clipping.

W[n, k] ~ (code[n, k] - zero[n, g]) * scale[n, g], codes 0 .. 2^bits - 1, g = k // group. Scales are rounded to the type
in which they are stored before anything is rounded to them, so that codes and stored scales belong together.
Zeros are 1 .. 2^bits - 1: every layout can store these (the first GPTQ layout stores zero - 1).

LLM(quantization=...) has a search of its own, in csrc/ops/quantize_rows.cpp. It rounds as fast as weights are read, for
the packed formats of the kernels: zeros from 0, the groups of those formats, the error of the weights alone. This one
is shared by the methods: errors through the inputs' Gram matrix, zeros from 1, any group. Of normal weights the mean
squared errors of the two are within 2 % of each other (4 and 8 bits, groups of 32 and 128), either way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastllm.errors import CheckpointError
from fastllm.quantize.settings import Scheme

# Shares of the largest magnitude that are tried as the border of the grid.
CLIPS = tuple(1.0 - 0.04 * i for i in range(11))
SMALLEST_SCALE = 2.0**-24  # the smallest float16
_ROWS_AT_ONCE = 1 << 18  # elements: temporaries stay in the cache


@dataclass(slots=True)
class Codes:
    """A quantized matrix [N, K] with G groups."""

    scheme: Scheme
    codes: Tensor  # uint8 [N, K]
    scales: Tensor  # float32 [N, G], exact in scale_dtype
    zeros: Tensor  # uint8 [N, G]
    scale_dtype: torch.dtype
    group_of: Tensor | None = None  # int32 [K], where it is not k // group

    def values(self) -> Tensor:
        """What a reader makes of it, float32 [N, K]."""
        num_cols = self.codes.shape[1]
        if self.group_of is not None:
            index = self.group_of.long()
        else:
            index = torch.arange(num_cols, device=self.codes.device) // (num_cols // self.scales.shape[1])
        return (self.codes.float() - self.zeros.float()[:, index]) * self.scales[:, index]


def group_size(scheme: Scheme, num_cols: int) -> int:
    return num_cols if scheme.group == -1 else scheme.group


def fit(groups: Tensor, scheme: Scheme, scale_dtype: torch.dtype, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    """(scales, zeros), float32 [..., 1], for weights [..., group] clipped to `clip` of their range."""
    levels = 2**scheme.bits - 1
    middle = 2.0 ** (scheme.bits - 1)
    if scheme.symmetric:
        spread = 2.0 * groups.abs().amax(-1, keepdim=True)
    else:
        low, high = groups.amin(-1, keepdim=True).clamp(max=0.0), groups.amax(-1, keepdim=True).clamp(min=0.0)
        spread = high - low
    scales = (spread * (clip / levels)).to(scale_dtype).float()
    scales = torch.where(spread > 0, scales.clamp(min=SMALLEST_SCALE), torch.ones_like(scales))
    if scheme.symmetric:
        return scales, torch.full_like(scales, middle)
    return scales, (-low * clip / scales).round().clamp(1, levels)


def encode(weights: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """Codes as float32."""
    return ((weights / scales).round() + zeros).clamp(0, 2**bits - 1)


def check_finite(name: str, weights: Tensor) -> None:
    if not bool(torch.isfinite(weights).all()):
        raise CheckpointError(f"{name}: holds infinity or NaN; it cannot be quantized")


def search(
    weights: Tensor, scheme: Scheme, scale_dtype: torch.dtype, gram: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(scales, zeros), float32 [N, G]: of the clippings of each group the one with the smallest error.

    The error is the squared difference of the weights or, with the Gram matrix [K, K] of the inputs, that of the
    group's contribution to the output: d^T H_gg d.
    """
    num_rows, num_cols = weights.shape
    size = group_size(scheme, num_cols)
    blocks = None
    if gram is not None and size < num_cols:
        pieces = gram.reshape(num_cols // size, size, num_cols // size, size)
        blocks = torch.stack([pieces[g, :, g, :] for g in range(num_cols // size)])  # [G, size, size]
    diagonal = gram.diagonal() if gram is not None and blocks is None else None
    scales, zeros = [], []
    step = max(1, _ROWS_AT_ONCE // num_cols)
    for begin in range(0, num_rows, step):
        groups = weights[begin : begin + step].reshape(-1, num_cols // size, size)
        best: tuple[Tensor, Tensor, Tensor] | None = None
        for clip in CLIPS:
            scale, zero = fit(groups, scheme, scale_dtype, clip)
            difference = (encode(groups, scale, zero, scheme.bits) - zero) * scale - groups
            if blocks is not None:
                error = torch.einsum("rgi,gij,rgj->rg", difference, blocks, difference).unsqueeze(-1)
            elif diagonal is not None:
                error = (difference.square() * diagonal).sum(-1, keepdim=True)
            else:
                error = difference.square().sum(-1, keepdim=True)
            if best is None:
                best = error, scale, zero
            else:
                is_better = error < best[0]
                best = (
                    torch.where(is_better, error, best[0]),
                    torch.where(is_better, scale, best[1]),
                    torch.where(is_better, zero, best[2]),
                )
        assert best is not None
        scales.append(best[1].squeeze(-1))
        zeros.append(best[2].squeeze(-1))
    found = torch.cat(scales)
    if not bool(torch.isfinite(found).all()):
        raise CheckpointError(f"a scale exceeds the largest {scale_dtype}; the weights are too large to be quantized")
    return found, torch.cat(zeros)


def round_to_nearest(weights: Tensor, scheme: Scheme, scale_dtype: torch.dtype, gram: Tensor | None = None) -> Codes:
    """Each weight by itself, on the grid of search()."""
    num_cols = weights.shape[1]
    size = group_size(scheme, num_cols)
    scales, zeros = search(weights, scheme, scale_dtype, gram)
    codes = torch.empty(weights.shape, dtype=torch.uint8, device=weights.device)
    step = max(1, _ROWS_AT_ONCE // num_cols)
    for begin in range(0, len(weights), step):
        rows = slice(begin, begin + step)
        groups = weights[rows].reshape(-1, num_cols // size, size)
        found = encode(groups, scales[rows].unsqueeze(-1), zeros[rows].unsqueeze(-1), scheme.bits)
        codes[rows] = found.reshape(-1, num_cols).to(torch.uint8)
    return Codes(scheme, codes, scales, zeros.to(torch.uint8), scale_dtype)
