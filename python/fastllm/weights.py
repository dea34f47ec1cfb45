"""The weights of one model: what each matrix is held as, and how they come from the checkpoint or the packed cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastllm import __version__, _core
from fastllm.checkpoint import loader, packed_cache
from fastllm.checkpoint.formats import MatrixShape, choose_formats
from fastllm.memory import format_bytes

_log = logging.getLogger("fastllm")


class HeldWeights:
    """`plan` None: random weights. Raises InvalidRequestError for options that do not fit the model.

    Attributes, after load():
        bytes_by_format: of the matrices by what they are held as, and of the vectors; all of the plan's weight bytes.
        quantization: what the checkpoint had quantized and what became of it; None: all is held as it was.
        packed_cache: file, and whether it was read; None without one.
    """

    def __init__(
        self, spec: Any, plan: loader.LoadPlan | None, *, dtype: str, quantization: str | None,
        activation_mode: str | Mapping[str, str], auto_mode: str, keeps_fp8: bool,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._dtype = dtype
        self._rounding = quantization
        self.shapes = [MatrixShape(*shape) for shape in _core.matrix_shapes(spec)]
        fills = plan.fills if plan is not None else []
        self.formats = choose_formats(self.shapes, fills, quantization, activation_mode, auto_mode, keeps_fp8)
        self.bytes_by_format: dict[str, int] = {}
        self.quantization: dict[str, Any] | None = None
        self.packed_cache: dict[str, Any] | None = None

    def load(self, native: Any, *, cache: str | Path | None, seed: int, show_progress: bool) -> None:
        """Allocates and fills the weights of the native model, which was made with `formats.native()`."""
        native.allocate_weights()
        self.bytes_by_format = self.formats.bytes_held(native.matrix_bytes(), self.shapes, self._dtype)
        self.bytes_by_format["vectors"] = native.weight_bytes() - sum(self.bytes_by_format.values())
        if self._plan is None:
            native.fill_random(seed=seed)
            return
        self.quantization = self._describe(self._plan)
        # A device's memory cannot be read from a file: it is packed anew.
        if cache is None or not native.shares_host_memory:
            self._pack(self._plan, native, show_progress)
        else:
            self._load_through(Path(cache), self._plan, native, show_progress)

    def _load_through(self, cache: Path, plan: loader.LoadPlan, native: Any, show_progress: bool) -> None:
        settings = {
            "layout": native.layout_fingerprint(), "fastllm": __version__, "dtype": self._dtype,
            "quantization": self._rounding, "backend": native.backend_name.partition(":")[0],
        }  # fmt: skip
        key = packed_cache.key_of(plan.files(), settings)
        path = packed_cache.path_of(cache, plan.folder, settings)
        memory = native.weight_memory()
        is_hit = packed_cache.read(path, key, memory, native.num_threads)
        self.packed_cache = {"path": str(path), "was_read": is_hit}
        if is_hit:
            native.mark_filled()
        else:
            self._pack(plan, native, show_progress)
            packed_cache.write(path, key, memory)

    def _pack(self, plan: loader.LoadPlan, native: Any, show_progress: bool) -> None:
        if not show_progress:
            plan.fill(native, None, native.num_threads, formats=self.formats)
            return
        from rich.console import Console  # here: most starts show nothing
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("weights", total=None)

            def progress(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            plan.fill(native, progress, native.num_threads, formats=self.formats)

    def _describe(self, plan: loader.LoadPlan) -> dict[str, Any] | None:
        found, formats = plan.quantization, self.formats
        if found is None and not formats.packed:
            return None
        held = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.bytes_by_format.items())
        if found is None:
            _log.info("%s: rounded to nearest, held as %s", plan.folder, held)
        else:
            why = "; ".join(f"{count} because {reason}" for reason, count in formats.decoded.items())
            _log.info(
                "%s: %d %s tensors of %s%s; held as %s", plan.folder, found.num_tensors, found.method,
                format_bytes(found.source_bytes), f", decoded: {why}" if why else "", held,
            )  # fmt: skip
        return {
            "method": None if found is None else found.method,
            "tensors": 0 if found is None else found.num_tensors,
            "source_bytes": 0 if found is None else found.source_bytes,
            "matrices_kept_packed": len(formats.kept),
            "matrices_rounded": len(formats.packed) - len(formats.kept),
            "tensors_decoded": dict(formats.decoded),
        }
