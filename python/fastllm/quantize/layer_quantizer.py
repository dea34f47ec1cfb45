"""One layer: look at the inputs of its matrices, move scales, round, and leave the rounded weights in its slots.

Statistics of all inputs at once may need more memory than a layer (a Gram matrix per expert): then the calibration data
runs through the layer several times, each time for some of them. The weights keep their values until all are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fastllm.errors import CheckpointError
from fastllm.quantize import equalize
from fastllm.quantize.gptq import Hessian
from fastllm.quantize.grid import Codes, check_finite
from fastllm.quantize.layer import Layer
from fastllm.quantize.rounding import MIN_EXPERT_TOKENS, ModuleReport, Rounder, relative_error
from fastllm.quantize.settings import Scheme
from fastllm.quantize.source import Module
from fastllm.quantize.statistics import InputStats, needed_bytes

Key = tuple[str, int]  # slot, expert
Batches = Callable[[], Iterable[Tensor]]  # the inputs of the layer, [S, L, E] each
Stats = dict[Key, InputStats]
MOVES_SCALES = ("awq", "smoothquant")


def view(layer: Layer, module: Module) -> Tensor:
    """The rows of a module in its slot."""
    slot = layer.slots[module.slot]
    matrix = slot[module.expert] if slot.dim() == 3 else slot
    return matrix[module.row : module.row + module.num_rows]


class LayerQuantizer:
    """`modules`: those of the layer, with slots as the layer names them. `budget`: bytes of statistics at a time, and
    of what is made of them."""

    def __init__(self, layer: Layer, modules: Sequence[Module], rounder: Rounder, budget: int) -> None:
        self._layer, self._rounder, self._budget = layer, rounder, budget
        self._schemes = {module.name: rounder.settings.scheme_of(module.name) for module in modules}
        self._modules = [module for module in modules if self._schemes[module.name] is not None]
        self._by_key: dict[Key, list[Module]] = {}
        for module in self._modules:
            check_finite(f"{module.name}.weight", view(layer, module))
            self._by_key.setdefault((module.slot, module.expert), []).append(module)
        self.codes: dict[str, Codes] = {}
        self.reports: list[ModuleReport] = []
        self.changed: set[str] = set()  # slots that scales were moved into or out of
        self._rtn_errors: dict[str, float] = {}

    def run(self, batches: Batches | None, dtype_of: Callable[[str], torch.dtype]) -> None:
        """Without `batches` no inputs are looked at. `dtype_of`: type in which a vector is stored."""
        if batches is None:
            self._round({})
        elif self._modules:
            pairs: list[equalize.Pair] = []
            if self._rounder.settings.method in MOVES_SCALES:
                pairs = equalize.pairs_of(self._layer, self._scheme_of, dtype_of)
            groups = list(self._split([*(pair.stats_key for pair in pairs), *self._by_key]))
            if len(groups) == 1:
                self._look_and_round(batches, groups[0], pairs, has_moved=False)
            else:
                for group in self._split([pair.stats_key for pair in pairs]):
                    self._fold([pair for pair in pairs if pair.stats_key in group], self._collect(batches, group))
                for group in self._split(self._by_key):
                    self._look_and_round(batches, group, [], has_moved=bool(pairs))
        for module in self._modules:
            view(self._layer, module).copy_(self.codes[module.name].values())

    def _look_and_round(
        self, batches: Batches, group: Sequence[Key], pairs: Sequence[equalize.Pair], *, has_moved: bool
    ) -> None:
        stats = self._collect(batches, group)
        if not has_moved:  # what moved scales would have cost without them is not known any more
            self._measure_rtn(stats)
        self._fold(pairs, stats)
        self._round(stats)

    def _scheme_of(self, slot: str, expert: int) -> Scheme | None:
        return next((self._schemes[module.name] for module in self._by_key.get((slot, expert), [])), None)

    def _split(self, keys: Iterable[Key]) -> Iterator[list[Key]]:
        """Groups whose statistics the budget holds at once; that it holds each was checked (pipeline.py)."""
        group: list[Key] = []
        for key in dict.fromkeys(keys):
            if group and needed_bytes([self._layer.slots[name].shape[-1] for name, _ in [*group, key]]) > self._budget:
                yield group
                group = []
            group.append(key)
        if group:
            yield group

    def _collect(self, batches: Batches, keys: Sequence[Key]) -> Stats:
        slots = self._layer.slots
        stats = {key: InputStats.empty(slots[key[0]].shape[-1], slots[key[0]].device) for key in keys}

        def tap(slot: str, expert: int, x: Tensor) -> None:
            if (slot, expert) in stats:
                stats[slot, expert].add(x)

        for batch in batches():
            self._layer.forward(batch, tap)
        for (slot, _), found in stats.items():
            if not bool(torch.isfinite(found.abs_sum).all()):
                raise CheckpointError(f"on the calibration data the inputs of {slot} are not finite")
        return stats

    def _measure_rtn(self, stats: Stats) -> None:
        for key in stats.keys() & self._by_key.keys():
            for module in self._by_key[key]:
                if self._rounder.is_enough(module, stats[key]):
                    error = self._rounder.rtn_error(module, view(self._layer, module), stats[key])
                    self._rtn_errors[module.name] = error

    def _fold(self, pairs: Sequence[equalize.Pair], stats: Stats) -> None:
        """Moves scales, and divides the statistics of what they were moved out of."""
        for pair in pairs:
            found = stats[pair.stats_key]
            if found.count < (MIN_EXPERT_TOKENS if pair.readers[0][0].startswith("experts.") else 1):
                continue
            if self._rounder.settings.method == "awq":
                scales = equalize.awq_scales(self._layer, pair, found, self._rounder.scale_dtype)
            else:
                scales = equalize.smooth_scales(self._layer, pair, found)
            if scales is None:
                continue
            real = equalize.apply(self._layer, pair, scales)
            self.changed.update(pair.changes)
            for key in pair.readers:
                self.changed.add(key[0])
                if key in stats:
                    stats[key] = stats[key].divided_by(real)

    def _round(self, stats: Mapping[Key, InputStats]) -> None:
        for key, modules in self._by_key.items():
            if stats and key not in stats:
                continue
            found = stats.get(key)
            hessian: Hessian | None = None
            if self._rounder.settings.method == "gptq" and self._rounder.is_enough(modules[0], found):
                assert found is not None
                hessian = self._rounder.hessian(found)  # one for all that read the same
            for module in modules:
                weights = view(self._layer, module)
                codes, method = self._rounder.round(module, weights, found, hessian)
                error = relative_error(weights, codes.values(), found)
                self.codes[module.name] = codes
                tokens = found.count if found is not None else 0
                rtn_error = self._rtn_errors.get(module.name)
                self.reports.append(self._rounder.report(module, method, codes, error, rtn_error, tokens))
