"""Runs workloads against a server, one that is there or one started for the run, and gathers the report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastllm.bench_serve.client import Record, Target, drive, fetch
from fastllm.bench_serve.report import Objective, summarize
from fastllm.bench_serve.workloads import WORKLOADS, Sizes, Workload
from fastllm.errors import FastLLMError

_LISTENS = re.compile(r"curl (http://\S+?)/v1/completions")


@contextlib.contextmanager
def started_server(options: Sequence[str]) -> Iterator[str]:
    """The URL of a ``fastllm serve`` with these options, on a free port; ended afterwards."""
    command = [sys.executable, "-m", "fastllm", "serve", "--port", "0", "--disable-log-requests", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if match := _LISTENS.match(line):
                break
        else:
            raise FastLLMError(f"the server did not start: {''.join(lines)[-2000:]}")
        # What it has to say from here on goes nowhere, and must not fill the pipe.
        with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=process.stderr):
            process.stderr.close()
            try:
                yield match[1]
            finally:
                process.terminate()
                process.wait(40)
    finally:
        process.kill()
        process.wait()


async def context_length(target: Target) -> int:
    """What the server says of its model in GET /v1/models (max_model_len is vLLM's extension)."""
    models = json.loads(await fetch(target, "/v1/models"))
    return int(models["data"][0].get("max_model_len") or 4096)


async def measure(
    target: Target,
    names: Sequence[str],
    objective: Objective,
    *,
    num_requests: int,
    concurrency: int,
    seed: int,
    on_stage: Callable[[str], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], list[tuple[str, list[Record]]]]:
    """Summaries and records of each workload. W2 needs the server's capacity: a closed loop measures it first."""
    sizes = Sizes(await context_length(target), num_requests, concurrency, seed)
    summaries, runs = [], []

    async def run(workload: Workload) -> list[Record]:
        on_stage(f"{workload.name}: {workload.text}")
        return await drive(target, workload)

    for name in names:
        if name == "W2":
            full = await run(WORKLOADS["W1"](sizes)[0])
            seconds = max(record.ended for record in full) - min(record.sent for record in full)
            sizes = Sizes(sizes.max_model_len, num_requests, concurrency, seed, len(full) / seconds)
        for workload in WORKLOADS[name](sizes):
            records = await run(workload)
            summaries.append(summarize(workload, records, objective))
            runs.append((workload.name, records))
    return summaries, runs


def run_all(target: Target, names: Sequence[str], objective: Objective, **options: Any) -> Any:
    """``measure`` from outside an event loop."""
    return asyncio.run(measure(target, names, objective, **options))
