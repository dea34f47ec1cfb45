"""What calibration keeps of the inputs of a matrix: their Gram matrix and the size of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class InputStats:
    """Of inputs x [T, K]: gram = sum x^T x, [K, K]; abs_sum and abs_max of each channel, [K]; T as `count`."""

    gram: Tensor
    abs_sum: Tensor
    abs_max: Tensor
    count: int = 0

    @classmethod
    def empty(cls, num_cols: int, device: torch.device) -> InputStats:
        zeros = torch.zeros(num_cols, device=device)
        return cls(torch.zeros(num_cols, num_cols, device=device), zeros, zeros.clone())

    @staticmethod
    def bytes(num_cols: int) -> int:
        return 4 * num_cols * (num_cols + 2)

    def add(self, x: Tensor) -> None:
        self.gram.addmm_(x.T, x)
        size = x.abs()
        self.abs_sum += size.sum(0)
        if len(x) > 0:
            torch.maximum(self.abs_max, size.amax(0), out=self.abs_max)
        self.count += len(x)

    def divided_by(self, scales: Tensor) -> InputStats:
        """Of x / scales."""
        gram = (self.gram / scales.unsqueeze(0)).div_(scales.unsqueeze(1))
        return InputStats(gram, self.abs_sum / scales, self.abs_max / scales, self.count)


def needed_bytes(widths: Sequence[int]) -> int:
    """Memory of statistics over inputs with so many channels each, and of what is made of one of them at a time:
    a Hessian and the inverse of its factor, or Gram matrices with scales moved."""
    return sum(map(InputStats.bytes, widths)) + 8 * max(widths, default=0) ** 2


def output_error(difference: Tensor, gram: Tensor) -> float:
    """|difference x^T|^2 summed over the inputs: the squared error of the output."""
    return float(((difference @ gram) * difference).sum(dtype=torch.float64))
