"""fastllm beside its peers: the same random weights, the same work, interleaved in one run.

    python benches/compare.py --shape qwen3-0.6b --work DIR \\
        --env transformers=PYTHON --env llama_cpp=PYTHON --env openvino=PYTHON --env vllm=PYTHON

Each peer lives in an environment of its own (benches/README.md makes them). One that has none is listed as missing. All
peers are loaded once and stopped (SIGSTOP) while another one is measured; each round measures every case on every peer,
so that a slow minute of a shared machine hits all of them. Printed are medians over the rounds and the spread, the
ratio of the best fastllm variant to the best peer, peak memory, the time from the start of the process to the first
token (with the model's files out of the page cache, and in it), and the limits of the machine, measured in the same
rounds. --quick takes a small shape and short cases: whether everything works, in a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shapes

WORKERS = Path(__file__).parent / "workers"


@dataclass
class Variant:
    """One engine with one set of settings."""

    name: str
    peer: str  # which environment runs it: the name before "=" of --env
    arguments: list[str]
    times: dict[str, list[float]] = field(default_factory=dict)
    problem: str | None = None
    process: subprocess.Popen[str] | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def start(self, python: str, log: Path) -> None:
        """Twice: from a cold page cache, and from a warm one, which stays."""
        _forget(Path(self.arguments[0]))
        cold = self._launch(python, log)
        if self.problem is not None:
            return
        self.stop()
        warm = self._launch(python, log)
        if self.problem is None:
            self.report |= {"first_token_cold_s": cold, "first_token_s": warm}
            self.pause()

    def prepare(self, python: str, log: Path) -> None:
        """A start that is not counted: it writes the packed cache."""
        self._launch(python, log)
        self.stop()

    def _launch(self, python: str, log: Path) -> float:
        begin = time.perf_counter()
        script = str(WORKERS / f"{self.peer}_worker.py")
        self.process = subprocess.Popen(
            [python, script, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            start_new_session=True,  # signals below are for its children too
        )
        self.report = self._answer()
        if self.problem is None:
            self.ask({"op": "prefill", "prompt": [7] * 8})
        return time.perf_counter() - begin

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process is not None and self.process.stdin is not None
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def pause(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def stop(self) -> None:
        if self.process is None:
            return
        if self.problem is None:
            self.report.update(self.ask({"op": "exit"}))
        with contextlib.suppress(ProcessLookupError):  # it has ended as it was asked to
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.problem = f"ended with {self.process.wait()}; see its log"
            return {}
        answer: dict[str, Any] = json.loads(line)
        return answer


def _forget(model: Path) -> None:
    """Takes the files of a model out of the page cache, as far as the kernel agrees."""
    files = model.rglob("*") if model.is_dir() else [model]
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Case:
    name: str
    streams: int
    context: int
    tokens: int  # of the prompt of a prefill, of the steps of a decode

    def request(self, vocab: int, salt: int) -> dict[str, Any]:
        prompts = [
            [(i * 7919 + (salt * 64 + s) * 104729) % (vocab - 3) + 3 for i in range(self.context or self.tokens)]
            for s in range(self.streams)
        ]
        if self.context == 0:
            return {"op": "prefill", "prompt": prompts[0]}
        return {"op": "decode", "prompts": prompts, "steps": self.tokens}

    def tokens_per_s(self, seconds: float) -> float:
        return (self.tokens if self.context == 0 else self.streams) / seconds


CASES = [
    Case("prefill 512", 1, 0, 512),
    Case("prefill 2048", 1, 0, 2048),
    Case("decode 1 @ 16", 1, 16, 32),
    Case("decode 1 @ 512", 1, 512, 32),
    Case("decode 1 @ 2048", 1, 2048, 32),
    Case("decode 16 @ 128", 16, 128, 32),
    Case("decode 32 @ 128", 32, 128, 32),
]
QUICK_CASES = [Case("prefill 64", 1, 0, 64), Case("decode 1 @ 16", 1, 16, 8), Case("decode 4 @ 16", 4, 16, 8)]


def variants(work: Path, threads: int, environments: dict[str, str], wanted: set[str]) -> list[Variant]:
    folder = str(work)
    packed = str(work / "packed")

    def fastllm(name: str, **options: Any) -> Variant:
        return Variant(name, "fastllm", [folder, json.dumps({"num_threads": threads, **options})])

    found = [
        fastllm("fastllm bf16"),
        fastllm("fastllm int8", quantization="int8", packed_cache=packed),
        fastllm("fastllm int4", quantization="int4", packed_cache=packed),
        fastllm("fastllm int4, int8 KV", quantization="int4", kv_cache_dtype="int8", packed_cache=packed),
        Variant("transformers bf16", "transformers", [folder, json.dumps({"dtype": "bfloat16", "threads": threads})]),
    ]
    for kind in ("BF16", "Q8_0", "Q4_0", "Q4_K_M"):
        for flash in (True, False):
            options = json.dumps({"threads": threads, "flash": flash})
            name = f"llama.cpp {kind}" + ("" if flash else " no flash")
            found.append(Variant(name, "llama_cpp", [f"{folder}/{kind}.gguf", options]))
    for kind in ("int8", "int4"):
        found.append(
            Variant(f"OpenVINO {kind}", "openvino", [f"{folder}/openvino-{kind}", json.dumps({"threads": threads})])
        )
    found.append(Variant("vLLM bf16", "vllm", [folder, json.dumps({"dtype": "bfloat16"})]))
    found = [v for v in found if not wanted or v.name in wanted]
    for variant in found:
        if variant.peer not in environments:
            variant.problem = "missing: no environment given"
    return found


def convert(variant: Variant, work: Path, environments: dict[str, str], log: Path) -> None:
    """Makes the files that are read instead of the checkpoint, once."""
    target = Path(variant.arguments[0])
    python = environments[variant.peer]
    if variant.peer == "fastllm":
        variant.prepare(python, log)
    elif target.exists():
        return
    elif variant.peer == "llama_cpp":
        for kind in dict.fromkeys(("BF16", target.stem)):
            command = [python, str(WORKERS / "llama_cpp_convert.py"), str(work), str(work / f"{kind}.gguf"), kind]
            if not (work / f"{kind}.gguf").exists():
                _run(variant, command, log)
    else:
        kind = target.name.removeprefix("openvino-")
        _run(variant, [python, str(WORKERS / "openvino_export.py"), str(work), str(target), kind], log)


def _run(variant: Variant, command: list[str], log: Path) -> None:
    with log.open("w") as file:
        if subprocess.run(command, stdout=file, stderr=file, check=False).returncode != 0:
            variant.problem = f"conversion failed; see {log.name}"


def measure(live: list[Variant], cases: list[Case], rounds: int, vocab: int, threads: int) -> list[dict[str, float]]:
    from rich.console import Console
    from rich.progress import Progress

    from fastllm import _core

    limits = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=rounds * len(live) * len(cases))
        for round_ in range(rounds):
            limits.append(dict(_core.measure_limits(threads)))
            for case in cases:
                for variant in live:
                    progress.update(task, description=f"round {round_ + 1}: {variant.name}, {case.name}")
                    if variant.problem is None:
                        answer = variant.ask(case.request(vocab, round_))
                        if variant.problem is None:
                            variant.pause()
                            variant.times.setdefault(case.name, []).append(answer["seconds"])
                    progress.advance(task)
    return limits


def summary(
    all_variants: list[Variant], cases: list[Case], limits: list[dict[str, float]], shape: str
) -> dict[str, Any]:
    rows = []
    for variant in all_variants:
        row: dict[str, Any] = {"name": variant.name, "problem": variant.problem, **variant.report, "cases": {}}
        for case in cases:
            rates = sorted(case.tokens_per_s(s) for s in variant.times.get(case.name, ()))
            if rates:
                row["cases"][case.name] = {
                    "median": statistics.median(rates),
                    "lowest": rates[0],
                    "highest": rates[-1],
                }
        rows.append(row)
    ratios = {}
    for case in cases:
        medians = {row["name"]: row["cases"][case.name]["median"] for row in rows if case.name in row["cases"]}
        ours = {name: value for name, value in medians.items() if name.startswith("fastllm")}
        peers = {name: value for name, value in medians.items() if name not in ours}
        if ours and peers:
            best, peer = max(ours, key=ours.__getitem__), max(peers, key=peers.__getitem__)
            ratios[case.name] = {"fastllm": best, "peer": peer, "ratio": ours[best] / peers[peer]}
    return {
        "shape": shape,
        "ratios": ratios,
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "limits": {key: statistics.median(entry[key] for entry in limits) for key in limits[0]} if limits else {},
        "variants": rows,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def print_tables(result: dict[str, Any], cases: list[Case]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['shape']}, tokens/s: median (lowest-highest)", title_justify="left")
    table.add_column("engine")
    for case in cases:
        table.add_column(case.name, justify="right")
    table.add_column("first token s, cold / warm", justify="right")
    table.add_column("peak MiB", justify="right")
    for row in result["variants"]:
        if row["problem"] is not None:
            table.add_row(row["name"], row["problem"])
            continue
        cells = [
            f"{c['median']:.1f} ({c['lowest']:.0f}-{c['highest']:.0f})" if (c := row["cases"].get(case.name)) else "-"
            for case in cases
        ]
        start = f"{row['first_token_cold_s']:.1f} / {row['first_token_s']:.1f}"
        table.add_row(row["name"], *cells, start, f"{row.get('peak_rss', 0) / 2**20:.0f}")
    console = Console(width=220)
    console.print(table)
    for name, ratio in result["ratios"].items():
        console.print(f"{name}: {ratio['fastllm']} / {ratio['peer']} = {ratio['ratio']:.2f}")
    console.print({name: f"{value / 1e9:.1f} G" for name, value in result["limits"].items()})


def plot(result: dict[str, Any], cases: list[Case], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in result["variants"] if row["cases"]]
    size = (3 * len(cases) + 2, 0.35 * len(rows) + 1.5)
    figure, grid = plt.subplots(1, len(cases), figsize=size, sharey=True, squeeze=False)
    axes = grid[0]
    for axis, case in zip(axes, cases, strict=True):
        values = [row["cases"].get(case.name, {}).get("median", 0) for row in rows]
        colours = ["tab:orange" if row["name"].startswith("fastllm") else "tab:blue" for row in rows]
        axis.barh([row["name"] for row in rows], values, color=colours)
        axis.set_title(case.name)
        axis.set_xlabel("tokens/s")
    axes[0].invert_yaxis()
    figure.suptitle(f"{result['shape']}, {result['machine']['processor']}, {result['date']}")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(shapes.SHAPES), default="qwen3-0.6b")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints, several GB; reused")
    parser.add_argument("--env", action="append", default=[], metavar="PEER=PYTHON", help="interpreter of a peer")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="these variants only")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="these cases only")
    parser.add_argument("--quick", action="store_true", help="a small shape, short cases, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the figures here, and a plot beside it (.svg)")
    arguments = parser.parse_args()

    environments = {"fastllm": sys.executable, **dict(entry.split("=", 1) for entry in arguments.env)}
    if arguments.quick:
        arguments.shape, arguments.rounds = shapes.QUICK, 1
    work = arguments.work / arguments.shape
    shapes.write_checkpoint(arguments.shape, work)
    all_cases = QUICK_CASES if arguments.quick else CASES
    cases = [case for case in all_cases if not arguments.case or case.name in arguments.case]
    found = variants(work, arguments.threads, environments, set(arguments.only))
    limits: list[dict[str, float]] = []
    try:
        for variant in found:
            log = work / f"{variant.name.replace(' ', '-').replace(',', '')}.log"
            if variant.problem is None and variant.peer in ("fastllm", "llama_cpp", "openvino"):
                convert(variant, work, environments, log)
            if variant.problem is None:
                print(f"loading {variant.name}", file=sys.stderr)
                variant.start(environments[variant.peer], log)
        live = [variant for variant in found if variant.problem is None]
        vocab = shapes.SHAPES[arguments.shape]["vocab_size"]
        limits = measure(live, cases, arguments.rounds, vocab, arguments.threads)
    finally:
        for variant in found:
            variant.stop()
    result = summary(found, cases, limits, arguments.shape)
    print_tables(result, cases)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        plot(result, cases, arguments.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()
