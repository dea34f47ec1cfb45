"""Making quantized checkpoints: round to nearest, GPTQ, AWQ, SmoothQuant. Needs torch: the extra [quantize]."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastllm.errors import InvalidRequestError

if TYPE_CHECKING:
    from fastllm.evaluation.run import EvalOptions

NEEDS_TORCH = "fastllm quantize needs torch: pip install 'fastllm-runtime[quantize]'"


@dataclasses.dataclass(frozen=True, slots=True)
class QuantizationResult:
    """Attributes:
    path: where the checkpoint is: ``out``, or ``out.rejected`` if the gate was not passed.
    passed: False if a gate was asked for and not passed.
    report: what ``quantization_report.json`` in it says.
    """

    path: Path
    passed: bool
    report: dict[str, Any]


def quantize(
    model: str | Path | None,
    out: str | Path,
    *,
    method: str = "gptq",
    bits: int | None = None,
    group: int | None = None,
    symmetric: bool | None = None,
    format: str | None = None,
    overrides: Sequence[str] = (),
    act_order: str = "static",
    damp: float = 0.01,
    data: str | Path | None = None,
    num_samples: int = 128,
    sample_len: int = 256,
    evaluation: EvalOptions | None = None,
    max_ram: int | str = "4GiB",
    device: str | None = None,
    revision: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> QuantizationResult:
    """Makes a quantized checkpoint that fastllm, transformers and vLLM load.

    A process that was killed goes on where it was when it is started again with the same arguments: until it is
    finished, the work is in ``out.partial``.

    Args:
        model: checkpoint directory or hub id, unquantized safetensors; None and ``"demo"`` are the demo model.
        out: directory to make; must not exist.
        method: ``"rtn"`` (needs no data), ``"gptq"``, ``"awq"``, or ``"smoothquant"`` (W8A8: activations in 8 bits).
        bits: 4 or 8; None: 4, with smoothquant 8.
        group: columns that share a scale: 32, 64, 128, or -1 for whole rows; None: 128, with smoothquant -1.
        symmetric: no zero points; None: True, with awq False.
        format: ``"gptq"``, ``"awq"`` or ``"compressed-tensors"``; None: the one of the method.
        overrides: exceptions by module, ``"PATTERN=none"``, ``"PATTERN=8"``, ``"PATTERN=8:32"``; the last match counts,
            and a pattern that matches no module is refused. ``lm_head`` stays in float unless a pattern names it.
        act_order: of gptq: ``"static"`` (columns by importance, groups in place), ``"group"`` (groups by importance,
            with ``g_idx``), ``"none"``.
        damp: of gptq: share of the mean of the Hessian's diagonal that is added to it.
        data: text, JSONL or token ids to calibrate with; None: the small text of the package.
        num_samples: sequences of it; sample_len: tokens of each.
        evaluation: what to measure against the original when it is made, and the gate to pass; None: nothing.
        max_ram: memory for statistics of the inputs and what is made of them (docs/quantization.md says beside what).
        device: of torch; None: ``"cuda"`` where torch has it.
        revision: of a hub id.
        progress: is told (stage, done, total).

    Raises:
        InvalidRequestError: an argument is wrong, torch is missing, or ``out`` exists.
        CheckpointError, UnsupportedModelError: the model cannot be read, or is quantized already.
        OutOfMemoryError: ``max_ram`` does not hold the statistics of one matrix; the message says what it needs.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InvalidRequestError(NEEDS_TORCH) from None
    from fastllm.memory import parse_bytes
    from fastllm.quantize.run import run
    from fastllm.quantize.settings import make_settings

    settings = make_settings(
        method, bits=bits, group=group, symmetric=symmetric, layout=format, overrides=overrides, act_order=act_order,
        damp=damp, num_samples=num_samples, sample_len=sample_len,
    )  # fmt: skip
    report = run(
        model, Path(out), settings, data=None if data is None else Path(data), evaluation=evaluation,
        max_ram=parse_bytes(max_ram), device=device, revision=revision,
        progress=progress or (lambda stage, done, total: None),
    )  # fmt: skip
    gate = report["gate"]
    return QuantizationResult(Path(report["path"]), gate is None or bool(gate["passed"]), report)
