"""max_ram is what it says: the peak of a process that quantizes, as the kernel counts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Case
from quick import saved

from fastllm.quantize.statistics import needed_bytes

WIDTH = 3072  # 36 MiB a Gram matrix: beside it a layer of 64 channels is nothing
WIDE = Case(
    "qwen3", "Qwen3Config", "Qwen3ForCausalLM",
    {"hidden_size": 64, "intermediate_size": WIDTH, "head_dim": 32, "num_hidden_layers": 1, "vocab_size": 264},
)  # fmt: skip
BESIDE = 32 << 20  # the layer, activations of 256 tokens, noise of the allocator
# The first run loads what is loaded once: code, and the buffers that the linear algebra keeps. What the heap keeps of
# it goes back before the second; writing 5 to clear_refs resets the peak.
CHILD = """
import ctypes
import gc
import sys
from pathlib import Path
import torch
import fastllm

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

torch.set_num_threads(1)
model, data, out, method, max_ram = sys.argv[1:]
shared = {"data": data, "num_samples": 1, "sample_len": 256, "group": 32}
fastllm.quantize(model, out + "-warm", method=method, **shared)
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
fastllm.quantize(model, out, method=method, max_ram=int(max_ram), **shared)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read as Linux says it")
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_peak_stays_below_max_ram(method: str, tmp_path: Path) -> None:
    model = saved(WIDE, tmp_path / "model")
    (tmp_path / "data.json").write_text(json.dumps([5 + i * 37 % 250 for i in range(256)]))
    max_ram = needed_bytes([WIDTH])  # the least that is accepted
    done = subprocess.run(
        [sys.executable, "-c", CHILD, model, tmp_path / "data.json", tmp_path / "out", method, str(max_ram)],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    peak = int(done.stdout)
    assert 0.3 * max_ram < peak < max_ram + BESIDE, f"{peak} of {max_ram} bytes"
