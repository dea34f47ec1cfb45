"""``fastllm bench``: speed of one model on this machine, next to the limits that the same run measured."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastllm.cli import options

DECODE_CONTEXT = 64  # tokens before the decode measurement
# The shape of Qwen3-0.6B, for runs without a checkpoint: random weights, same work.
QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}


def run(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Checkpoint; random weights for a folder with config.json alone, the shape of Qwen3-0.6B if absent.",
        ),
    ] = None,
    prompt_len: Annotated[int, typer.Option(help="Tokens of the prefill measurement.")] = 512,
    decode_len: Annotated[int, typer.Option(help="Tokens of the decode measurement.")] = 32,
    batch: Annotated[int, typer.Option(help="Sequences of the batched decode measurement.")] = 16,
    repeat: Annotated[int, typer.Option(help="Repetitions; medians are printed.")] = 3,
    json_output: options.Json = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    activation_mode: options.ActivationMode = "auto",
    kv_cache_dtype: options.KvCacheDtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Measure prefill and decode on this machine, and the share of its limit that they reach.

    Each is compared with what takes longer at the least: its arithmetic at the peak of each type that it runs in (int8
    for integer weights, unless --activation-mode says otherwise), or reading weights and cache at the bandwidth of the
    memory. Both are measured in the same run, for processors alone. Decode is measured for one stream and for --batch
    of them.
    """
    if context.invoked_subcommand is not None:
        return
    progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("measuring", total=None)
        report = measure(
            model,
            Path(folder),
            prompt_len=prompt_len,
            decode_len=decode_len,
            batch=batch,
            repeat=repeat,
            device=device,
            dtype=dtype,
            quantization=quantization,
            activation_mode=activation_mode,
            kv_cache_dtype=kv_cache_dtype,
            threads=threads,
            on_stage=lambda name: progress.update(task, description=name),
        )
    if json_output:
        print(json.dumps(report, indent=2))
        return
    table = Table(title=f"{report['model']} on {report['backend']}, {report['threads']} threads", title_justify="left")
    for column in ("case", "tokens/s", "ms/step", "achieved", "limit of this machine", "share"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in report["cases"]:
        cells = [row["case"], f"{row['tokens_per_s']:.1f}", f"{row['step_ms']:.2f}"]
        if row["limit"] is not None:
            cells += [f"{row[name]:.1f} {row['unit']}" for name in ("achieved", "limit")]
            cells.append(f"{100 * row['share']:.0f} %")
        table.add_row(*cells)
    Console().print(table)


def measure(
    model: str | None,
    scratch: Path,
    *,
    prompt_len: int,
    decode_len: int,
    batch: int,
    repeat: int,
    device: str,
    dtype: str,
    quantization: str | None,
    activation_mode: str,
    kv_cache_dtype: str,
    threads: int | None,
    on_stage: Any,
) -> dict[str, Any]:
    """Runs the cases and returns them as plain data. Shares are of the limits measured in the same run."""
    from fastllm import LLM, _core

    load_format, name = "auto", model
    if model is None:
        (scratch / "config.json").write_text(json.dumps(QWEN3_0_6B))
        model, name = str(scratch), "random weights, Qwen3-0.6B shape"
        load_format = "dummy"
    elif Path(model).is_dir() and not any(Path(model).glob("*.safetensors")):
        load_format, name = "dummy", f"random weights, shape of {model}"
    on_stage("loading")
    length = max(prompt_len, DECODE_CONTEXT) + decode_len + 16
    with LLM(
        model,
        load_format=load_format,
        device=device,
        dtype=dtype,
        quantization=quantization,
        activation_mode=activation_mode,
        kv_cache_dtype=kv_cache_dtype,
        num_threads=threads,
        max_model_len=length,
        max_num_seqs=batch,
        max_num_batched_tokens=max(prompt_len, batch),
        enable_prefix_caching=False,
    ) as llm:
        info = llm.info()
        work = llm.work_per_token()
        on_stage("limits of this machine")
        is_processor = info["device"] in ("cpu", "reference")
        limits = _core.measure_limits(info["num_threads"], info["isa"]) if is_processor else None
        cases = []

        on_stage("prefill")
        seconds = _median(repeat, lambda i: _time_prefill(llm, prompt_len, i))
        ops = _total((work.layer_ops, prompt_len), (work.head_ops, 1), (work.pair_ops, prompt_len**2 / 2))
        read = work.weight_bytes + work.kv_bytes * prompt_len
        cases.append(_case(f"prefill {prompt_len}", prompt_len, seconds, ops, read, limits))

        on_stage("decode")
        for streams in (1, batch):
            seconds = _median(repeat, partial(_time_decode, llm, streams, decode_len))
            seen = streams * (DECODE_CONTEXT + decode_len / 2)
            ops = _total((work.layer_ops, streams), (work.head_ops, streams), (work.pair_ops, seen))
            read = work.weight_bytes + work.kv_bytes * seen
            cases.append(_case(f"decode {streams} x ctx {DECODE_CONTEXT}", streams, seconds, ops, read, limits))
    return {
        "model": name,
        "backend": info["backend"],
        "threads": info["num_threads"],
        "weights": info["weights"],
        "activation_mode": info["activation_mode"],
        "kv_cache_dtype": info["kv_cache_dtype"],
        "limits": limits,
        "cases": cases,
    }


def _total(*parts: tuple[Mapping[str, float], float]) -> dict[str, float]:
    """Operations by arithmetic, so many times each."""
    total: dict[str, float] = {}
    for ops, times in parts:
        for arithmetic, count in ops.items():
            total[arithmetic] = total.get(arithmetic, 0.0) + count * times
    return total


def _case(
    name: str, tokens: int, seconds: float, ops: Mapping[str, float], read: float, limits: Mapping[str, float] | None
) -> dict[str, Any]:
    """`ops` and `read`: operations and bytes of what took `seconds`."""
    case: dict[str, Any] = {"case": name, "tokens_per_s": tokens / seconds, "step_ms": seconds * 1e3}
    if limits is None:
        return {**case, "achieved": None, "limit": None, "unit": None, "share": None}
    peaks = {
        "float32": limits["float32_flops"], "bfloat16": limits["bfloat16_flops"], "int8": limits["int8_ops"],
        "int8x2": limits["int8_ops"] / 2,
    }  # fmt: skip
    computing = sum(count / peaks[arithmetic] for arithmetic, count in ops.items())
    reading = read / limits["read_bytes_per_s"]
    work, least, unit = (sum(ops.values()), computing, "Gop/s") if computing > reading else (read, reading, "GB/s")
    return {
        **case, "achieved": work / seconds / 1e9, "limit": work / least / 1e9, "unit": unit, "share": least / seconds,
    }  # fmt: skip


def _median(repeat: int, once: Callable[[int], float]) -> float:
    once(-1)  # warm-up: touches pages of weights and cache
    return statistics.median(once(i) for i in range(repeat))


def _ids(count: int, salt: int) -> list[int]:
    return [(i * 7919 + salt * 104729) % 997 + 3 for i in range(count)]


def _time_prefill(llm: Any, prompt_len: int, salt: int) -> float:
    from fastllm import SamplingParams

    start = time.perf_counter()
    llm.generate(
        [_ids(prompt_len, salt)], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    )
    return time.perf_counter() - start


def _time_decode(llm: Any, streams: int, decode_len: int, salt: int) -> float:
    """Seconds of one decode step: the difference of a long and a short generation over the same prompts."""
    from fastllm import SamplingParams

    prompts = [_ids(DECODE_CONTEXT, salt * 64 + i) for i in range(streams)]
    seconds = []
    for count in (2, 2 + decode_len):
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        llm.generate(prompts, params)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / decode_len
