"""Options of LLM and AsyncLLM: a wrong one is refused by name before anything is loaded; the memory plan is kept."""

import dataclasses
import re
import subprocess
import sys
import time

import pytest

from fastllm import LLM, AsyncLLM, FastLLMError, InvalidRequestError, OutOfMemoryError, SamplingParams
from fastllm.memory import format_bytes, parse_bytes
from fastllm.runtime import EngineOptions

SMALL = {"max_model_len": 128, "max_num_seqs": 4, "kv_cache_tokens": 512, "num_threads": 1}
NAN = float("nan")
STRANGE = [-1, 1.5, NAN, float("inf"), "x y", [], {}, b"x", object(), 2**70]
# Of those above, what is a right value of an option.
FINE = {"tokenizer": (), "memory_budget": (2**70, 1.5), "packed_cache": ("x y",), "activation_mode": ({},)}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EngineOptions)])
def test_a_wrong_option_is_refused_by_name(name):
    for value in STRANGE:
        if value in FINE.get(name, ()) or (name == "revision" and isinstance(value, str)):
            continue
        start = time.process_time()
        with pytest.raises(FastLLMError) as error:
            LLM(**{**SMALL, name: value})
        assert time.process_time() - start < 1.0  # before anything is loaded
        named = "memory size" if name == "memory_budget" else name
        assert named in str(error.value) or "x y" in str(error.value), error.value
    with pytest.raises(TypeError, match=name + "s"):
        LLM(**{name + "s": 1})
    with pytest.raises(TypeError, match="the options are those of LLM"):
        AsyncLLM(**{name + "s": 1})


@pytest.mark.parametrize("model", [5, b"x", [], object()])
def test_a_model_is_a_path_or_an_id(model):
    with pytest.raises(InvalidRequestError, match="model must be"):
        LLM(model, **SMALL)


def test_what_auto_decided_is_in_the_info():
    with LLM() as llm:
        info = llm.info()
    fields = {field.name for field in dataclasses.fields(EngineOptions)} - {
        "tokenizer", "quantization", "memory_budget", "load_format", "kv_cache_tokens", "seed", "revision",
        "show_progress", "max_queue", "skip_tokenizer_init", "packed_cache",
    }  # fmt: skip
    assert fields <= set(info)
    assert all(info[name] not in (None, "auto") for name in fields)
    assert info["memory"]["total_bytes"] <= info["memory"]["budget_bytes"]


def test_sizes_as_people_write_them():
    assert parse_bytes("4GiB") == 4 << 30 and parse_bytes("500 MB") == 500_000_000 and parse_bytes(7) == 7
    assert parse_bytes("1.5kib") == 1536 and format_bytes(1536) == "1.5 KiB"
    for wrong in ("4 apples", "-1GiB", "", "nan", "1e400GiB", 0, -5, True, None):
        with pytest.raises(InvalidRequestError, match="memory size"):
            parse_bytes(wrong)


def test_a_budget_is_filled_and_not_exceeded():
    with LLM(memory_budget="40MiB") as llm:
        plan = llm.info()["memory"]
        assert 39 << 20 < plan["total_bytes"] <= plan["budget_bytes"] == 40 << 20
        parts = plan["weight_bytes"] + plan["activation_bytes"] + plan["kv_bytes"]
        assert parts == plan["total_bytes"]
    # The least that works, as the refusal names it, works; so does nothing below.
    with pytest.raises(OutOfMemoryError) as error:
        LLM(memory_budget="9MiB", max_num_seqs=8)
    least = float(re.search(r"least that works is about ([\d.]+) MiB", str(error.value))[1])
    with LLM(memory_budget=f"{least + 0.1:.1f}MiB", max_num_seqs=8) as llm:
        assert llm.generate("The", SamplingParams(max_tokens=4))[0].finished


def test_the_plan_is_what_the_process_really_takes():
    program = """
import fastllm
def resident(name='VmRSS'):  # VmHWM is its peak; getrusage() has that of the parent process too
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(name)) * 1024
with fastllm.LLM(max_model_len=64, kv_cache_tokens=128) as small:  # everything is imported
    small.generate('The', fastllm.SamplingParams(max_tokens=2))
before = resident()
with fastllm.LLM(dtype='float32', kv_cache_dtype='float32', kv_cache_tokens=24576, max_num_seqs=24) as llm:
    # Every page of the cache is written.
    params = fastllm.SamplingParams(max_tokens=24, ignore_eos=True, detokenize=False)
    llm.generate([[i + 3] * 1000 for i in range(25)], params)
    plan = llm.info()
    assert plan['engine']['num_pages_free'] < 64
    grown, planned = resident() - before, plan['memory']['total_bytes']
    peak = resident('VmHWM') - before
print(f'planned {planned / 2**20:.0f} MiB, resident {grown / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB')
assert grown < planned + (24 << 20) and peak < planned + (32 << 20)
assert resident() - before < 24 << 20, 'close() gives it back'
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=250, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
