"""Attention alone: decode as a share of read bandwidth, prefill as a share of the peak of the arithmetic.

    python benches/attention.py [--threads N] [--json FILE]

Decode has enough sequences that their pages do not fit any cache; every byte of K and V is read once. Times are the
least of many calls, beside the limits that the same run measures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastllm import _core, ops

BYTES = 192 << 20  # of pages per call, several times the largest cache
SECONDS = 1.0  # per case


def least_seconds(call: Callable[[], Any]) -> float:
    least = float("inf")
    stop = time.perf_counter() + SECONDS
    while time.perf_counter() < stop:
        begin = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - begin)
    return least


class Paged:
    """Sequences of one length; their pages are shuffled, as after a while of serving."""

    def __init__(
        self,
        device: ops.Device,
        num_seqs: int,
        length: int,
        heads: tuple[int, int, int],
        dtype: str,
        shared: bool = False,
    ) -> None:
        self.num_heads, num_kv_heads, self.head_dim = heads
        pages_each = -(-length // device.page_size)
        num_pages = pages_each * (1 if shared else num_seqs)
        self.kv = ops.KvCache(num_pages, num_kv_heads, self.head_dim, dtype=dtype, device=device)
        rng = np.random.default_rng(0)
        chunk = rng.standard_normal((4096, num_kv_heads, self.head_dim)).astype(np.float32)
        q = np.zeros((4096, num_kv_heads, self.head_dim), np.float32)
        slots = np.arange(num_pages * device.page_size, dtype=np.int64)
        for begin in range(0, len(slots), 4096):
            n = min(4096, len(slots) - begin)
            ops.rope_and_store(
                q[:n], chunk[:n], chunk[:n], cos=None, sin=None, slots=slots[begin : begin + n], kv=self.kv
            )
        table = rng.permutation(num_pages).astype(np.int32).reshape(-1, pages_each)
        self.block_table = np.repeat(table, num_seqs, 0) if shared else table
        self.length, self.num_seqs = length, num_seqs

    def attend(self, q: np.ndarray[Any, Any], new: int) -> None:
        ops.paged_attention(
            q,
            self.kv,
            query_start=np.arange(0, new * self.num_seqs + 1, new, dtype=np.int32),
            context_len=np.full(self.num_seqs, self.length, np.int32),
            block_table=self.block_table,
            scale=self.head_dim**-0.5,
        )

    def seconds(self, new: int) -> float:
        rng = np.random.default_rng(1)
        q = rng.standard_normal((new * self.num_seqs, self.num_heads, self.head_dim)).astype(np.float32)
        return least_seconds(lambda: self.attend(q, new))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = ops.Device(arguments.device, num_threads=arguments.threads)
    limits = dict(_core.measure_limits(device.num_threads))
    bandwidth = limits["read_bytes_per_s"]
    peak = limits["bfloat16_flops"] or limits["float32_flops"]
    print(f"{device.name}, {device.num_threads} threads: {bandwidth / 1e9:.1f} GB/s, {peak / 1e9:.0f} GFLOP/s")
    rows = []
    for dtype in ("bfloat16", "int8"):
        for head_dim in (64, 128):
            for length in (512, 2048, 8192):
                one = ops.KvCache(1, 8, head_dim, dtype=dtype, device=device).nbytes / device.page_size
                num_seqs = max(1, int(BYTES / (one * length)))
                for group in (1, 2, 4):
                    paged = Paged(device, num_seqs, length, (8 * group, 8, head_dim), dtype)
                    rate = paged.kv.nbytes / paged.seconds(1)
                    name = f"decode {dtype} D={head_dim} H/G={group} context {length}"
                    rows.append({"case": name, "GB/s": rate / 1e9, "share": rate / bandwidth})
            for length in (512, 2048):
                paged = Paged(device, 1, length, (16, 8, head_dim), dtype)
                flops = 4 * 16 * head_dim * length * (length + 1) / 2
                rate = flops / paged.seconds(length)
                name = f"prefill {dtype} D={head_dim} H/G=2 {length} tokens"
                rows.append({"case": name, "GFLOP/s": rate / 1e9, "share": rate / peak})
        shared, apart = (Paged(device, 16, 2048, (16, 8, 128), dtype, shared=x).seconds(1) for x in (True, False))
        name = f"decode {dtype} D=128 H/G=2 16 sequences, one context of 2048"
        rows.append({"case": name, "us": shared * 1e6, "of contexts apart": shared / apart})
    for row in rows:
        print(row["case"].ljust(64), ", ".join(f"{k} {v:.3g}" for k, v in row.items() if k != "case"))
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": device.name, "limits": limits, "cases": rows}, indent=2))


if __name__ == "__main__":
    main()
