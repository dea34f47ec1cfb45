"""Runs Python code in a process of its own, as users' programs do."""

from __future__ import annotations

import subprocess
import sys
import textwrap

# A small engine, and parameters that keep it busy until somebody stops it.
ENGINE = """
import sys, threading, time, os, signal, gc
import fastllm
from fastllm import LLM, SamplingParams
OPTIONS = dict(max_model_len=1024, kv_cache_tokens=8192, max_num_seqs=16, num_threads=1)
SHORT = SamplingParams(temperature=0, max_tokens=4)
LONG = SamplingParams(max_tokens=1000, ignore_eos=True)
def tokens(llm, text='The os module'):
    return llm.generate(text, SHORT)[0].outputs[0].token_ids
def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited too long'
        time.sleep(0.001)
def is_running(llm):
    return llm.info()['engine']['num_running'] > 0
"""


def run(code: str, *arguments: str, timeout: float = 60, preamble: str = ENGINE) -> subprocess.CompletedProcess[str]:
    program = preamble + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def check(code: str, *arguments: str, timeout: float = 60, preamble: str = ENGINE) -> str:
    """Runs code that must end with 0, and gives what it printed."""
    done = run(code, *arguments, timeout=timeout, preamble=preamble)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
