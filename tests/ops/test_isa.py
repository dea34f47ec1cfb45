"""FASTLLM_CPU_ISA chooses the kernels of the process; what the machine does not have is an error, not another level."""

import os
import subprocess
import sys

import pytest

from fastllm import _core

_GENERATE = """
from fastllm import LLM, SamplingParams
with LLM(num_threads=2, kv_cache_tokens=256) as llm:
    print(llm.info()["backend"], llm.generate("The os module", SamplingParams(temperature=0, max_tokens=4))[0].finished)
"""


def run(level):
    env = {**os.environ, "FASTLLM_CPU_ISA": level}
    return subprocess.run([sys.executable, "-c", _GENERATE], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("level", _core.cpu_isa_levels())
def test_a_level_of_this_machine_is_taken(level):
    assert run(level).stdout.split() == [f"cpu:{level}", "True"]


@pytest.mark.parametrize("level", ["avx1024", "AVX2 ", "cpu"])
def test_an_unknown_level_is_an_error_that_names_the_known_ones(level):
    result = run(level)
    assert result.returncode == 1
    assert "DeviceError" in result.stderr and "scalar, avx2, avx512, vnni, bf16" in result.stderr


def test_levels_begin_with_the_portable_one_and_end_with_the_default():
    levels = _core.cpu_isa_levels()
    assert levels[0] == "scalar"
    assert _core.OpsBackend("cpu", 1).name == f"cpu:{levels[-1]}" or os.environ.get("FASTLLM_CPU_ISA")
