"""Facts about the machine and about checkpoints, for ``fastllm info`` and ``fastllm bench``."""

from __future__ import annotations

from typing import Any

from fastllm import _core
from fastllm.checkpoint.resolve import resolve
from fastllm.memory import available_bytes, format_bytes

_WEIGHTS = (".safetensors", ".bin", ".gguf")


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
        info["peak_int8_gop_s"] = round(limits["int8_ops"] / 1e9, 1)
    return info


def checkpoint_info(model: str | None) -> dict[str, Any]:
    """Architecture, parameters and size of a checkpoint, from its headers."""
    from fastllm import models
    from fastllm.checkpoint import loader
    from fastllm.checkpoint.config import Config

    folder = resolve(model)
    # A folder with no more than a config.json describes a shape, as for load_format="dummy".
    has_weights = folder.is_file() or any(path.suffix in _WEIGHTS for path in folder.iterdir())
    plan = loader.load(folder) if has_weights else None
    if plan is not None:
        spec = plan.spec
    else:
        config = Config.load(folder)
        spec = models.family_of(config).spec(config, None)
    fills = plan.fills if plan is not None else []
    tensors = {id(tensor): tensor for _, tensor in fills}
    return {
        "path": str(folder),
        "architecture": spec.architecture,
        "layers": len(spec.layers),
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "parameters": sum(fill.num_elements for fill, _ in fills) if plan is not None else None,
        "bytes": format_bytes(sum(t.num_bytes for t in tensors.values())) if plan is not None else "no weights here",
        "dtypes": sorted({t.dtype for t in tensors.values()}),
        "quantization": plan.quantization.method if plan is not None and plan.quantization is not None else None,
    }
