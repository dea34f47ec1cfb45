"""fastllm quantize as a command, and the server that asks for its report."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastllm.cli import app
from fastllm.demo import DEMO_MODEL
from fastllm.errors import CheckpointError, InvalidRequestError
from fastllm.server.settings import check_gate

MEASURED = {"dtype": "auto", "quantization": None, "activation_mode": "auto", "kv_cache_dtype": "auto",
            "load_format": "auto"}  # fmt: skip
HELDOUT = Path(__file__).parents[1] / "data" / "heldout.txt"


def _fastllm(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})


def test_the_exit_code_is_that_of_the_gate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fastllm"), "level", logging.WARNING)
    out = tmp_path / "out"
    shared = ("quantize", "demo", out, "--method", "rtn", "--bits", 8, "--eval-data", HELDOUT, "--window", 128,
              "--max-eval-tokens", 256)  # fmt: skip
    refused = _fastllm(*shared, "--gate", "kl<=0.0000001")
    assert refused.exit_code == 1 and "FAILED by" in refused.stdout
    assert refused.stdout.strip().endswith("out.rejected") and not out.exists()
    with pytest.raises(CheckpointError, match="not passed"):
        check_gate(str(tmp_path / "out.rejected"), None, MEASURED)

    accepted = _fastllm(*shared, "--gate", "kl<=0.02,top1>=0.97,ppl<=+1%", "--plot", tmp_path / "plot.svg", "--json")
    assert accepted.exit_code == 0, accepted.output
    values = json.loads(accepted.stdout)
    assert values["path"] == str(out) and values["gate"]["passed"] is True
    assert "q_proj" in (tmp_path / "plot.svg").read_text()
    # eval has the errors by layer from the report, and says where there is none.
    for model, has_report in ((out, True), (DEMO_MODEL, False)):
        done = _fastllm("eval", model, "--data", HELDOUT, "--max-tokens", 64, "--plot", tmp_path / "eval.svg")
        assert done.exit_code == 0, done.output
        picture = (tmp_path / "eval.svg").read_text()
        assert "loss" in picture and ("q_proj" in picture) == has_report
        assert ("no quantization report" in caplog.text) != has_report
        caplog.clear()
    check_gate(str(out), None, MEASURED)
    # A gate says nothing about numbers that it was not measured with.
    for name, value in (("quantization", "int4"), ("activation_mode", "a8"), ("kv_cache_dtype", "int8"),
                        ("dtype", "float16")):  # fmt: skip
        with pytest.raises(InvalidRequestError, match=f"with {name} = .*{value}"):
            check_gate(str(out), None, {**MEASURED, name: value})
        done = _fastllm("serve", out, "--require-gate", "--port", 0, f"--{name.replace('_', '-')}", value)
        assert done.exit_code == 2 and f"passed its gate with {name}" in done.stderr
    with pytest.raises(InvalidRequestError, match="random weights"):
        check_gate(str(out), None, {**MEASURED, "load_format": "dummy"})

    again = _fastllm(*shared)
    assert again.exit_code == 2 and "exists already" in again.stderr


def test_a_gate_needs_something_to_measure_on(tmp_path: Path) -> None:
    done = _fastllm("quantize", "demo", tmp_path / "out", "--gate", "kl<=1")
    assert done.exit_code == 2 and "--eval-data" in done.stderr


def test_the_server_refuses_a_model_without_a_passed_report() -> None:
    done = _fastllm("serve", "--require-gate", "--port", 0)
    assert done.exit_code == 1 and "quantization_report.json" in done.stderr
