"""How each matrix of a model is held: packed as the checkpoint has it, rounded to integers, or as floats.

A matrix whose parts a packed format holds exactly stays packed (checkpoint/packed_format.py). Every other one is
rounded to nearest if `quantization` asks for it, else it is held as floats of the model's dtype.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from fastllm import _core
from fastllm.checkpoint.packed_format import GROUPS, PackedFormat, common_format
from fastllm.checkpoint.quantized import Source
from fastllm.checkpoint.quantized.tensor import QuantizedTensor
from fastllm.errors import InvalidRequestError
from fastllm.models.fills import Fill, MatrixFill

ACTIVATION_MODES = ("auto", "a8", "a8r", "a15", "bf16", "f32", "fp8")  # "fp8": of fp8 matrices alone
# The two matrices that are not multiplied once per layer: the head decides the token, the embedding is only looked up.
_OUTER = ("embed", "lm_head")
_DEFAULT_GROUP = 128


class MatrixShape(NamedTuple):
    """One entry of _core.matrix_shapes()."""

    slot: str
    num_rows: int
    num_cols: int
    num_experts: int
    is_fixed: bool  # always float32: routers


@dataclass(frozen=True, slots=True)
class Rounding:
    """``quantization="int4-g64"`` as data. `group` None: the default where it divides the columns, else a smaller.

    4 bits have zeros: groups of 128 with zeros take fewer bytes than groups of 64 without, and are nearer to the
    original (docs/quality.md); at 8 bits there is nothing to gain.
    """

    bits: int
    group: int | None
    text: str

    @classmethod
    def parse(cls, text: str) -> Rounding:
        found = re.fullmatch(r"int([48])(?:-(row|g(?:32|64|128)))?", text) if isinstance(text, str) else None
        if found is None:
            raise InvalidRequestError(
                f"quantization = {text!r} is not known; use None, 'int4' or 'int8', or with a group: 'int4-g32', "
                "'int4-g64', 'int4-g128', 'int4-row' (and so for int8). Checkpoints that are quantized need no option"
            )
        group = None if found[2] is None else 0 if found[2] == "row" else int(found[2][1:])
        return cls(int(found[1]), group, text)

    def format_of(self, shape: MatrixShape) -> PackedFormat:
        """The head and the embedding have 8 bits at least."""
        bits = 8 if shape.slot in _OUTER else self.bits
        group = self.group if bits == self.bits else None
        possible = [g for g in GROUPS if shape.num_cols % g == 0]
        if group is None:
            group = next((g for g in possible if g <= _DEFAULT_GROUP), 0)
            bits = bits if group else 8  # one scale for a whole row is too coarse for 4 bits
        elif group and group not in possible:
            others = ", ".join(repr(f"int{bits}-{f'g{g}' if g else 'row'}") for g in [*possible, 0])
            raise InvalidRequestError(
                f"quantization = {self.text!r}: {shape.slot} has {shape.num_cols} columns, which {group} does not "
                f"divide; possible are {others}"
            )
        return PackedFormat(bits, group, "float16" if group else "float32", has_zeros=bits == 4)


@dataclass(frozen=True, slots=True)
class ActivationModes:
    """``activation_mode`` as data: patterns over slots, the first that fits decides. `auto` is what "auto" means."""

    patterns: tuple[tuple[str, str], ...]
    auto: str = "a8r"

    @classmethod
    def parse(cls, value: str | Mapping[str, str], auto: str = "a8r") -> ActivationModes:
        items = {"*": value} if isinstance(value, str) else value
        if not isinstance(items, Mapping) or not all(isinstance(key, str) for key in items):
            raise InvalidRequestError(
                f"activation_mode = {value!r} must be a mode, or modes by pattern as {{'*.down': 'a15'}}"
            )
        for mode in items.values():
            if mode not in ACTIVATION_MODES:
                raise InvalidRequestError(
                    f"activation_mode = {mode!r} is not known; use one of {', '.join(ACTIVATION_MODES)}"
                )
        return cls(tuple(items.items()), auto)

    def of(self, slot: str, is_fp8: bool) -> str:
        """fp8 matrices take bf16 unless they are told "fp8", which says nothing to integer matrices."""
        mode = next((mode for pattern, mode in self.patterns if fnmatchcase(slot, pattern)), "auto")
        if is_fp8:
            return "fp8" if mode == "fp8" else "bf16"
        return self.auto if mode in ("auto", "fp8") else mode

    def check_used(self, integers: Sequence[str], fp8: Sequence[str]) -> None:
        """Refuses a pattern that fits no integer matrix, "*" excepted: it is probably misspelt. And an "fp8" that fits
        no fp8 matrix: other matrices would go on in another mode."""
        for pattern, mode in self.patterns:
            kind, slots = ("fp8", fp8) if mode == "fp8" else ("integer", integers)
            if pattern == "*" and mode != "fp8":
                continue
            if not any(fnmatchcase(slot, pattern) for slot in slots):
                found = f"{', '.join(slots[:4])}{', ...' if len(slots) > 4 else ''}" if slots else "there are none"
                hint = "; a checkpoint of fp8 is held as fp8 on CUDA alone" if mode == "fp8" and not slots else ""
                raise InvalidRequestError(
                    f"activation_mode: {pattern!r} fits none of the {len(slots)} {kind} matrices ({found}){hint}"
                )


@dataclass(frozen=True, slots=True)
class WeightFormats:
    """`packed`: the matrices of integers and fp8 by slot; the others are floats. `kept`: those that are packed as the
    checkpoint has them, the others of `packed` are rounded. `decoded`: why quantized tensors could not stay, with their
    number."""

    packed: dict[str, PackedFormat] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    decoded: Counter[str] = field(default_factory=Counter)
    modes: ActivationModes = ActivationModes((("*", "auto"),))

    @property
    def modes_used(self) -> str:
        """The activation modes of the integer and fp8 matrices; "none" without any."""
        return ", ".join(sorted({self.mode_of(slot) for slot in self.packed})) or "none"

    def mode_of(self, slot: str) -> str:
        """The activation mode of a packed matrix."""
        return self.modes.of(slot, self.packed[slot].is_fp8)

    def native(self) -> dict[str, Any]:
        return {
            slot: _core.MatrixFormat(
                format=f.kind, group=f.group, scale_dtype=f.scale_dtype, has_zeros=f.has_zeros,
                act=self.mode_of(slot),
            )
            for slot, f in self.packed.items()
        }  # fmt: skip

    def bytes_held(self, matrix_bytes: Mapping[str, int], shapes: Sequence[MatrixShape], dtype: str) -> dict[str, int]:
        """Bytes of the matrices by what they are held as; `dtype` is that of the floats."""
        found: Counter[str] = Counter()
        for shape in shapes:
            packed = self.packed.get(shape.slot)
            name = packed.name if packed is not None else "float32" if shape.is_fixed else dtype
            found[name] += matrix_bytes[shape.slot]
        return dict(found)


def choose_formats(
    shapes: Sequence[MatrixShape], fills: Sequence[tuple[Fill, Source]], quantization: str | None,
    activation_mode: str | Mapping[str, str], auto_mode: str = "a8r", keeps_fp8: bool = False,
) -> WeightFormats:  # fmt: skip
    """keeps_fp8: whether matrices of fp8 stay so where nothing else is asked for.

    Raises InvalidRequestError naming the slot when what is asked for is not possible."""
    rounding = None if quantization is None else Rounding.parse(quantization)
    modes = ActivationModes.parse(activation_mode, auto_mode)
    parts: dict[str, list[tuple[MatrixFill, Source]]] = {}
    for fill, source in fills:
        if isinstance(fill, MatrixFill):
            parts.setdefault(fill.slot, []).append((fill, source))
    packed: dict[str, PackedFormat] = {}
    kept: set[str] = set()
    decoded: Counter[str] = Counter()
    known: dict[str, PackedFormat | str] = {}
    fp8 = keeps_fp8 and rounding is None
    for shape in shapes:
        sources = parts.get(shape.slot, [])
        found = "always float32" if shape.is_fixed else _exact(shape, sources, known, fp8)
        if isinstance(found, PackedFormat):
            packed[shape.slot] = found
            kept.add(shape.slot)
            continue
        decoded[found] += len({s.name for _, s in sources if isinstance(s, QuantizedTensor)})
        if rounding is not None and not shape.is_fixed:
            packed[shape.slot] = rounding.format_of(shape)
    modes.check_used(
        [slot for slot, f in packed.items() if not f.is_fp8], [slot for slot, f in packed.items() if f.is_fp8]
    )
    return WeightFormats(packed, frozenset(kept), +decoded, modes)


def _exact(
    shape: MatrixShape, sources: Sequence[tuple[MatrixFill, Source]], known: dict[str, PackedFormat | str], fp8: bool
) -> PackedFormat | str:
    """The format that holds all parts of a matrix exactly, or why there is none."""
    tensors = [source for _, source in sources if isinstance(source, QuantizedTensor)]
    if len(tensors) < len(sources) or not sources:
        return "a part of the same matrix is a float" if tensors else "float"
    if any(source.shape[-1] != shape.num_cols or fill.col_stride != 1 for fill, source in sources):
        return "its rows are not those of the matrix"
    for tensor in tensors:
        if tensor.name not in known:
            known[tensor.name] = tensor.packed_format(fp8=fp8)
    return common_format([known[tensor.name] for tensor in tensors])
