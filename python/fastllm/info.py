"""Facts about the machine and about checkpoints, for ``fastllm info`` and ``fastllm bench``."""

from __future__ import annotations

from typing import Any

from fastllm import _core
from fastllm.checkpoint.resolve import resolve
from fastllm.demo import DEMO_MODEL
from fastllm.memory import available_bytes, format_bytes


def machine_info(*, num_threads: int | None = None, measure: bool = True) -> dict[str, Any]:
    """Instruction-set levels, threads and memory; with ``measure`` also read bandwidth (bytes/s) and peak FLOP/s."""
    threads = num_threads or _core.default_num_threads()
    info: dict[str, Any] = {
        "isa": _core.cpu_isa_levels()[-1],
        "isa_levels": _core.cpu_isa_levels(),
        "threads": threads,
        "available_memory": format_bytes(available_bytes()),
    }
    if measure:
        limits = _core.measure_limits(threads)
        info["read_bandwidth_gb_s"] = round(limits["read_bytes_per_s"] / 1e9, 1)
        info["peak_float32_gflop_s"] = round(limits["float32_flops"] / 1e9, 1)
        info["peak_bfloat16_gflop_s"] = round(limits["bfloat16_flops"] / 1e9, 1)
    return info


def checkpoint_info(model: str | None) -> dict[str, Any]:
    """Architecture, parameters and size of a checkpoint, from its headers."""
    from fastllm.checkpoint import loader

    folder = resolve(model or DEMO_MODEL)
    plan = loader.load(folder)
    spec = plan.spec
    tensors = {id(tensor): tensor for _, tensor in plan.fills}
    parameters = sum(fill.num_elements for fill, _ in plan.fills)
    return {
        "path": str(folder),
        "architecture": spec.architecture,
        "layers": len(spec.layers),
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "parameters": parameters,
        "bytes": format_bytes(sum(t.num_bytes for t in tensors.values())),
        "dtypes": sorted({t.dtype for t in tensors.values()}),
        "quantization": plan.quantization.method if plan.quantization is not None else None,
    }
