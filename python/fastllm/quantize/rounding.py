"""One matrix: rounded by the method that was asked for, and how it came out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastllm.quantize.gptq import Hessian, gptq
from fastllm.quantize.grid import Codes, round_to_nearest
from fastllm.quantize.settings import Settings
from fastllm.quantize.source import Module
from fastllm.quantize.statistics import InputStats, output_error

# With fewer inputs, statistics of an expert say less than they cost: it is rounded to nearest.
MIN_EXPERT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """Errors are squared and relative: of the outputs on the calibration data, or of the weights where no inputs were
    looked at. `error_rtn`: of the original weights, each rounded by itself; None where that was not measured."""

    name: str
    bits: int
    group: int
    method: str
    tokens: int
    error: float
    error_rtn: float | None
    bytes: int  # codes, scales and zeros
    elements: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rounder:
    settings: Settings
    scale_dtype: torch.dtype

    def is_enough(self, module: Module, stats: InputStats | None) -> bool:
        least = MIN_EXPERT_TOKENS if module.slot.rpartition("experts.")[1] else 1
        return stats is not None and stats.count >= least

    def hessian(self, stats: InputStats) -> Hessian:
        return Hessian(stats.gram, damp=self.settings.damp, is_ordered=self.settings.act_order != "none")

    def rtn_error(self, module: Module, weights: Tensor, stats: InputStats) -> float:
        scheme = self.settings.scheme_of(module.name)
        assert scheme is not None
        return relative_error(weights, round_to_nearest(weights, scheme, self.scale_dtype).values(), stats)

    def round(
        self, module: Module, weights: Tensor, stats: InputStats | None, hessian: Hessian | None
    ) -> tuple[Codes, str]:
        """Codes, and the method that made them: rtn where there are too few inputs. `hessian`: of `stats`, for gptq."""
        scheme, method = self.settings.scheme_of(module.name), self.settings.method
        assert scheme is not None
        if stats is None or not self.is_enough(module, stats):
            return round_to_nearest(weights, scheme, self.scale_dtype), "rtn"
        if method == "gptq":
            assert hessian is not None
            return gptq(weights, hessian, stats.gram, scheme, self.scale_dtype, self.settings.act_order), method
        gram = stats.gram if method == "awq" else None
        return round_to_nearest(weights, scheme, self.scale_dtype, gram), method

    def report(
        self, module: Module, method: str, codes: Codes, error: float, error_rtn: float | None, tokens: int
    ) -> ModuleReport:
        per_group = 2 + (0 if codes.scheme.symmetric else codes.scheme.bits / 8)
        size = codes.codes.numel() * codes.scheme.bits / 8 + codes.scales.numel() * per_group
        return ModuleReport(
            module.name, codes.scheme.bits, codes.scheme.group, method, tokens, error, error_rtn, int(size),
            codes.codes.numel(),
        )  # fmt: skip


def relative_error(weights: Tensor, rounded: Tensor, stats: InputStats | None) -> float:
    difference = rounded - weights
    if stats is None or stats.count == 0:
        change, whole = float(difference.square().sum()), float(weights.square().sum())
    else:
        change, whole = output_error(difference, stats.gram), output_error(weights, stats.gram)
    return change / whole if whole > 0 else 0.0
