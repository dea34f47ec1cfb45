"""What to make: method, bits, groups, layout; exceptions by module. Checked before any file is opened."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastllm.errors import InvalidRequestError

METHODS = ("rtn", "gptq", "awq", "smoothquant")
LAYOUTS = ("gptq", "awq", "compressed-tensors")
BITS = (4, 8)
GROUPS = (32, 64, 128, -1)
ACT_ORDERS = ("static", "group", "none")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of one module are quantized."""

    bits: int
    group: int  # columns that share a scale; -1: the whole row
    symmetric: bool  # zero point 2^(bits - 1) everywhere, else one per group


@dataclass(frozen=True, slots=True)
class Override:
    """Modules whose name matches `pattern` (fnmatch) get other bits and groups; bits None leaves them in float."""

    pattern: str
    bits: int | None
    group: int | None

    @classmethod
    def parse(cls, text: str) -> Override:
        """``PATTERN=none``, ``PATTERN=8`` or ``PATTERN=8:32``."""
        pattern, found, value = text.rpartition("=")
        if found and pattern and value == "none":
            return cls(pattern, None, None)
        bits, _, group = value.partition(":")
        try:
            override = cls(pattern, int(bits), int(group) if group else None)
        except ValueError:
            override = cls("", None, None)
        if not override.pattern:
            raise InvalidRequestError(f"override {text!r} is not PATTERN=none, PATTERN=BITS or PATTERN=BITS:GROUP")
        _check_choice("bits of an override", override.bits, BITS)
        if override.group is not None:
            _check_choice("group of an override", override.group, GROUPS)
        return override


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of quantize(); see there."""

    method: str
    bits: int
    group: int
    symmetric: bool
    layout: str
    overrides: tuple[Override, ...]
    act_order: str
    damp: float
    num_samples: int
    sample_len: int

    @property
    def needs_data(self) -> bool:
        return self.method != "rtn"

    @property
    def quantizes_activations(self) -> bool:
        return self.method == "smoothquant"

    def scheme_of(self, module: str) -> Scheme | None:
        """None: the module stays in float. The last override that matches decides."""
        bits: int | None = self.bits
        group = self.group
        for override in self.overrides:
            if fnmatch.fnmatchcase(module, override.pattern):
                bits = override.bits
                group = self.group if override.group is None else override.group
        return None if bits is None else Scheme(bits, group, self.symmetric)

    def check_overrides(self, modules: Collection[str]) -> None:
        """Raises InvalidRequestError for a pattern that matches none of these: it is probably misspelt."""
        for override in self.overrides:
            if not any(fnmatch.fnmatchcase(module, override.pattern) for module in modules):
                kinds = {re.sub(r"\b\d+\b", "*", module): None for module in modules}
                nearest = difflib.get_close_matches(override.pattern, kinds, n=4, cutoff=0.0)
                raise InvalidRequestError(
                    f"override {override.pattern!r} matches none of the {len(modules)} modules that can be quantized; "
                    f"patterns are of whole names, and the nearest of those are {', '.join(nearest)}"
                )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_settings(
    method: str, *, bits: int | None = None, group: int | None = None, symmetric: bool | None = None,
    layout: str | None = None, overrides: Sequence[str] = (), act_order: str = "static", damp: float = 0.01,
    num_samples: int = 128, sample_len: int = 256,
) -> Settings:  # fmt: skip
    """Fills in what None leaves to the method. Raises InvalidRequestError naming the argument."""
    _check_choice("method", method, METHODS)
    is_smooth = method == "smoothquant"
    bits = (8 if is_smooth else 4) if bits is None else bits
    group = (-1 if is_smooth else 128) if group is None else group
    symmetric = method != "awq" if symmetric is None else symmetric
    if layout is None:
        layout = {"gptq": "gptq", "awq": "awq"}.get(method, "compressed-tensors")
        if method == "awq" and bits != 4:
            layout = "compressed-tensors"
    _check_choice("bits", bits, BITS)
    _check_choice("group", group, GROUPS)
    _check_choice("format", layout, LAYOUTS)
    _check_choice("act_order", act_order, ACT_ORDERS)
    if type(symmetric) is not bool:
        raise InvalidRequestError(f"symmetric = {symmetric!r} must be True or False")
    if is_smooth and (bits, group, symmetric, layout) != (8, -1, True, "compressed-tensors"):
        raise InvalidRequestError(
            "smoothquant is 8 bits, whole rows (group -1), symmetric, in the compressed-tensors format; other values "
            "are for rtn, gptq and awq"
        )
    if layout == "awq" and bits != 4:
        raise InvalidRequestError(f"bits = {bits}: the AWQ format has 4; use format compressed-tensors or gptq")
    if act_order == "group" and (method != "gptq" or layout == "awq"):
        raise InvalidRequestError("act_order = 'group' needs method gptq and a format with g_idx, which AWQ has not")
    # The head stays in float unless asked for; whoever names it comes later and wins.
    parsed = (Override("*lm_head", None, None), *map(Override.parse, overrides))
    mixed = any(o.bits is not None and (o.bits, o.group or group) != (bits, group) for o in parsed)
    if mixed and layout != "compressed-tensors":
        raise InvalidRequestError(f"the {layout} format has one number of bits and one group; use compressed-tensors")
    if mixed and is_smooth:
        raise InvalidRequestError("smoothquant has 8 bits and whole rows everywhere; an override can only be 'none'")
    if not isinstance(damp, (int, float)) or not 0 < damp <= 1:
        raise InvalidRequestError(f"damp = {damp!r} must be in (0, 1]")
    for name, value, least in (("num_samples", num_samples, 1), ("sample_len", sample_len, 8)):
        if type(value) is not int or not least <= value <= 1 << 20:
            raise InvalidRequestError(f"{name} = {value!r} must be an integer from {least} to {1 << 20}")
    return Settings(
        method, bits, group, symmetric, layout, parsed, act_order, float(damp), num_samples, sample_len
    )  # fmt: skip


def _check_choice(name: str, value: object, known: Sequence[Any]) -> None:
    if not any(type(value) is type(k) and value == k for k in known):
        listed = ", ".join(map(str, known))
        raise InvalidRequestError(f"{name} = {value!r} is not known; use one of {listed}")


def check_target(out: Path) -> None:
    """Nothing is overwritten."""
    if out.exists():
        raise InvalidRequestError(f"{out}: exists already; choose another name or remove it")
