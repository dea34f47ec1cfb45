"""Layer by layer: read it in float, run the calibration data through, round, run again with the rounded weights, write,
free. What is in memory is one layer, its activations for a few sequences, and the statistics of its inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastllm.checkpoint.safetensors import Tensor as StoredTensor
from fastllm.errors import InvalidRequestError, OutOfMemoryError
from fastllm.memory import format_bytes
from fastllm.models.fills import Fill, MatrixFill
from fastllm.quantize.calibration import Ids
from fastllm.quantize.grid import Codes, check_finite
from fastllm.quantize.journal import Journal
from fastllm.quantize.layer import Layer, rms_norm
from fastllm.quantize.layer_quantizer import LayerQuantizer
from fastllm.quantize.layouts import check_shape, tensors_of
from fastllm.quantize.rounding import ModuleReport, Rounder, relative_error
from fastllm.quantize.settings import Scheme, Settings
from fastllm.quantize.source import DTYPES, ModelSource, Module, is_stacked
from fastllm.quantize.statistics import InputStats, needed_bytes
from fastllm.quantize.writer import Content, write_safetensors

BATCH_TOKENS = 2048  # of activations that are in memory
HEAD = "lm_head"  # the slot
HEAD_ROWS = 16384  # of the head at once: it may be larger than a layer
_LAYER = re.compile(r"layers\.(\d+)\.")

Progress = Callable[[str, int, int], None]


def plan_modules(source: ModelSource, settings: Settings, max_ram: int) -> dict[str, Scheme | None]:
    """Schemes by module; None: it stays in float. Everything that can be known before the first layer is read.

    Raises:
        InvalidRequestError: an override matches no module, the format cannot hold one, or nothing is left to quantize.
        OutOfMemoryError: `max_ram` does not hold what one matrix needs.
    """
    modules = [*(module for modules in source.modules.values() for module in modules), head_of(source)]
    schemes = {module.name: settings.scheme_of(module.name) for module in modules}
    settings.check_overrides(schemes)
    quantized = [module for module in modules if schemes[module.name] is not None]
    if not quantized:
        raise InvalidRequestError("the overrides leave no module to quantize")
    for module in quantized:
        scheme = schemes[module.name]
        assert scheme is not None
        check_shape(module, scheme, settings)
    widest = max(quantized, key=lambda module: module.num_cols)
    if settings.needs_data and (needed := needed_bytes([widest.num_cols])) > max_ram:
        raise OutOfMemoryError(
            f"max_ram = {format_bytes(max_ram)}: {widest.name} has {widest.num_cols} columns, whose statistics need "
            f"{needed} bytes ({format_bytes(needed)}); give it more, or leave it in float with an override, "
            f"'{widest.name}=none'"
        )
    return schemes


def head_of(source: ModelSource) -> Module:
    return Module(source.head_name, HEAD, 0, 0, source.spec.vocab_size, source.spec.hidden_size)


class Pipeline:
    """`schemes`: of plan_modules(). `ids` [S, L]: the calibration data; None for methods that look at no inputs.
    `budget`: bytes of statistics, and of what is made of them."""

    def __init__(
        self, source: ModelSource, rounder: Rounder, schemes: dict[str, Scheme | None], ids: Ids | None,
        journal: Journal, budget: int, device: torch.device, progress: Progress,
    ) -> None:  # fmt: skip
        self._source, self._rounder, self._ids, self._journal = source, rounder, ids, journal
        self.schemes = schemes
        self._budget, self._device, self._progress = budget, device, progress
        self._num_layers = len(source.spec.layers)
        self._rules: dict[int, list[Fill]] = {}  # by layer; -1: of none
        for fill in source.rules:
            found = _LAYER.match(fill.slot)
            self._rules.setdefault(int(found[1]) if found else -1, []).append(fill)

    @property
    def quantizes_head(self) -> bool:
        return self.schemes[self._source.head_name] is not None

    @torch.no_grad()
    def run(self) -> None:
        """Everything that the journal does not have yet. One file per layer, and one for what is in none."""
        total = self._num_layers + 1
        if self._ids is not None and not self._journal.layers:
            self._embed()
        for i in range(len(self._journal.layers), self._num_layers):
            self._progress(f"layer {i}", i, total)
            self._journal.finish(self._layer(i))
        if len(self._journal.layers) == self._num_layers:
            self._progress("embedding and head", self._num_layers, total)
            self._journal.finish(self._rest())
        self._progress("done", total, total)

    def file_name(self, index: int) -> str:
        total = self._num_layers + 1
        return f"model-{index + 1:05d}-of-{total:05d}.safetensors"

    # Activations.

    def _embed(self) -> None:
        assert self._ids is not None
        self._journal.write_hidden(0, (self._source.embedding_rows(piece.tolist()) for piece in self._ids))

    def _batches(self, layer: int) -> Iterator[Tensor]:
        assert self._ids is not None
        hidden = self._journal.hidden(layer, (*self._ids.shape, self._source.spec.hidden_size))
        step = max(1, BATCH_TOKENS // hidden.shape[1])
        for begin in range(0, len(hidden), step):
            yield torch.from_numpy(hidden[begin : begin + step].copy()).to(self._device)

    def _advance(self, index: int, layer: Layer) -> None:
        """The inputs of the next layer, by the rounded weights: what a layer lost, the next one sees."""
        self._journal.write_hidden(index + 1, (layer.forward(batch).cpu() for batch in self._batches(index)))

    # Layers.

    def _layer(self, index: int) -> dict[str, Any]:
        source = self._source
        prefix = f"layers.{index}."
        spec = source.spec.layers[index]
        slots = {slot.removeprefix(prefix): source.read(slot, self._device) for slot in source.slots_of(index)}
        layer = Layer(spec, source.spec.ropes[spec.attention.rope_idx], slots)
        modules = [
            Module(m.name, m.slot.removeprefix(prefix), m.expert, m.row, m.num_rows, m.num_cols)
            for slot in source.slots_of(index)
            for m in source.modules.get(slot, [])
        ]
        quantizer = LayerQuantizer(layer, modules, self._rounder, self._budget)
        batches = None if self._ids is None else lambda: self._batches(index)
        quantizer.run(batches, lambda slot: source.vector_dtype(prefix + slot))
        if self._ids is not None:
            self._advance(index, layer)
        tensors = self._contents(self._rules[index], quantizer.codes, {prefix + s for s in quantizer.changed}, layer)
        return self._write(index, tensors, quantizer.reports)

    def _contents(
        self, rules: list[Fill], codes: dict[str, Codes], changed: set[str], layer: Layer | None
    ) -> dict[str, Content]:
        """Tensors of a file: parts of quantized modules, vectors that took scales, and the rest as it was."""
        out: dict[str, Content] = {}
        by_name: dict[str, list[Fill]] = {}
        for fill in rules:
            by_name.setdefault(fill.source, []).append(fill)
        for name, fills in by_name.items():
            module = name.removesuffix(".weight")
            if module in codes:
                out |= tensors_of(module, codes[module], self._rounder.settings)
            elif name in self._source.stored and not any(fill.slot in changed for fill in fills):
                out[name] = self._source.stored[name]
            else:
                assert layer is not None and len(fills) == 1, name
                out[name] = self._from_slot(fills[0], layer)
        return out

    def _from_slot(self, fill: Fill, layer: Layer) -> Tensor:
        values = layer.slots[fill.slot.split(".", 2)[2]]
        stored = self._source.stored.get(fill.source)
        dtype = DTYPES[stored.dtype] if stored is not None else self._source.dtype
        if isinstance(fill, MatrixFill):
            if is_stacked(fill.slot):
                values = values[fill.expert]
            return values[fill.row_begin : fill.row_begin + fill.num_rows].to(dtype).cpu()
        return values[fill.offset : fill.offset + fill.count].to(dtype).cpu()

    def _write(self, index: int, tensors: dict[str, Content], reports: list[ModuleReport]) -> dict[str, Any]:
        name = self.file_name(index)
        write_safetensors(self._journal.folder / name, tensors)
        sizes = [t.num_bytes if isinstance(t, StoredTensor) else t.numel() * t.element_size() for t in tensors.values()]
        return {
            "file": name, "tensors": list(tensors), "bytes": sum(sizes),
            "modules": [report.as_dict() for report in reports], "in_float": self._in_float(tensors),
        }  # fmt: skip

    def _in_float(self, tensors: dict[str, Content]) -> list[str]:
        """Matrices that a reader would take for quantized ones if the config did not name them: routers, gates of
        shared experts, the linear layers of a vision tower. Embeddings are among them, where it does no harm."""
        names = [name.removesuffix(".weight") for name, content in tensors.items()
                 if name.endswith(".weight") and len(content.shape) == 2]  # fmt: skip
        return [name for name in names if self.schemes.get(name) is None]

    # What is in no layer.

    def _rest(self) -> dict[str, Any]:
        source = self._source
        codes: dict[str, Codes] = {}
        reports: list[ModuleReport] = []
        if self.quantizes_head:
            found, report = self._quantize_head()
            codes[report.name] = found
            reports.append(report)
        tensors = self._contents(self._rules[-1], codes, set(), None)
        head = source.head_name
        if self.quantizes_head and source.spec.tied_embeddings:
            tensors |= tensors_of(head, codes[head], self._rounder.settings)
        for name in source.plan.ignored:  # the rest of a model with vision
            if not (name.startswith(f"{head}.") or name.endswith("inv_freq")):
                tensors[name] = source.stored[name]
        return self._write(self._num_layers, tensors, reports)

    def _quantize_head(self) -> tuple[Codes, ModuleReport]:
        """A few rows at a time, which are rounded independently of each other."""
        source, module = self._source, head_of(self._source)
        slot = "embed" if source.spec.tied_embeddings else HEAD
        stats = None
        if self._ids is not None:
            stats = InputStats.empty(module.num_cols, self._device)
            norm = source.read("final_norm", self._device)
            for batch in self._batches(self._num_layers):
                stats.add(rms_norm(batch, norm, source.spec.final_norm).reshape(-1, module.num_cols))
        hessian = (
            self._rounder.hessian(stats) if stats is not None and self._rounder.settings.method == "gptq" else None
        )
        codes = torch.empty(module.num_rows, module.num_cols, dtype=torch.uint8, device=self._device)
        pieces: list[Codes] = []
        errors: list[float] = []
        method = ""
        for begin in range(0, module.num_rows, HEAD_ROWS):
            rows = source.read_rows(slot, begin, min(begin + HEAD_ROWS, module.num_rows)).to(self._device)
            check_finite(f"{module.name}.weight", rows)
            found, method = self._rounder.round(module, rows, stats, hessian)
            errors.append(relative_error(rows, found.values(), stats) * len(rows))
            codes[begin : begin + len(rows)] = found.codes
            found.codes = codes[:0]  # there are many, and they are kept once
            pieces.append(found)
        whole = Codes(
            pieces[0].scheme, codes, torch.cat([p.scales for p in pieces]),
            torch.cat([p.zeros for p in pieces]), pieces[0].scale_dtype, pieces[0].group_of,
        )  # fmt: skip
        tokens = stats.count if stats is not None else 0
        report = self._rounder.report(module, method, whole, sum(errors) / module.num_rows, None, tokens)
        return whole, report


def partial_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial")
