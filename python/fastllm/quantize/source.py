"""The model as it is read: slots of one layer as float32 matrices, and the modules that can be quantized in them.

A slot is what the decoder reads (model/weight_slots.h): "layers.3.qkv" holds the rows of three modules of the
checkpoint, and a quantized checkpoint names those. A module that is saved stacked with others (experts in one tensor)
is written under the name that it has when it is saved alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastllm import models
from fastllm.checkpoint import loader
from fastllm.checkpoint.config import Config
from fastllm.checkpoint.index import open_checkpoint
from fastllm.checkpoint.packing import FLOATS
from fastllm.checkpoint.quantized import Source
from fastllm.checkpoint.safetensors import Tensor as StoredTensor
from fastllm.errors import UnsupportedModelError
from fastllm.models.fills import Fill, MatrixFill

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# What stays in float: rows are looked up, or a few numbers decide where a token goes.
KEPT = ("embed", "router", "shared_gate")
_STACKED = ("experts.gate_up_proj", "experts.down_proj")


@dataclass(frozen=True, slots=True)
class Module:
    """A linear layer of the checkpoint: rows [row, row + num_rows) of an expert of a slot."""

    name: str  # without ".weight"
    slot: str
    expert: int
    row: int
    num_rows: int
    num_cols: int


class ModelSource:
    """A checked, unquantized checkpoint. Raises UnsupportedModelError for others."""

    def __init__(self, folder: Path) -> None:
        plan = loader.load(folder)
        if folder.is_file():
            raise UnsupportedModelError(f"{folder}: is a GGUF file; quantize the checkpoint that it was made from")
        if plan.quantization is not None:
            raise UnsupportedModelError(
                f"{folder}: is quantized already ({plan.quantization.method}); give the original"
            )
        self.folder = folder
        self.plan = plan
        self.spec: Any = plan.spec
        self._by_slot: dict[str, list[tuple[Fill, Source]]] = {}
        for fill, tensor in plan.fills:
            self._by_slot.setdefault(fill.slot, []).append((fill, tensor))
        self.stored: dict[str, StoredTensor] = open_checkpoint(folder)
        names = [name for name in self.stored if not name.endswith(_STACKED)]
        family = models.family_of(plan.config)
        self.rules: list[Fill] = list(family.fills(plan.config, names))  # as the parts of the model are named apart
        # Also of a head that is the embedding as long as it is not quantized.
        values = with_own_head(plan.config.values)
        own = family.fills(Config(values, plan.config.where, plan.config.path), names)
        self.head_name = next(fill.source for fill in own if fill.slot == "lm_head").removesuffix(".weight")
        self.modules: dict[str, list[Module]] = {}  # by slot
        unnamed: dict[str, None] = {}
        for fill in self.rules:
            if (module := _module(fill)) is not None:
                self.modules.setdefault(module.slot, []).append(module)
            elif isinstance(fill, MatrixFill) and not fill.slot.endswith(KEPT):
                unnamed[fill.source] = None
        self.unnamed = list(unnamed)  # matrices that cannot be quantized

    def other_names(self, *, keeps_head: bool) -> list[str]:
        """Of what stays in float beside the language model, as regular expressions: readers rename towers, and put the
        head of a model with vision elsewhere than its files have it."""
        first = [name.removeprefix("model.").split(".")[0] for name in self.plan.ignored]
        used = {fill.source.removeprefix("model.").split(".")[0] for fill in self.rules}
        towers = sorted(set(first) - used - {"lm_head"})
        return [rf".*\b{tower}\..*" for tower in towers] + (["lm_head"] if keeps_head else [])

    @property
    def dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.plan.dtype]

    def slots_of(self, layer: int) -> list[str]:
        prefix = f"layers.{layer}."
        return [slot for slot in self._by_slot if slot.startswith(prefix)]

    def read(self, slot: str, device: torch.device) -> Tensor:
        """float32: [N, K], [X, N, K] for experts, [n] for a vector."""
        pieces = self._by_slot[slot]
        if isinstance(pieces[0][0], MatrixFill):
            fills = [fill for fill, _ in pieces if isinstance(fill, MatrixFill)]
            num_rows = max(fill.row_begin + fill.num_rows for fill in fills)
            shape: tuple[int, ...] = (num_rows, fills[0].num_cols)
            if is_stacked(slot):
                shape = (1 + max(fill.expert for fill in fills), *shape)
            out = torch.empty(shape, device=device)
            for fill, tensor in pieces:
                assert isinstance(fill, MatrixFill)
                target = out[fill.expert] if is_stacked(slot) else out
                target[fill.row_begin : fill.row_begin + fill.num_rows] = read_fill(fill, tensor).to(device)
            return out
        count = sum(fill.num_elements for fill, _ in pieces)
        vector = torch.empty(count, device=device)
        for fill, tensor in pieces:
            assert not isinstance(fill, MatrixFill)
            vector[fill.offset : fill.offset + fill.count] = read_fill(fill, tensor).to(device)
        return vector

    def embedding_rows(self, token_ids: Sequence[int]) -> Tensor:
        """Rows of the embedding, float32 [T, E], read one by one: the whole table may be larger than a layer."""
        ((fill, tensor),) = self._by_slot["embed"]
        assert isinstance(fill, MatrixFill)
        out = torch.empty(len(token_ids), fill.num_cols)
        places: dict[int, list[int]] = {}
        for at, token in enumerate(token_ids):
            places.setdefault(token, []).append(at)
        for token, at_all in places.items():
            out[at_all] = _read(tensor, token * fill.num_cols, fill.num_cols).float()
        return out * float(self.spec.embedding_scale)

    def read_rows(self, slot: str, begin: int, end: int) -> Tensor:
        """Rows of a matrix that is one tensor, float32."""
        ((fill, tensor),) = self._by_slot[slot]
        assert isinstance(fill, MatrixFill)
        count = (end - begin) * fill.num_cols
        return _read(tensor, begin * fill.num_cols, count).float().reshape(-1, fill.num_cols)

    def vector_dtype(self, slot: str) -> torch.dtype:
        """Type in which the checkpoint stores a slot."""
        return DTYPES[self._by_slot[slot][0][1].dtype]


def with_own_head(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of a model whose head is no longer its embedding. A language model may have a section of its own."""
    config = {**config, "tie_word_embeddings": False}
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    return config


def is_stacked(slot: str) -> bool:
    return ".experts." in slot and not slot.endswith("_bias")


def _read(tensor: Source, begin: int, count: int) -> Tensor:
    data = bytearray(count * FLOATS[tensor.dtype][1])
    tensor.read(begin, memoryview(data))
    return torch.frombuffer(data, dtype=DTYPES[tensor.dtype])


def read_fill(fill: Fill, tensor: Source) -> Tensor:
    """float32 [rows, cols] or [count]."""
    if not isinstance(fill, MatrixFill):
        return _read(tensor, fill.start, (fill.count - 1) * fill.stride + 1)[:: fill.stride].float()
    extent = (fill.num_rows - 1) * fill.row_stride + (fill.num_cols - 1) * fill.col_stride + 1
    values = _read(tensor, fill.start, extent)
    return values.as_strided((fill.num_rows, fill.num_cols), (fill.row_stride, fill.col_stride)).float()


def _module(fill: Fill) -> Module | None:
    """None for what cannot be named as a linear layer of its own, or is kept in float."""
    if not isinstance(fill, MatrixFill) or not fill.source.endswith(".weight") or fill.slot.endswith(KEPT):
        return None
    if fill.shape != (fill.num_rows, fill.num_cols) or (fill.row_stride, fill.col_stride) != (fill.num_cols, 1):
        return None
    name = fill.source.removesuffix(".weight")
    return Module(name, fill.slot, fill.expert, fill.row_begin, fill.num_rows, fill.num_cols)


def chunks(tensor: StoredTensor, size: int = 1 << 24) -> Iterator[bytes]:
    """The bytes of a tensor, a few at a time."""
    for begin in itertools.count(0, size):
        if begin >= tensor.num_bytes:
            return
        yield tensor.file.read(tensor.begin + begin, min(size, tensor.num_bytes - begin))
