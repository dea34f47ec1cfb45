"""What others take for the cases of the programs here: torch, flashinfer and transformers on the same GPU.

    python benches/cuda/compare.py [--ours DIR] [--json FILE] [--only NAME ...] [--device cpu]

Each needs what it is made of; what is not there, or fails, is listed with the reason, and the others go on. --ours is a
folder with the JSON files of bench_*: their times are printed in a column beside. --device cpu runs small sizes on the
processor, to see that this script works: those times say nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

HEADS, KV_HEADS, DIM = 32, 8, 128  # of a layer of Llama 3 8B
SAMPLES = 9
SAMPLE_SECONDS = 0.03


class Clock:
    """Times calls as the programs do: a graph of calls that rotate over inputs, replayed, the median of samples."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.is_gpu = device == "cuda"

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, calls: list[Callable[[], Any]]) -> float:
        def plain() -> None:
            for call in calls:
                call()

        plain()
        plain()
        self.wait()
        replay = plain
        if self.is_gpu:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                plain()
            replay = graph.replay
        return self.host_seconds(replay) / len(calls)

    def host_seconds(self, call: Callable[[], Any]) -> float:
        def once(times: int) -> float:
            begin = time.perf_counter()
            for _ in range(times):
                call()
            self.wait()
            return (time.perf_counter() - begin) / times

        if not self.is_gpu:
            return once(1)
        times = max(1, int(SAMPLE_SECONDS / max(once(3), 1e-6)))
        return statistics.median(once(times) for _ in range(SAMPLES))


Rows = dict[str, float]  # our name of the case -> seconds


def random(clock: Clock, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=clock.device, dtype=torch.bfloat16)


def attention_cases(clock: Clock) -> list[tuple[str, int, int, int]]:
    """(our name, sequences, context, new tokens of each)"""
    if not clock.is_gpu:
        return [("decode 2 x 64, bfloat16 K/V", 2, 64, 1), ("causal prefill of 64, bfloat16 K/V", 1, 64, 64)]
    decode = [(f"decode {s} x {n}, bfloat16 K/V", s, n, 1) for s, n in ((64, 8192), (64, 1024), (1, 8192))]
    return [*decode, ("causal prefill of 16384, bfloat16 K/V", 1, 16384, 16384)]


def sdpa(clock: Clock, backend: str) -> Rows:
    """torch's attention on contiguous keys and values: no pages to look up."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rows = {}
    for name, seqs, context, new in attention_cases(clock):
        sets = 1 if new > 1 or seqs * context > 65536 else 16
        keys = [
            (random(clock, seqs, KV_HEADS, context, DIM), random(clock, seqs, KV_HEADS, context, DIM))
            for _ in range(sets)
        ]
        q = random(clock, seqs, HEADS, new, DIM)

        def call(k: torch.Tensor, v: torch.Tensor, q: torch.Tensor = q, is_causal: bool = new > 1) -> torch.Tensor:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)

        chosen = SDPBackend[backend] if clock.is_gpu else SDPBackend.MATH
        with sdpa_kernel(chosen):
            rows[name] = clock.seconds([lambda k=k, v=v: call(k, v) for k, v in keys])
        del keys
    return rows


def flashinfer_attention(clock: Clock) -> Rows:
    import flashinfer

    if not clock.is_gpu:
        raise RuntimeError("needs a GPU")
    page = 16
    rows = {}
    for name, seqs, context, new in attention_cases(clock):
        pages = seqs * context // page
        sets = max(1, min(16, 32768 // pages)) if new == 1 else 1
        cache = random(clock, sets * pages, 2, KV_HEADS, page, DIM)
        order = torch.randperm(sets * pages, device=clock.device, dtype=torch.int32)
        workspace = torch.empty(256 << 20, dtype=torch.uint8, device=clock.device)
        starts = torch.arange(seqs + 1, device=clock.device, dtype=torch.int32)
        last = torch.full((seqs,), page, device=clock.device, dtype=torch.int32)
        q = random(clock, seqs * new, HEADS, DIM)
        calls = []
        for i in range(sets):
            ids = order[i * pages : (i + 1) * pages]
            if new == 1:
                one = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
                one.plan(starts * (context // page), ids, last, HEADS, KV_HEADS, DIM, page, q_data_type=q.dtype)
            else:
                one = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
                one.plan(starts * new, starts * (context // page), ids, last, HEADS, KV_HEADS, DIM, page, causal=True)
            if i > 0:  # plans lie in the workspace: a wrapper of its own for each
                workspace = torch.empty_like(workspace)
            calls.append(lambda one=one, q=q, cache=cache: one.run(q, cache))
        rows[name] = clock.seconds(calls)
    return rows


def gemm_cases(clock: Clock) -> tuple[int, int, list[int]]:
    return (28672, 4096, [1, 16, 64, 1024, 4096]) if clock.is_gpu else (256, 256, [1, 16])


def matmul(clock: Clock) -> Rows:
    """torch's bf16 product: cuBLASLt, which we leave out (docs/cuda.md)."""
    n, k, counts = gemm_cases(clock)
    weights = [random(clock, n, k) for _ in range(4)]
    rows = {}
    for m in counts:
        x = random(clock, m, k)
        rows[f"bf16 {n} x {k}, M = {m}"] = clock.seconds([lambda w=w, x=x: functional.linear(x, w) for w in weights])
    return rows


def int4pack(clock: Clock) -> Rows:
    n, k, counts = gemm_cases(clock)
    if not clock.is_gpu:
        raise RuntimeError("its layout on the processor is another one")
    codes = torch.randint(0, 256, (n, k // 2), device=clock.device, dtype=torch.uint8)
    weights = [torch._convert_weight_to_int4pack(codes, 8) for _ in range(4)]
    scales = torch.full((k // 128, n, 2), 0.01, device=clock.device, dtype=torch.bfloat16)
    rows = {}
    for m in counts:
        x = random(clock, m, k)
        calls = [lambda w=w, x=x: torch.ops.aten._weight_int4pack_mm(x, w, 128, scales) for w in weights]
        rows[f"int4 {n} x {k}, M = {m}"] = clock.seconds(calls)
    return rows


def grouped_mm(clock: Clock) -> Rows:
    """Both products of the experts and what is between them, on rows that are sorted already; nothing is combined."""
    experts, hidden, ffn, chosen = (128, 2048, 768, 8) if clock.is_gpu else (8, 256, 128, 2)
    up, down = random(clock, experts, hidden, 2 * ffn), random(clock, experts, ffn, hidden)
    rows = {}
    for tokens in (1, 64, 4096) if clock.is_gpu else (1, 8):
        picks = torch.rand(tokens, experts).topk(chosen, dim=1).indices.flatten()
        ends = torch.bincount(picks, minlength=experts).cumsum(0).to(device=clock.device, dtype=torch.int32)
        x = random(clock, tokens * chosen, hidden)

        def call(x: torch.Tensor = x, ends: torch.Tensor = ends) -> torch.Tensor:
            gate, value = torch._grouped_mm(x, up, offs=ends).chunk(2, dim=1)
            return torch._grouped_mm(functional.silu(gate) * value, down, offs=ends)

        rows[f"bf16 experts, T = {tokens}"] = clock.seconds([call])
    return rows


def transformers_step(clock: Clock) -> Rows:
    """generate() of a Llama of the same shape with random weights, a static cache and its compiled forward pass."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = (
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
        if clock.is_gpu
        else {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 256}
    )
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8} if clock.is_gpu else {"num_attention_heads": 2}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=8192)
    with torch.device(clock.device):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    context, new = (1024, 64) if clock.is_gpu else (16, 4)
    prompt = torch.randint(0, 256, (1, context), device=clock.device)
    options = {"do_sample": False, "cache_implementation": "static", "pad_token_id": 0, "eos_token_id": None}

    def generate(count: int) -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, min_new_tokens=count, **options
            )
        clock.wait()
        return time.perf_counter() - begin

    generate(2 * new)  # compiles
    generate(new)
    seconds = statistics.median(generate(2 * new) - generate(new) for _ in range(3 if clock.is_gpu else 1))
    return {"bf16, with sampling": seconds / new}


SECTIONS: dict[str, Callable[[Clock], Rows]] = {
    "torch sdpa, flash": lambda clock: sdpa(clock, "FLASH_ATTENTION"),
    "torch sdpa, cudnn": lambda clock: sdpa(clock, "CUDNN_ATTENTION"),
    "flashinfer": flashinfer_attention,
    "torch matmul": matmul,
    "torch _weight_int4pack_mm": int4pack,
    "torch _grouped_mm": grouped_mm,
    "transformers, static cache": transformers_step,
}


def our_times(folder: Path | None) -> Rows:
    rows: Rows = {}
    for path in sorted(folder.glob("bench_*.json")) if folder else []:
        report = json.loads(path.read_text())
        if not report.get("is_smoke", False):
            rows.update({row["name"]: row["seconds"] for row in report.get("rows", [])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--ours", type=Path, help="folder with the JSON files of our programs")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args()
    clock, ours = Clock(args.device), our_times(args.ours)
    is_missing_gpu = args.device == "cuda" and not torch.cuda.is_available()
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "device": args.device,
        "is_smoke": not clock.is_gpu,
        "peers": {},
    }
    print(f"{'case':<44}{'peer':<28}{'peer us':>12}{'ours us':>12}{'ours faster':>12}")
    for peer in args.only:
        try:
            if is_missing_gpu:
                raise RuntimeError("torch sees no CUDA device")
            rows = SECTIONS[peer](clock)
        except Exception as error:  # whatever a peer throws: the others are still of interest
            reason = (str(error) or type(error).__name__).splitlines()[0]
            report["peers"][peer] = {"missing": reason}
            print(f"{'-':<44}{peer:<28}missing: {reason}")
            continue
        report["peers"][peer] = {"seconds": rows}
        for case, seconds in rows.items():
            beside = f"{ours[case] * 1e6:>12.1f}{seconds / ours[case]:>11.2f}x" if case in ours else ""
            print(f"{case:<44}{peer:<28}{seconds * 1e6:>12.1f}{beside}", flush=True)
        if clock.is_gpu:
            torch.cuda.empty_cache()
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
