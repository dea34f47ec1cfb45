"""A model folder -> the spec of the model and the list of what goes where; then the bytes, into the native weights.

load() checks everything and reads no weight, so that memory can be planned from plan.spec before any is taken;
plan.fill(weights) packs the tensors, each used once and each slot filled once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastllm import models
from fastllm.checkpoint.config import Config
from fastllm.checkpoint.files import InputFile, safe_path
from fastllm.checkpoint.formats import WeightFormats
from fastllm.checkpoint.gguf import model as gguf
from fastllm.checkpoint.gguf import reader as gguf_reader
from fastllm.checkpoint.index import INDEX, open_checkpoint
from fastllm.checkpoint.packing import FLOATS, Weights, pack
from fastllm.checkpoint.quantized import Quantization, Source, decode, total_of
from fastllm.checkpoint.quantized.tensor import QuantizedTensor
from fastllm.checkpoint.safetensors import Tensor
from fastllm.errors import CheckpointError
from fastllm.models.fills import Fill

# Buffers of old transformers versions, computed here from config.json.
_BUFFERS = re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$")


@dataclass(frozen=True)
class LoadPlan:
    """Checked, and not yet read: sources of all slots of `spec`."""

    folder: Path
    config: Config
    spec: Any  # _core.ModelSpec
    fills: list[tuple[Fill, Source]]
    ignored: list[str]
    quantization: Quantization | None = None

    @property
    def dtype(self) -> str:
        """Type of the checkpoint: what config.json says, else that of its first matrix."""
        return self.config.dtype or FLOATS[self.fills[0][1].dtype][0]

    def files(self) -> list[InputFile]:
        """What the weights are made of: config.json, the index and the files of the tensors."""
        found = {tensor.file.label: tensor.file for _, tensor in self.fills}
        names = [name for name in ("config.json", INDEX) if (self.folder / name).exists()]
        return [*found.values(), *(InputFile(safe_path(self.folder, name), str(self.folder / name)) for name in names)]

    def fill(
        self, weights: Weights, progress: Callable[[int, int], None] | None = None, num_threads: int = 1, *,
        formats: WeightFormats | None = None,
    ) -> None:  # fmt: skip
        """Packs every tensor; `formats` are those of `weights`, None for floats throughout.

        `progress(done, total)` is told bytes as they reach the core, on the calling thread.
        """
        kept = {} if formats is None else {slot: formats.packed[slot] for slot in formats.kept}
        pack(self.fills, weights, kept, progress, num_threads)
        if missing := weights.unfilled():
            raise CheckpointError(f"{self.folder}: weights are incomplete: {', '.join(missing[:5])}")


def load(folder: Path, *, max_model_len: int | None = None) -> LoadPlan:
    """Reads config.json and the headers of the weights in `folder`; raises CheckpointError or UnsupportedModelError."""
    if (gguf_path := gguf.find(folder)) is not None:
        file = gguf_reader.read(gguf_path)
        config = gguf.config_of(file)
    else:
        config = Config.load(folder)
    family = models.family_of(config)
    spec = family.spec(config, max_model_len)
    quantization: Quantization | None
    if gguf_path is not None:
        tensors, quantization = total_of("gguf", gguf.sources(file, config))
    else:
        tensors, quantization = decode(config, open_checkpoint(folder))
    fills = _match(family.fills(config, tensors.keys()), tensors, folder)
    ignored = _left_over({fill.source for fill, _ in fills}, tensors, family.ignored(config), folder)
    return LoadPlan(folder, config, spec, fills, ignored, quantization)


def _match(rules: Any, tensors: dict[str, Source], folder: Path) -> list[tuple[Fill, Source]]:
    """Pairs each rule with its tensor: present, a float, of the expected shape, every element taken exactly once."""
    fills: list[tuple[Fill, Source]] = []
    missing: dict[str, None] = {}
    taken: dict[str, int] = {}
    for fill in rules:
        tensor = tensors.get(fill.source)
        if tensor is None:
            missing[fill.source] = None
            # A config may promise millions of layers that the files do not have: stop early.
            if len(missing) > 100:
                break
            continue
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{tensor.where}: dtype is {tensor.dtype}, expected one of {', '.join(FLOATS)}")
        if tensor.shape != fill.shape:
            raise CheckpointError(
                f"{tensor.where}: shape is {list(tensor.shape)}, config.json asks for {list(fill.shape)}"
            )
        taken[fill.source] = taken.get(fill.source, 0) + fill.num_elements
        fills.append((fill, tensor))
    if missing:
        names = list(missing)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise CheckpointError(f"{folder}: tensor {', '.join(names[:5])}{more} is missing from the safetensors files")
    for source, count in taken.items():
        if count != math.prod(tensors[source].shape):
            raise CheckpointError(f"{tensors[source].where}: {count} of its elements are used, not each exactly once")
    return fills


def _is_idle(name: str, tensors: dict[str, Source]) -> bool:
    """The bias of zeros that GPTQ tools save beside every quantized weight, whether the model has one or not."""
    bias = tensors[name]
    if not name.endswith(".bias") or not isinstance(tensors.get(f"{name[:-4]}weight"), QuantizedTensor):
        return False
    return isinstance(bias, Tensor) and bias.num_bytes < 1 << 24 and not any(bias.bytes())


def _left_over(used: set[str], tensors: dict[str, Source], ignore: list[str], folder: Path) -> list[str]:
    ignorable = [re.compile(pattern) for pattern in ignore]
    ignored: list[str] = []
    unknown: list[str] = []
    for name in tensors:
        if name in used:
            continue
        known = _BUFFERS.search(name) or any(pattern.match(name) for pattern in ignorable) or _is_idle(name, tensors)
        (ignored if known else unknown).append(name)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        file = tensors[unknown[0]].file.label
        raise CheckpointError(
            f"{file}: tensor {', '.join(sorted(unknown)[:5])}{more} has no place in the model of config.json"
        )
    return ignored
