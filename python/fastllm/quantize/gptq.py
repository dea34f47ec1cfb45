"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns are rounded one after the other, and what each one loses is
made up for by those that are still free, through the inverse of H = sum x^T x.

Damping adds `damp` times the mean of H's diagonal to it. Columns go by falling diagonal (act-order), which rounds what
matters most while most is free. "static": groups stay where they are and get their scales before anything is rounded;
"group": groups are formed in that order, and group_of says which column belongs where; "none": columns as they are.
Work goes in blocks of columns: inside a block errors spread at once, beyond it with one product per block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastllm.errors import CheckpointError
from fastllm.quantize.grid import Codes, encode, group_size, search
from fastllm.quantize.settings import Scheme

BLOCK = 32  # divides every group, so a group begins with a block: all that came before has been made up for


class Hessian:
    """H with damping, in the order of the columns, and the upper Cholesky factor of its inverse. Shared by all matrices
    that read the same input. At most two matrices of H's size are in memory beside it (statistics.needed_bytes)."""

    def __init__(self, gram: Tensor, *, damp: float, is_ordered: bool) -> None:
        diagonal = gram.diagonal()
        self.is_dead = diagonal <= 0  # inputs that were always zero
        self.order = torch.argsort(diagonal, descending=True, stable=True) if is_ordered else None
        self._gram, self._damp = gram, damp
        self._factor: Tensor | None = None

    @property
    def factor(self) -> Tensor:
        if self._factor is None:
            self._factor = self._invert()
        return self._factor

    def _invert(self) -> Tensor:
        """U with H^-1 = U^T U. With the columns backwards H = L L^T, and forwards L^-1 is U: one factorization."""
        lower = self._lower()
        inverse = torch.eye(len(lower), device=lower.device).T  # columns together, so that it is solved in place
        torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
        del lower
        return inverse.flip(0, 1)

    def _lower(self) -> Tensor:
        backwards = torch.arange(len(self._gram), device=self._gram.device) if self.order is None else self.order
        backwards = backwards.flip(0)
        h = self._gram[backwards.unsqueeze(1), backwards]
        h /= float(h.diagonal().mean()) or 1.0
        damp = self._damp
        for _ in range(4):  # inputs that hardly vary need more damping
            h.diagonal().add_(damp)
            lower: Tensor
            lower, failed = torch.linalg.cholesky_ex(h)
            if not bool(failed) and bool(torch.isfinite(lower.diagonal()).all()):  # each holds the whole of its row
                return lower
            damp *= 10
        raise CheckpointError("the inputs of a layer give no positive definite matrix; is the calibration data finite?")


def gptq(
    weights: Tensor, hessian: Hessian, gram: Tensor, scheme: Scheme, scale_dtype: torch.dtype, order: str
) -> Codes:
    """`order`: "static", "group" or "none", as the Hessian was made."""
    num_rows, num_cols = weights.shape
    size = group_size(scheme, num_cols)
    rest = weights.clone()
    rest[:, hessian.is_dead] = 0.0
    permutation = hessian.order
    # Scales that are known before the first column is rounded: groups that are not formed on the way.
    group_of = torch.arange(num_cols, device=weights.device) // size
    is_known = order == "static" or size == num_cols
    if is_known:
        scales, zeros = search(rest, scheme, scale_dtype, gram)
    else:
        scales = torch.empty(num_rows, num_cols // size, device=weights.device)
        zeros = torch.empty_like(scales)
    if permutation is not None:
        rest = rest[:, permutation]
        if is_known:
            group_of = group_of[permutation]
    factor = hessian.factor
    codes = torch.empty_like(rest)
    for begin in range(0, num_cols, BLOCK):
        end = min(begin + BLOCK, num_cols)
        if not is_known and begin % size == 0:
            g = begin // size
            scales[:, g : g + 1], zeros[:, g : g + 1] = search(rest[:, begin : begin + size], scheme, scale_dtype)
        block, local = rest[:, begin:end], factor[begin:end, begin:end]
        errors = torch.empty_like(block)
        for i in range(end - begin):
            g = int(group_of[begin + i])
            column, scale, zero = block[:, i], scales[:, g], zeros[:, g]
            code = encode(column, scale, zero, scheme.bits)
            codes[:, begin + i] = code
            error = (column - (code - zero) * scale) / local[i, i]
            errors[:, i] = error
            block[:, i + 1 :].addr_(error, local[i, i + 1 :], alpha=-1.0)
        rest[:, end:].addmm_(errors, factor[begin:end, end:], alpha=-1.0)
    if permutation is not None:
        inverse = torch.argsort(permutation)
        codes, group_of = codes[:, inverse], group_of[inverse]
    is_plain = order != "group" or size == num_cols
    return Codes(
        scheme, codes.to(torch.uint8), scales, zeros.to(torch.uint8), scale_dtype,
        None if is_plain else group_of.to(torch.int32),
    )  # fmt: skip
