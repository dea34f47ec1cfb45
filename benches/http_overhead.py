"""What HTTP costs: the same work by `LLM.generate` and by as many streams through `fastllm serve`, interleaved.

    python benches/http_overhead.py                                  # the demo model
    python benches/http_overhead.py --model DIR --max-tokens 64      # e.g. a shape written by benches/shapes.py

A model without a tokenizer gets a made-up one of the size of its vocabulary, so that there is text to decode.

Both have an engine of their own, of which one works at a time. Client, server and engine share the machine's cores.
Besides tokens per second it prints the server's CPU time per token outside of the engine's threads, and the client's:
on a noisy machine those are steadier than the rates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shapes import missing_tokenizer

from fastllm import LLM, SamplingParams
from fastllm.bench_serve.client import Target, drive
from fastllm.bench_serve.workloads import Planned, Workload

NATIVE_THREADS = ("fastllm-engine", "fastllm-worker")


def cpu_seconds(pid: int) -> dict[str, float]:
    """CPU time of a process so far, in the engine's threads and in all others."""
    found = {"engine": 0.0, "python": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
        found["engine" if name in NATIVE_THREADS else "python"] += seconds
    return found


def start_server(model: str | None, options: list[str]) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "fastllm", "serve", *([model] if model else []), "--port", "0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    seen = ""
    for line in server.stderr:
        seen += line
        if match := re.search(r"^curl (http://\S+)/v1", line):
            return server, match[1]
    raise SystemExit(f"the server did not start:\n{seen}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    length = args.prompt_tokens + args.max_tokens + 1
    engine = {"max_model_len": length, "max_num_seqs": args.streams, "enable_prefix_caching": False}
    options = [f"--max-model-len={length}", f"--max-num-seqs={args.streams}", "--no-enable-prefix-caching"]
    rng = random.Random(0)
    requests = [
        Planned([rng.randint(40, 250) for _ in range(args.prompt_tokens)], args.max_tokens) for _ in range(args.streams)
    ]
    workload = Workload("streams", "all at once", requests, args.streams)
    prompts = [request.prompt for request in requests]
    params = SamplingParams(temperature=0, max_tokens=args.max_tokens, ignore_eos=True)
    num_tokens = args.streams * args.max_tokens
    scratch = tempfile.TemporaryDirectory()
    if (tokenizer := missing_tokenizer(args.model, scratch.name)) is not None:
        engine["tokenizer"] = tokenizer
        options.append(f"--tokenizer={tokenizer}")
    server, url = start_server(args.model, [*options, "--disable-log-requests"])
    rates: dict[str, list[float]] = {"server": [], "generate": []}
    cpu_us: dict[str, list[float]] = {"server_python": [], "client": [], "generate_python": []}
    try:
        with LLM(args.model, **engine) as llm:
            target = Target(url)
            for i in range(args.rounds + 1):  # the first is not counted
                before, client = cpu_seconds(server.pid), time.process_time()
                begin = time.perf_counter()
                records = asyncio.run(drive(target, workload))
                seconds = time.perf_counter() - begin
                client = time.process_time() - client
                after = cpu_seconds(server.pid)
                assert all(r.outcome == "ok" and r.num_tokens == args.max_tokens for r in records)
                own = cpu_seconds(os.getpid())["python"]
                begin = time.perf_counter()
                llm.generate(prompts, params)
                generate_seconds = time.perf_counter() - begin
                own = cpu_seconds(os.getpid())["python"] - own
                if i == 0:
                    continue
                rates["server"].append(num_tokens / seconds)
                rates["generate"].append(num_tokens / generate_seconds)
                cpu_us["server_python"].append((after["python"] - before["python"]) / num_tokens * 1e6)
                cpu_us["client"].append(client / num_tokens * 1e6)
                cpu_us["generate_python"].append(own / num_tokens * 1e6)
    finally:
        server.terminate()
        server.wait(30)
        scratch.cleanup()
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(
        json.dumps(
            {
                "tokens_per_s": {name: [round(value) for value in values] for name, values in rates.items()},
                "ratio_of_medians": round(median["server"] / median["generate"], 3),
                "ratios": [round(s / g, 3) for s, g in zip(rates["server"], rates["generate"], strict=True)],
                "cpu_us_per_token": {name: round(statistics.median(values), 1) for name, values in cpu_us.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
