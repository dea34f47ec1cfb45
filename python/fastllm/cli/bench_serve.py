"""``fastllm bench serve``: the standard workloads against an OpenAI-compatible server, and what its clients saw."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastllm.cli import options
from fastllm.errors import InvalidRequestError

_NEEDS = "fastllm bench serve needs the server extra: pip install 'fastllm-runtime[server]'"


def run(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="A server that runs; one is started if absent.")] = None,
    workload: Annotated[list[str] | None, typer.Option(help="W1 to W5, several; all if absent.")] = None,
    requests: Annotated[int, typer.Option(help="Requests of W1, W5, and each load of W2.", min=1)] = 200,
    concurrency: Annotated[int, typer.Option(help="Clients of the closed loops.", min=1)] = 32,
    slo_ttft: Annotated[float, typer.Option(help="Objective: first token, milliseconds.")] = 1000.0,
    slo_itl: Annotated[float, typer.Option(help="Objective: mean between tokens, milliseconds.")] = 100.0,
    seed: Annotated[int, typer.Option(help="Of the workloads.")] = 0,
    served_model: Annotated[str | None, typer.Option(help="Name in the requests; some servers want one.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="FASTLLM_API_KEY", help="Of the server.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the latencies' distributions to this SVG file.")] = None,
    json_output: options.Json = False,
) -> None:
    """Load a server with the standard workloads; print what clients saw: latencies, throughput, goodput.

    W1 mixed lengths in a closed loop; W2 the same at 30, 60 and 90 % load; W3 100 users with a common prompt; W4 a
    long prompt among 8 streams; W5 30 % of the clients leave. Further arguments are those of the server to start:

    fastllm bench serve --workload W1 -- Qwen/Qwen3-0.6B --max-num-seqs 32
    """
    try:
        from fastllm.bench_serve.client import Target
        from fastllm.bench_serve.plot import svg
        from fastllm.bench_serve.report import Objective
        from fastllm.bench_serve.run import run_all, started_server
        from fastllm.bench_serve.workloads import WORKLOADS
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == "fastllm":
            raise
        raise InvalidRequestError(_NEEDS) from None

    names = [name.upper() for name in workload or WORKLOADS]
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise InvalidRequestError(f"--workload {unknown[0]} is not known; use {', '.join(WORKLOADS)}")
    if url is not None and context.args:
        raise InvalidRequestError(f"{' '.join(context.args)}: are for a server to start, and --url names one")
    progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with contextlib.ExitStack() as stack:
        if url is None:
            url = stack.enter_context(started_server(context.args))
        stack.enter_context(progress)
        task = progress.add_task("asking the server", total=None)
        try:
            summaries, runs = run_all(
                Target(url, api_key=api_key, model=served_model),
                names,
                Objective(slo_ttft / 1e3, slo_itl / 1e3),
                num_requests=requests,
                concurrency=concurrency,
                seed=seed,
                on_stage=lambda text: progress.update(task, description=text),
            )
        except (OSError, ValueError) as error:
            raise InvalidRequestError(f"{url}: {error}") from None
    if plot is not None:
        plot.write_text(svg(runs), encoding="utf-8")
    if json_output:
        print(json.dumps(summaries, indent=2))
        return
    console = Console()
    for summary in summaries:
        _show(console, summary)


def _show(console: Console, summary: dict[str, Any]) -> None:
    ended = ", ".join(f"{count} {name}" for name, count in sorted(summary["outcomes"].items()))
    rates = f"{summary['output_tokens_per_s']:.0f} tokens/s, {summary['requests_per_s']:.1f} requests/s"
    good = f"goodput {summary['goodput_requests_per_s']:.1f} requests/s ({100 * summary['good_share']:.0f} %)"
    lines = f"{summary['workload']}: {summary['text']}\n{ended}; {rates}; {good}"
    console.print(lines, markup=False, highlight=False, soft_wrap=True)
    table = Table()
    for column in ("milliseconds", "p50", "p90", "p95", "p99", "max"):
        table.add_column(column, justify="left" if column == "milliseconds" else "right")
    for group, latencies in summary["groups"].items():
        for name, title in (("ttft_s", "first token"), ("itl_s", "between tokens"), ("e2e_s", "whole request")):
            row = [_ms(value) for value in latencies[name].values()]
            table.add_row(title if group == "all" else f"{group}: {title}", *row)
    console.print(table)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"
