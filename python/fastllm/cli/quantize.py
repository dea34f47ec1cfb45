"""``fastllm quantize``: make a quantized checkpoint, measure what it cost, and let it out only through a gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastllm.cli import evaluate, options


def run(
    model: Annotated[str, typer.Argument(help='Checkpoint directory or hub id; "demo" is the model of the package.')],
    out: Annotated[Path, typer.Argument(help="Directory to make; OUT.partial until it is finished.")],
    method: Annotated[str, typer.Option(help="rtn, gptq, awq, or smoothquant (W8A8).")] = "gptq",
    bits: Annotated[int | None, typer.Option(help="4 or 8; by default 4, with smoothquant 8.")] = None,
    group: Annotated[int | None, typer.Option(help="Columns per scale: 32, 64, 128, or -1 for whole rows.")] = None,
    symmetric: Annotated[
        bool | None, typer.Option("--symmetric/--asymmetric", help="Without or with zero points; by the method.")
    ] = None,
    output_format: Annotated[
        str | None, typer.Option("--format", help="gptq, awq or compressed-tensors; by default that of the method.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(help='By module: "PATTERN=none", "PATTERN=8", "PATTERN=8:32"; several, the last match counts.'),
    ] = None,
    act_order: Annotated[str, typer.Option(help="Of gptq: static, group (with g_idx) or none.")] = "static",
    damp: Annotated[float, typer.Option(help="Of gptq: damping of the Hessian.")] = 0.01,
    data: Annotated[
        Path | None, typer.Option(help="Text, JSONL or token ids to calibrate with; a small default text if absent.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Sequences to calibrate with.")] = 128,
    sample_len: Annotated[int, typer.Option(help="Tokens of each.")] = 256,
    gate: evaluate.Gate = None,
    eval_data: Annotated[
        Path | None, typer.Option(help="What the result is measured on; needed for a gate of distributions.")
    ] = None,
    eval_tasks: Annotated[Path | None, typer.Option(help="Tasks (JSONL) that it is measured on.")] = None,
    window: evaluate.Window = None,
    max_eval_tokens: evaluate.MaxEvalTokens = None,
    max_ram: Annotated[str, typer.Option(help="Memory for statistics, beside one layer in float32.")] = "4GiB",
    torch_device: Annotated[str | None, typer.Option(help='Of torch: "cpu", "cuda"; cuda where there is one.')] = None,
    plot: evaluate.Plot = None,
    json_output: options.Json = False,
) -> None:
    """Quantize a checkpoint, layer by layer, to files that transformers and vLLM load too.

    A killed run goes on when it is started again. With --gate the result appears as OUT only if it keeps every term
    (exit code 0), else as OUT.rejected (exit code 1); quantization_report.json in it says by how much it failed.
    """
    from fastllm.errors import InvalidRequestError
    from fastllm.evaluation.run import EvalOptions
    from fastllm.quantize import quantize

    evaluation = None
    if eval_data is not None or eval_tasks is not None:
        evaluation = EvalOptions(
            data=eval_data, tasks=eval_tasks, window=window, max_tokens=max_eval_tokens, gate=gate, greedy=8
        )
    elif gate is not None:
        raise InvalidRequestError("--gate needs --eval-data or --eval-tasks: what to measure on, unseen in calibration")
    with evaluate.progress_bar(json_output) as bar:
        result = quantize(
            model, out, method=method, bits=bits, group=group, symmetric=symmetric,
            format=output_format, overrides=override or (), act_order=act_order, damp=damp, data=data,
            num_samples=samples, sample_len=sample_len, evaluation=evaluation, max_ram=max_ram, device=torch_device,
            progress=evaluate.Told(bar),
        )  # fmt: skip
    report = result.report
    measured = report["evaluation"] or {}
    if plot is not None:
        evaluate.write_plot(plot, measured.get("by_position", []), report["modules"])
    if json_output:
        print(json.dumps({"path": str(result.path), **report}, indent=2))
    else:
        _show(report)
        if measured:
            evaluate.show(measured["figures"], report["gate"])
        print(result.path)
    if not result.passed:
        raise typer.Exit(1)


def _show(report: dict[str, Any]) -> None:
    summary = report["summary"]
    lines = [
        f"{summary['modules']} modules in {report['seconds']} s: {summary['linear_bytes'] / 1e6:.1f} MB, "
        f"{summary['share_of_bf16']:.3f} of bfloat16; mean relative error {summary['mean_error']:.3g}"
    ]
    if summary["compared_with_rtn"]:
        lines.append(
            f"smaller error than round-to-nearest: {summary['better_than_rtn']} of {summary['compared_with_rtn']}"
        )
    if summary["fallbacks"]:
        names = ", ".join(f"{f['module']} ({f['tokens']} tokens)" for f in summary["fallbacks"][:5])
        lines.append(f"rounded to nearest for want of tokens: {len(summary['fallbacks'])} modules: {names}")
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
