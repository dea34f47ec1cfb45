"""Loading a good checkpoint: the same weights with any number of threads, memory of the weights and little more."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from corruptions import write_good

import fastllm
from fastllm import _core
from fastllm.checkpoint import packing
from fastllm.checkpoint.loader import load
from fastllm.errors import CheckpointError, InvalidRequestError
from fastllm.models.fills import MatrixFill

SMALL = {"num_threads": 1, "max_num_seqs": 2, "kv_cache_tokens": 256}


def _generate(folder: Path | str, **options: Any) -> tuple[list[int], list[float]]:
    params = fastllm.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, prompt_logprobs=0)
    with fastllm.LLM(str(folder), **{**SMALL, **options}) as llm:
        output = llm.generate([[1, 2, 3, 4]], params)[0]
    logprobs = [output.prompt_logprobs[i][i + 1].logprob for i in range(1, 4)]
    return list(output.outputs[0].token_ids), logprobs


class Recorder:
    """Takes fills as the native weights do; remembers which rows and who brought them."""

    def __init__(self, fail_on: str | None = None) -> None:
        self.rows: dict[str, list[tuple[int, int]]] = {}
        self.threads: set[int] = set()
        self.fail_on = fail_on
        self.lock = threading.Lock()

    def fill_matrix(self, name: str, row_begin: int, num_rows: int, **_: Any) -> None:
        if name == self.fail_on:
            raise CheckpointError("no room")
        with self.lock:
            self.rows.setdefault(name, []).append((row_begin, row_begin + num_rows))
            self.threads.add(threading.get_ident())

    def fill_vector(self, name: str, **_: Any) -> None:
        self.rows.setdefault(name, []).append((0, 1))

    def unfilled(self) -> list[str]:
        return []


@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 20])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_blocks_cover_each_row_once(block_bytes: int, num_threads: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(packing, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(packing, "ROW_ALIGNMENT", 4)
    plan = load(tiny.write(tmp_path))
    recorder = Recorder()
    told: list[tuple[int, int]] = []
    plan.fill(recorder, lambda done, total: told.append((done, total)), num_threads)
    for slot, blocks in recorder.rows.items():
        ends = {
            fill.row_begin + fill.num_rows
            for fill, _ in plan.fills
            if isinstance(fill, MatrixFill) and fill.slot == slot
        }
        if not ends:
            continue
        blocks.sort()
        assert blocks[0][0] == 0 and blocks[-1][1] == max(ends)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(blocks))
        assert block_bytes > 1 or len(blocks) > len(ends)
        # Rows that a backend packs together are not divided.
        assert all(end % 4 == 0 or end in ends for _, end in blocks)
    total = sum(tensor.num_bytes for _, tensor in plan.fills)
    assert told[-1] == (total, total) and told == sorted(told)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_failing_thread_ends_the_load_with_its_error(num_threads: int, tmp_path: Path) -> None:
    plan = load(tiny.write(tmp_path))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor .*down_proj.*: no room"):
        plan.fill(Recorder(fail_on="layers.0.down"), num_threads=num_threads)
    assert not [thread for thread in threading.enumerate() if thread.name == "fastllm-load"]


def test_interrupt_ends_the_load(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(tiny.write(tmp_path)).fill(Recorder(), interrupt, 2)
    assert not [thread for thread in threading.enumerate() if thread.name == "fastllm-load"]


def test_threads_and_block_size_change_no_bit(tmp_path: Path, monkeypatch: Any) -> None:
    write_good(tmp_path)
    expected = _generate(tmp_path)
    monkeypatch.setattr(packing, "BLOCK_BYTES", 1)
    monkeypatch.setattr(packing, "ROW_ALIGNMENT", 2)
    assert _generate(tmp_path, num_threads=2) == expected


def test_file_that_shrinks_while_it_is_read_gives_an_exception(tmp_path: Path) -> None:
    plan = load(tiny.write(tmp_path))
    os.truncate(tmp_path / "model.safetensors", 2000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends at byte 2000"):
        plan.fill(Recorder())


def test_peak_memory_is_the_weights_and_a_few_blocks() -> None:
    """64 MB of weights in a fresh process; twice the weights would be 64 MB more."""
    bench = Path(__file__).parents[2] / "tools" / "bench_load.py"
    program = f"""
import json, runpy, sys, tempfile
from pathlib import Path
bench = runpy.run_path({str(bench)!r})
bench["write"].__globals__.update(V=4096)
with tempfile.TemporaryDirectory() as name:
    bench["write"](Path(name), 1)
    print(json.dumps(bench["load"](Path(name), 2)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    seen = json.loads(done.stdout)
    assert seen["weight_bytes"] > 60e6
    assert seen["peak_bytes"] - seen["weight_bytes"] < 24e6, seen


# Folders without a tokenizer, without weights, in the hub cache.


def test_folder_without_a_tokenizer_takes_token_ids_only(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with fastllm.LLM(str(tmp_path), **SMALL) as llm:
        assert (
            len(llm.generate([[1, 2]], fastllm.SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids)
            == 3
        )
        for call in (
            lambda: llm.generate("a"),
            lambda: llm.encode("a"),
            lambda: llm.generate([[1]], fastllm.SamplingParams(stop="x")),
        ):
            with pytest.raises(InvalidRequestError, match=r"tokenizer\.json|detokenize"):
                call()


def test_named_tokenizer_folder_must_have_one(tmp_path: Path) -> None:
    write_good(tmp_path / "good")
    tiny.write(tmp_path / "bare")
    with fastllm.LLM(str(tmp_path / "bare"), tokenizer=str(tmp_path / "good"), **SMALL) as llm:
        assert llm.encode("ab") == [3]
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        fastllm.LLM(str(tmp_path / "good"), tokenizer=str(tmp_path / "bare"), **SMALL)


def test_dummy_weights_need_a_config_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIG))
    first = _generate(tmp_path, load_format="dummy")
    assert first == _generate(tmp_path, load_format="dummy")
    assert np.isfinite(first[1]).all()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        fastllm.LLM(str(tmp_path), **SMALL)


def _hub_cache(home: Path) -> None:
    repo = home / "hub" / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    snapshot = write_good(repo / "snapshots" / ("0" * 40))
    (repo / "blobs").mkdir()
    for i, file in enumerate(sorted(snapshot.iterdir())):
        blob = repo / "blobs" / f"{i:040x}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, snapshot))


def test_hub_id_is_found_in_the_cache_that_hf_home_names_without_the_network(tmp_path: Path) -> None:
    _hub_cache(tmp_path)
    write_good(tmp_path / "plain")
    program = """
import socket, sys
def refuse(*a, **k): raise AssertionError("the network was used")
socket.socket.connect = refuse
import fastllm
from fastllm.checkpoint.resolve import resolve
print(resolve("someone/tiny"))
print(resolve("someone/tiny", "main"))
with fastllm.LLM("someone/tiny", num_threads=1, max_num_seqs=2, kv_cache_tokens=256) as llm:
    print(llm.encode("ab"))
for wrong in (("someone/other", None), ("someone/tiny", "v9")):
    try:
        resolve(*wrong)
    except fastllm.CheckpointError as e:
        print("refused", wrong[0] in str(e))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    snapshot = str(tmp_path / "hub" / "models--someone--tiny" / "snapshots" / ("0" * 40))
    assert done.stdout.decode().splitlines() == [snapshot, snapshot, "[3]", "refused True", "refused True"]


def test_native_weights_refuse_rows_that_are_filled_twice(tmp_path: Path) -> None:
    plan = load(tiny.write(tmp_path))
    model = _core.Model(plan.spec, device="cpu", num_threads=1, dtype="float32", formats={})
    model.allocate_weights()
    plan.fill(model)
    with pytest.raises(CheckpointError, match="filled more than once"):
        plan.fill(model)
