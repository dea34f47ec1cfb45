"""``fastllm eval``: perplexity, distance from an original, tasks, and a gate with an exit code."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastllm.cli import options

_log = logging.getLogger("fastllm")
# Titles of the figures, in the order of the table; (…_original) is shown beside them.
_ROWS = (
    ("ppl", "perplexity", ".4f"),
    ("bits_per_byte", "bits per byte", ".4f"),
    ("kl", "mean KL divergence, nats", ".6f"),
    ("kl_p99", "99th percentile of it", ".6f"),
    ("top1", "same most likely token", ".4f"),
    ("greedy_agreed_mean", "greedy tokens until the first difference", ".1f"),
    ("greedy_identical", "greedy continuations without difference", ".3f"),
    ("acc", "accuracy over all tasks", ".4f"),
    ("choice_acc", "multiple choice", ".4f"),
    ("exact_acc", "exact match", ".4f"),
)
Data = Annotated[Path | None, typer.Option("--data", help='Text, JSONL ("text" or "token_ids"), or token ids as JSON.')]
Tasks = Annotated[Path | None, typer.Option(help="Multiple-choice and exact-match tasks as JSONL.")]
Gate = Annotated[str | None, typer.Option(help='Bounds that decide the exit code: "kl<=0.02,top1>=0.97,ppl<=+1%".')]
Window = Annotated[int | None, typer.Option(help="Tokens of context; the model's longest up to 512 by default.")]
MaxEvalTokens = Annotated[int | None, typer.Option(help="Tokens of the data to predict at most.")]
Plot = Annotated[
    Path | None, typer.Option(help="SVG file for the figures by position, and by layer where there is a report.")
]


def progress_bar(is_quiet: bool) -> Progress:
    """With an estimate of the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    return Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        disable=is_quiet or not sys.stderr.isatty(),
    )  # fmt: skip


class Told:
    """Puts (stage, done, total) on a bar; a new kind of stage starts a new estimate."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)
        self._total = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if total != self._total:
            self._bar.reset(self._task)
            self._total = total
        self._bar.update(self._task, description=stage, completed=done, total=total)


def run(
    model: Annotated[
        str | None, typer.Argument(help='Checkpoint directory or hub id; the demo model if absent or "demo".')
    ] = None,
    against: Annotated[str | None, typer.Option(help="The original, to compare distributions with.")] = None,
    data: Data = None,
    tasks: Tasks = None,
    gate: Gate = None,
    window: Window = None,
    max_tokens: MaxEvalTokens = None,
    greedy: Annotated[int, typer.Option(help="Greedy continuations to follow.", min=0)] = 8,
    greedy_tokens: Annotated[int, typer.Option(help="Tokens of each.", min=1)] = 32,
    plot: Plot = None,
    json_output: options.Json = False,
    quantization: Annotated[
        str | None, typer.Option(help="Of the model under test while it is loaded; as in LLM(quantization=...).")
    ] = None,
    activation_mode: Annotated[str, typer.Option(help="How its activations meet integer weights.")] = "auto",
    kv_cache_dtype: Annotated[str, typer.Option(help="Type of its KV cache.")] = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    memory_budget: options.MemoryBudget = None,
) -> None:
    """Measure a model on your data, alone or against the original that it was made from.

    Exit code 1 if a term of --gate is not kept. The models run through the engine, packed weights included.
    """
    from fastllm.checkpoint.resolve import resolve
    from fastllm.evaluation.run import EvalOptions, evaluate
    from fastllm.quantize.report import modules_of

    wanted = EvalOptions(
        data=data, tasks=tasks, window=window, max_tokens=max_tokens, greedy=greedy, greedy_tokens=greedy_tokens,
        gate=gate, quantization=quantization, activation_mode=activation_mode, kv_cache_dtype=kv_cache_dtype,
        device=device, dtype=dtype, num_threads=threads, memory_budget=memory_budget,
    )  # fmt: skip
    with progress_bar(json_output) as bar:
        found = evaluate(model, wanted, against=against, progress=Told(bar))
    if plot is not None:
        modules = modules_of(resolve(model))
        if not modules:
            _log.warning("%s: by position alone: the model has no quantization report with errors by layer", plot)
        write_plot(plot, found.by_position, modules)
    if json_output:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        show(found.figures, found.gate)
    if found.gate is not None and not found.gate["passed"]:
        raise typer.Exit(1)


def show(figures: dict[str, Any], gate: dict[str, Any] | None) -> None:
    """The figures as a table, then each term of the gate."""
    table = Table(title=f"{figures['tokens']} tokens" if "tokens" in figures else None, title_justify="left")
    table.add_column("")
    table.add_column("model", justify="right")
    has_original = any(name.endswith("_original") for name in figures)
    if has_original:
        table.add_column("original", justify="right")
    for name, title, style in _ROWS:
        if name not in figures:
            continue
        original = figures.get(f"{name}_original")
        cells = [title, format(figures[name], style)]
        table.add_row(*cells, *([("" if original is None else format(original, style))] if has_original else []))
    console = Console()
    console.print(table)
    for term in gate["terms"] if gate is not None else []:
        verdict = "passed" if term["passed"] else f"FAILED by {term['excess']:.4g}"
        line = f"gate {term['term']}: {term['value']:.6g}, limit {term['limit']:.6g}: {verdict}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_plot(path: Path, by_position: list[dict[str, float]], modules: list[dict[str, Any]]) -> None:
    """KL and loss by position in the window; errors of the modules by layer."""
    from fastllm.evaluation.plot import Series, svg

    panels: list[tuple[str, str, list[Series]]] = []
    for title, names in (("KL divergence, nats", ("kl",)), ("loss, nats per token", ("nll", "nll_original"))):
        series: list[Series] = [
            (name, [(row["position"], row[name]) for row in by_position]) for name in names
            if by_position and name in by_position[0]
        ]  # fmt: skip
        if series:
            panels.append((title, "position in the window", series))
    curves: dict[str, list[tuple[float, float]]] = {}
    for module in modules:
        parts = module["name"].split(".")
        layer = next((int(part) for part in parts if part.isdigit()), None)
        if layer is not None and "experts" not in parts:
            curves.setdefault(parts[-1], []).append((layer, module["error"]))
    if curves:
        panels.append(("relative squared error of the output", "layer", list(curves.items())))
    path.write_text(svg(panels), encoding="utf-8")
