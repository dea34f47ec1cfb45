"""SIGKILL at the worst moments: the next start goes on, and ends with the bytes of a run that nobody killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from quick import QUICK

import fastllm
from fastllm.evaluation.run import EvalOptions

# What is replaced, and at which call the process dies. rmtree first removes what it would remove before it dies.
MOMENTS = {
    "in the middle of a layer": ("fastllm.quantize.pipeline.tensors_of", 10),
    "while a layer is written": ("fastllm.quantize.writer._data", 40),
    "before the old result is removed": ("shutil.rmtree", 1),
    "when the journal is gone": ("shutil.rmtree", 2),
}
CHILD = """
import importlib, json, os, signal, sys
from pathlib import Path
import torch
import fastllm
from fastllm.evaluation.run import EvalOptions

torch.set_num_threads(1)
target, count, model, out, options = sys.argv[1:]
module, _, name = target.rpartition(".")
module = importlib.import_module(module)
original, calls = getattr(module, name), 0

def dying(*arguments, **named):
    global calls
    calls += 1
    if calls == int(count):
        if name == "rmtree":
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **named)

setattr(module, name, dying)
options = json.loads(options)
fastllm.quantize(model, out, evaluation=EvalOptions(**options.pop("evaluation")), **options)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.json"
    path.write_text(json.dumps([5 + i * 37 % 250 for i in range(100)]))
    return path


@pytest.fixture(scope="module")
def whole(dense_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> fastllm.QuantizationResult:
    options = EvalOptions(str(data), window=64, greedy=0, gate="kl<=1e-9", num_threads=1)
    return fastllm.quantize(dense_model, tmp_path_factory.mktemp("whole") / "out", evaluation=options, **QUICK)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_process_costs_at_most_a_layer(
    moment: str, whole: fastllm.QuantizationResult, dense_model: Path, data: Path, tmp_path: Path
) -> None:
    target, count = MOMENTS[moment]
    out, old = tmp_path / "out", tmp_path / "out.rejected"
    old.mkdir()  # of an earlier attempt
    evaluation = {"data": str(data), "window": 64, "greedy": 0, "gate": "kl<=1e-9", "num_threads": 1}
    options = json.dumps({**QUICK, "evaluation": evaluation})
    died = subprocess.run([sys.executable, "-c", CHILD, target, str(count), dense_model, out, options], timeout=300)
    assert died.returncode == -signal.SIGKILL
    assert (tmp_path / "out.partial").is_dir() and not out.exists()

    stages: list[str] = []
    resumed = fastllm.quantize(
        dense_model, out, evaluation=EvalOptions(**evaluation), **QUICK, progress=lambda stage, *_: stages.append(stage)
    )
    assert "layer 0" not in stages  # it was finished
    if moment == "when the journal is gone":
        assert not stages  # all that was left was the name
    assert resumed.path == old and not resumed.passed
    assert resumed.report["files"] == whole.report["files"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.rejected"]
    assert {p.name for p in old.iterdir()} == {p.name for p in whole.path.iterdir()}
