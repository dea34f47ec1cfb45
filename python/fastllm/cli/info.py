"""``fastllm info``: what this machine can do, and what a checkpoint is, without loading it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fastllm.cli import options


def run(
    model: options.Model = None,
    json_output: options.Json = False,
    measure: Annotated[bool, typer.Option(help="Measure read bandwidth and peak arithmetic (about 2 s).")] = True,
    threads: options.Threads = None,
) -> None:
    """Show the machine (instruction set, threads, measured limits) and a checkpoint (architecture, size)."""
    from fastllm.info import checkpoint_info, machine_info

    report: dict[str, dict[str, Any]] = {
        "machine": machine_info(num_threads=threads, measure=measure),
        "checkpoint": checkpoint_info(model),
    }
    if json_output:
        print(json.dumps(report, indent=2))
        return
    for title, values in report.items():
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in values.items():
            table.add_row(name, str(value))
        Console().print(table)
