"""Published quantized checkpoints: quantization_config.quant_method -> the format that reads its tensors.

Each format is a module with
    read(quantization_config, tensors) -> the quantized tensors of the model by the names of the unquantized ones
    SUFFIXES: how the names of their parts end, which are no tensors of the model
Modules that a checkpoint leaves unquantized have plain tensors and stay in their own type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fastllm.checkpoint.config import Config
from fastllm.checkpoint.quantized import awq, bitsandbytes, compressed, gptq, mxfp4, scaled
from fastllm.checkpoint.quantized.tensor import QuantizedTensor
from fastllm.checkpoint.safetensors import Tensor
from fastllm.errors import CheckpointError

METHODS: dict[str, ModuleType] = {
    "gptq": gptq,
    "awq": awq,
    "compressed-tensors": compressed,
    "fp8": scaled,
    "bitsandbytes": bitsandbytes,
    "mxfp4": mxfp4,
}

Source = Tensor | QuantizedTensor


@dataclass(frozen=True, slots=True)
class Quantization:
    """What was found, for the load log and info()."""

    method: str
    num_tensors: int
    source_bytes: int  # in the files, scales and zeros included
    num_elements: int


def _section(config: Config) -> Config | None:
    for place in (config, config.section("text_config")):
        found = place.section("quantization_config") if place is not None else None
        if found is not None:
            return found
    return config.section("compression_config")  # the name in older compressed-tensors checkpoints


def decode(config: Config, tensors: dict[str, Tensor]) -> tuple[dict[str, Source], Quantization | None]:
    """The tensors of the model: plain ones, and quantized ones in place of their parts."""
    section = _section(config)
    if section is None:
        return {**tensors}, None
    method = section.str("quant_method", default="compressed-tensors" if section.has("config_groups") else None)
    if method is None:
        raise section.wrong("quant_method", f"is missing, expected one of {', '.join(METHODS)}")
    if method not in METHODS:
        raise section.unsupported("quant_method", f"is {method[:60]!r}; supported are {', '.join(METHODS)}")
    found: dict[str, QuantizedTensor] = METHODS[method].read(section, tensors) if tensors else {}
    if not found:
        raise CheckpointError(
            f"{config.where}: quantization_config says {method}, but no tensor is quantized like that"
        )
    found, total = total_of(method, found)
    suffixes = METHODS[method].SUFFIXES
    plain = {name: t for name, t in tensors.items() if name not in found and not _is_part(name, suffixes, found)}
    return {**plain, **found}, total


def total_of(method: str, found: Mapping[str, QuantizedTensor]) -> tuple[dict[str, Any], Quantization]:
    tensors = found.values()
    count = Quantization(method, len(found), sum(t.num_bytes for t in tensors), sum(t.num_elements for t in tensors))
    return {**found}, count


def _is_part(name: str, suffixes: tuple[str, ...], found: dict[str, QuantizedTensor]) -> bool:
    """Whether `name` belongs to a quantized weight (X.weight: X.scales) or to nothing that we compute (X.k_scale)."""
    for suffix in suffixes:
        if not name.endswith(suffix):
            continue
        module = name.removesuffix(suffix)
        if f"{module}weight" in found or f"{module}blocks" in found or suffix in ("k_scale", "v_scale", "q_scale"):
            return True
    return False
