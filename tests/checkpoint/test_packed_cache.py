"""The packed cache: a second start reads what the first one packed; what is stale or damaged is packed anew."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import fastllm
from fastllm import _core
from fastllm.checkpoint import packed_cache
from fastllm.checkpoint.files import InputFile

PIECE_GAP = (8 << 20) - packed_cache.PIECE_BYTES - 1000  # of a file of 8 MiB: between the last two pieces
OPTIONS = {"num_threads": 2, "max_num_seqs": 2, "kv_cache_tokens": 64}


def _run(folder: Path, cache: Path | None, **changes: Any) -> tuple[list[float], bool | None]:
    """Log-probabilities, and whether the cache was read."""
    params = fastllm.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=0)
    options = {**OPTIONS, "quantization": "int8", "packed_cache": cache, **changes}
    with fastllm.LLM(str(folder), **options) as llm:
        output = llm.generate([[1, 2, 3]], params)[0].outputs[0]
        found = llm.info()["packed_cache"]
    logprobs = [entry[t].logprob for t, entry in zip(output.token_ids, output.logprobs, strict=True)]
    return logprobs, None if found is None else found["was_read"]


def _only_file(cache: Path) -> Path:
    (file,) = cache.iterdir()  # no temporary files beside it
    return file


def test_second_start_reads_the_same_weights(tmp_path: Path) -> None:
    folder, cache = tiny.write(tmp_path / "model"), tmp_path / "a" / "cache"
    expected, _ = _run(folder, None)
    assert _run(folder, cache) == (expected, False)
    first = _only_file(cache).read_bytes()
    assert _run(folder, cache) == (expected, True)
    assert _run(folder, cache, num_threads=1) == (expected, True)
    assert _only_file(cache).read_bytes() == first
    # Another way of holding them is another file.
    floats, was_read = _run(folder, cache, quantization=None)
    assert floats == _run(folder, None, quantization=None)[0] and not was_read
    assert len(list(cache.iterdir())) == 2


def test_a_device_with_its_own_memory_packs_anew(tmp_path: Path) -> None:
    folder, cache = tiny.write(tmp_path / "model"), tmp_path / "cache"
    assert _run(folder, cache, device="cuda:emulated", quantization=None)[1] is None
    assert not cache.exists()
    spec = fastllm.checkpoint.loader.load(folder).spec
    model = _core.Model(spec, device="cuda:emulated", num_threads=1, dtype="bfloat16", formats={})
    model.allocate_weights()
    with pytest.raises(fastllm.InternalError, match="cannot be read in place"):
        model.weight_memory()


def _touch(folder: Path) -> None:
    os.utime(folder / "model.safetensors", ns=(0, 0))


def _other_weights_same_size_and_time(folder: Path) -> None:
    path = folder / "model.safetensors"
    time = path.stat().st_mtime_ns
    arrays = tiny.tensors()
    arrays[tiny.Q_PROJ] *= 2
    path.write_bytes(tiny.file_bytes(arrays))
    os.utime(path, ns=(time, time))


def _other_config(folder: Path) -> None:
    tiny.write(folder, {**tiny.CONFIG, "rms_norm_eps": 1e-4})


@pytest.mark.parametrize("change", [_touch, _other_weights_same_size_and_time, _other_config])
def test_stale_cache_is_replaced(
    change: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, cache = tiny.write(tmp_path / "model"), tmp_path / "cache"
    _run(folder, cache)
    change(folder)
    expected, _ = _run(folder, None)
    with caplog.at_level(logging.WARNING, "fastllm"):
        assert _run(folder, cache) == (expected, False)
    assert "is stale" in caplog.text and str(_only_file(cache)) in caplog.text
    assert _run(folder, cache) == (expected, True)


def test_a_change_anywhere_in_a_large_file_is_seen(tmp_path: Path) -> None:
    """By its content alone: of a file of 16 MiB, each stretch as long as a small matrix (256 KiB), and the header."""
    size, stretch = 16 << 20, 256 << 10
    header = (2 << 20).to_bytes(8, "little")  # longer than HEAD_BYTES
    good = header + np.random.default_rng(0).bytes(size - 8)
    path = tmp_path / "a.safetensors"

    def digest(data: bytes) -> str:
        path.write_bytes(data)
        return packed_cache.digest(InputFile(path, str(path)))

    expected = digest(good)
    assert digest(good) == expected
    for begin in [*range(8, size - stretch, 3 << 20), size - stretch]:
        changed = bytes(b ^ 1 for b in good[begin : begin + stretch])
        assert digest(good[:begin] + changed + good[begin + stretch :]) != expected, begin
    for at in (8, (2 << 20) - 1, (1 << 20) + 70_000):  # one byte of the header
        assert digest(_flip(at)(good)) != expected, at


def test_the_time_of_change_counts(tmp_path: Path) -> None:
    """It cannot be set back, as the time of modification can."""
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(8 << 20))
    before = packed_cache.key_of([InputFile(path, "a.bin")], {})
    time = path.stat().st_mtime_ns
    path.write_bytes(_flip(PIECE_GAP)(bytes(8 << 20)))
    os.utime(path, ns=(time, time))
    after = packed_cache.key_of([InputFile(path, "a.bin")], {})
    assert before["sources"][0][-1] == after["sources"][0][-1]  # what is hashed is the same
    assert before != after


def _flip(position: int) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        edited = bytearray(data)
        edited[position] ^= 4
        return bytes(edited)

    return edit


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "magic": _flip(0),
    "length": _flip(9),
    "absurd length": lambda data: data[:8] + b"\xff" * 8 + data[16:],
    "key": _flip(30),
    "no JSON": lambda data: data[:16] + b"[" + data[17:],
    "no object": lambda data: data[:16] + b"[1]" + b" " * (int.from_bytes(data[8:16], "little") - 3) + data[4000:],
    "first byte": _flip(packed_cache.PAGE),
    "last byte": _flip(-1),
    "cut off": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "zeros, as after a crash": lambda data: data[: packed_cache.PAGE] + bytes(len(data) - packed_cache.PAGE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_replaced(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, cache = tiny.write(tmp_path / "model"), tmp_path / "cache"
    expected, _ = _run(folder, cache)
    file = _only_file(cache)
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    with caplog.at_level(logging.WARNING, "fastllm"):
        assert _run(folder, cache) == (expected, False)
    assert "packed anew" in caplog.text
    assert _only_file(cache).read_bytes() == whole


def test_no_place_for_a_cache_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny.write(tmp_path / "model")
    (tmp_path / "file").write_text("")
    expected, _ = _run(folder, None)
    with caplog.at_level(logging.WARNING, "fastllm"):
        assert _run(folder, tmp_path / "file" / "cache") == (expected, False)
    assert "cannot be kept" in caplog.text


def test_a_fifo_where_the_cache_should_be_is_not_waited_for(tmp_path: Path) -> None:
    folder, cache = tiny.write(tmp_path / "model"), tmp_path / "cache"
    expected, _ = _run(folder, cache)
    file = _only_file(cache)
    file.unlink()
    os.mkfifo(file)
    assert _run(folder, cache) == (expected, False)
    assert _only_file(cache).is_file()


def test_memory_is_zeros_again_after_a_damaged_file(tmp_path: Path) -> None:
    size = 3 * packed_cache.CHUNK_BYTES + 5
    memory = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    path = tmp_path / "file"
    packed_cache.write(path, {"a": 1}, memory)
    data = path.read_bytes()
    out = np.zeros_like(memory)
    assert packed_cache.read(path, {"a": 1}, out, 2) and np.array_equal(out, memory)
    for position in np.random.default_rng(1).integers(packed_cache.PAGE, len(data), 10):
        path.write_bytes(_flip(int(position))(data))
        out[:] = 0
        assert not packed_cache.read(path, {"a": 1}, out, 2) and not out.any()
