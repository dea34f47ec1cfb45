"""A folder that nobody vouches for: each defect gives one exception that names file and tensor or field, at once."""

from __future__ import annotations

import copy
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from fastllm.checkpoint import safetensors
from fastllm.checkpoint.loader import load
from fastllm.checkpoint.resolve import resolve
from fastllm.errors import CheckpointError, FastLLMError, UnsupportedModelError

LIMIT_S = 1.0  # of processors


def _refused(folder: Path, pattern: str, kind: type[Exception] = CheckpointError) -> None:
    begin = time.process_time()
    with pytest.raises(kind, match=pattern) as info:
        load(folder)
    assert time.process_time() - begin < LIMIT_S
    assert str(folder) in str(info.value)


def test_good_checkpoint_loads(tmp_path: Path) -> None:
    plan = load(tiny.write(tmp_path))
    assert plan.dtype == "float32" and plan.ignored == []
    assert {fill.source for fill, _ in plan.fills} == set(tiny.SHAPES)


# Headers.


def _entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[tiny.Q_PROJ].update(changes)


def _shift(begin: int, end: int) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        offsets = header[tiny.Q_PROJ]["data_offsets"]
        header[tiny.Q_PROJ]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return change


HEADERS = {
    "unknown dtype": (_entry(dtype="F33"), "q_proj.weight: dtype 'F33'"),
    "dtype not a string": (_entry(dtype=7), "q_proj.weight: dtype"),
    "dtype that changes the span": (_entry(dtype="F16"), "q_proj.weight: data_offsets"),
    "shape not a list": (_entry(shape="8"), "q_proj.weight: shape"),
    "negative size": (_entry(shape=[-8, -8]), "q_proj.weight: shape"),
    "size as float": (_entry(shape=[8.0, 8]), "q_proj.weight: shape"),
    "size as boolean": (_entry(shape=[True, 64]), "q_proj.weight: shape"),
    "size of 2^63": (_entry(shape=[2**63, 0]), "q_proj.weight: shape"),
    "product that wraps at 2^64": (_entry(shape=[2**32, 2**32, 64]), "q_proj.weight: data_offsets"),
    "nine dimensions": (_entry(shape=[8, 8, 1, 1, 1, 1, 1, 1, 1]), "q_proj.weight: shape"),
    "offsets outside": (_shift(10**12, 10**12), "q_proj.weight: data_offsets .* end beyond"),
    "offsets reversed": (lambda h: h[tiny.Q_PROJ]["data_offsets"].reverse(), "q_proj.weight: data_offsets"),
    "overlap": (_shift(-4, -4), "q_proj.weight: begins at .*overlaps"),
    "gap": (_shift(4, 4), "q_proj.weight: begins at .*gap"),
    "one offset": (_entry(data_offsets=[0]), "q_proj.weight: data_offsets"),
    "entry not an object": (lambda h: h.update({tiny.Q_PROJ: 1}), "q_proj.weight: expected an object"),
    "field missing": (lambda h: h[tiny.Q_PROJ].pop("shape"), "q_proj.weight: expected an object"),
    "field unknown": (_entry(strides=[1, 1]), "q_proj.weight: expected an object"),
    "metadata not strings": (lambda h: h.update(__metadata__={"format": 1}), "__metadata__"),
    "long name": (lambda h: h.update({"x" * 5000: h.pop(tiny.Q_PROJ)}), "tensor name has more than"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_header_is_refused(name: str, tmp_path: Path) -> None:
    change, pattern = HEADERS[name]
    arrays = tiny.tensors()
    header = copy.deepcopy(tiny.header_of(arrays))
    change(header)
    _refused(tiny.write(tmp_path, weights=tiny.encode(header, tiny.data_of(arrays))), rf"model\.safetensors.*{pattern}")


def _text(edit: Callable[[bytes], bytes]) -> bytes:
    arrays = tiny.tensors()
    return tiny.encode(edit(json.dumps(tiny.header_of(arrays)).encode()), tiny.data_of(arrays))


FILES = {
    "empty": (b"", "has 0 bytes"),
    "seven bytes": (b"1234567", "has 7 bytes"),
    "header longer than allowed": (tiny.encode(b"{}", b"", 10**8 + 1), "header length 100000001 exceeds"),
    "header longer than the file": (tiny.encode(b"{}", b"", 3), "header length 3 exceeds"),
    "header length of 2^64 - 1": (tiny.encode(b"{}", b"", 2**64 - 1), "header length"),
    "header of 0 bytes": (tiny.encode(b"", b""), "does not begin with"),
    "header not JSON": (_text(lambda t: t[:-1]), "not valid JSON"),
    "header a list": (tiny.encode(b"[]", b""), "does not begin with"),
    "header not UTF-8": (_text(lambda t: t.replace(b"q_proj", b"q\xffproj")), "not valid JSON"),
    "header deep": (tiny.encode(b'{"a":' * 100_000, b""), "JSON"),
    "header with a huge number": (_text(lambda t: t.replace(b"[8]", b"[" + b"9" * 5000 + b"]", 1)), "JSON"),
    "duplicate tensor": (_text(lambda t: t.replace(b"k_proj", b"q_proj")), "is given twice"),
    "duplicate field": (_text(lambda t: t.replace(b'"shape"', b'"dtype"', 1)), "is given twice"),
    "bytes after the data": (_text(lambda t: t) + b"x", "is it truncated"),
    "pickle": (b"\x80\x02}q\x00(X\x05\x00\x00\x00", "header"),
    "zip": (b"PK\x03\x04" + bytes(100), "header length"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_refused(name: str, tmp_path: Path) -> None:
    weights, pattern = FILES[name]
    _refused(tiny.write(tmp_path, weights=weights), rf"model\.safetensors.*{pattern}")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    arrays = tiny.tensors()
    whole = tiny.file_bytes(arrays)
    header = tiny.header_of(arrays)
    data_begin = len(whole) - len(tiny.data_of(arrays))
    borders = {0, 1, 7, 8, 9, data_begin, len(whole)}
    borders |= {data_begin + offset for entry in header.values() for offset in entry["data_offsets"]}
    borders |= {i for i in range(8, data_begin) if whole[i : i + 1] in b'{}[]",:'}
    cuts = {border + d for border in borders for d in (-1, 0, 1)} | {len(whole) * i // 1000 for i in range(1000)}
    cuts = {cut for cut in cuts if 0 <= cut < len(whole)}
    assert len(cuts) >= 1000
    path = tiny.write(tmp_path) / "model.safetensors"
    for cut in sorted(cuts, reverse=True):
        os.truncate(path, cut)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            safetensors.read(path)


def test_every_flipped_header_bit_raises_or_changes_nothing(tmp_path: Path) -> None:
    arrays = tiny.tensors()
    whole = bytearray(tiny.file_bytes(arrays))
    path = tiny.write(tmp_path) / "model.safetensors"
    header_end = len(whole) - len(tiny.data_of(arrays))

    def seen() -> dict[str, Any]:
        return {name: (t.dtype, t.shape, bytes(t.bytes())) for name, t in safetensors.read(path).items()}

    def check(what: str) -> None:
        try:
            found = seen()
        except CheckpointError:
            return
        # A name that changed is a missing tensor, which load() refuses.
        if found.keys() != expected.keys():
            _refused(tmp_path, "is missing from")
        else:
            assert found == expected, what

    expected = seen()
    with open(path, "r+b", buffering=0) as file:  # one byte in place: a new file per bit would wait for the disk
        for bit in range(8 * header_end):
            at, mask = bit // 8, 1 << bit % 8
            os.pwrite(file.fileno(), bytes([whole[at] ^ mask]), at)
            check(f"bit {bit % 8} of byte {at}")
            os.pwrite(file.fileno(), whole[at : at + 1], at)


# Tensors that do not fit the config.


def _tensors(edit: Callable[[dict[str, Any]], Any]) -> bytes:
    arrays = tiny.tensors()
    edit(arrays)
    return tiny.file_bytes(arrays)


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    weights = _tensors(lambda arrays: arrays.pop(name))
    _refused(tiny.write(tmp_path, weights=weights), f"tensor {re.escape(name)} is missing")


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_tensor_of_another_shape_is_named(name: str, tmp_path: Path) -> None:
    weights = _tensors(lambda arrays: arrays.update({name: arrays[name][:-1].copy()}))
    _refused(tiny.write(tmp_path, weights=weights), rf"tensor {re.escape(name)}: shape is .*config.json asks for")


def test_transposed_tensor_is_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weights = _tensors(lambda arrays: arrays.update({name: arrays[name].T.copy()}))
    _refused(tiny.write(tmp_path, weights=weights), r"up_proj.weight: shape is \[8, 6\]")


def test_extra_tensor_is_named(tmp_path: Path) -> None:
    weights = _tensors(
        lambda arrays: arrays.update({"model.layers.0.self_attn.q_proj.bias": arrays["model.norm.weight"]})
    )
    _refused(tiny.write(tmp_path, weights=weights), r"q_proj.bias has no place")


def test_old_rotary_buffer_is_ignored(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    weights = _tensors(lambda arrays: arrays.update({name: arrays["model.norm.weight"]}))
    assert load(tiny.write(tmp_path, weights=weights)).ignored == [name]


def test_integer_tensor_is_refused(tmp_path: Path) -> None:
    arrays = tiny.tensors()
    header = tiny.header_of(arrays)
    header[tiny.Q_PROJ]["dtype"] = "I32"
    weights = tiny.encode(header, tiny.data_of(arrays))
    _refused(tiny.write(tmp_path, weights=weights), r"q_proj.weight: dtype is I32")


# config.json.

CHECKPOINT, UNSUPPORTED = CheckpointError, UnsupportedModelError
_NAN, _INF = float("nan"), float("inf")
CONFIGS: list[tuple[str, Any, type[Exception]]] = [
    *[(key, value, CHECKPOINT)
      for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                  "num_key_value_heads", "max_position_embeddings")
      for value in (0, -1, 2**63, 10**400, 1.5, True, "8", [8], _NAN)],
    *[("rms_norm_eps", value, CHECKPOINT) for value in (_NAN, _INF, -1.0, "x", True)],
    *[("rope_theta", value, CHECKPOINT) for value in (_NAN, _INF, 0.0, -1.0, "x", 10**400)],
    *[("tie_word_embeddings", value, CHECKPOINT) for value in (1, "yes", _NAN)],
    *[("head_dim", value, CHECKPOINT) for value in (0, -2, 2000, "x")],
    ("head_dim", 3, UNSUPPORTED),
    ("num_attention_heads", 3, CHECKPOINT),
    ("num_key_value_heads", 4, CHECKPOINT),
    ("architectures", None, CHECKPOINT),
    ("architectures", [], CHECKPOINT),
    ("architectures", "LlamaForCausalLM", CHECKPOINT),
    ("architectures", ["GPT5ForCausalLM"], UNSUPPORTED),
    ("hidden_act", "gelu", UNSUPPORTED),
    ("hidden_act", 3, UNSUPPORTED),
    ("mlp_bias", True, UNSUPPORTED),
    ("torch_dtype", "float8_e4m3fn", UNSUPPORTED),
    ("quantization_config", {"quant_method": "xyz"}, UNSUPPORTED),
    ("quantization_config", {"quant_method": "gptq"}, CHECKPOINT),
    ("quantization_config", {"bits": 4}, CHECKPOINT),
    ("quantization_config", 1, CHECKPOINT),
    ("partial_rotary_factor", 0.5, UNSUPPORTED),
    ("partial_rotary_factor", _NAN, CHECKPOINT),
    ("rope_scaling", "yarn", CHECKPOINT),
    ("rope_scaling", {"type": "su2"}, UNSUPPORTED),
    ("rope_scaling", {"type": 1}, CHECKPOINT),
    ("rope_scaling", {"type": "linear"}, CHECKPOINT),
    *[("rope_scaling", {"type": kind, "factor": f}, CHECKPOINT)
      for kind in ("linear", "dynamic", "yarn", "llama3") for f in (_NAN, _INF, 0.0, -1, 1e300, "4")],
    ("rope_scaling", {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}, CHECKPOINT),
    ("rope_scaling", {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 1.0]}, CHECKPOINT),
    ("rope_scaling", {"type": "longrope", "short_factor": [0.0, 1.0], "long_factor": [1.0, 1.0]}, CHECKPOINT),
    ("rope_parameters", {"full_attention": {"rope_type": "default"}}, UNSUPPORTED),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "kind"), CONFIGS, ids=lambda v: repr(v)[:40])
def test_bad_config_value_is_named(key: str, value: Any, kind: type[Exception], tmp_path: Path) -> None:
    folder = tiny.write(tmp_path)
    begin = time.process_time()
    with pytest.raises(kind) as info:
        (folder / "config.json").write_text(json.dumps({**tiny.CONFIG, key: value}))
        _ = load(folder).dtype
    assert time.process_time() - begin < LIMIT_S
    message = str(info.value)
    assert "config.json" in message and (key in message or "num_attention_heads" in message), message


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"a": 1, "a": 2}', "\x00", "[" * 100_000, '{"a":' * 100_000])
def test_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    _refused(tiny.write(tmp_path, config=text), r"config\.json")


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_missing_config_key_is_named(key: str, tmp_path: Path) -> None:
    config = {k: v for k, v in tiny.CONFIG.items() if k != key}
    _refused(tiny.write(tmp_path, config=config), rf"config\.json: {key} is missing")


def test_config_that_promises_more_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    _refused(
        tiny.write(tmp_path, config={**tiny.CONFIG, "num_hidden_layers": 4096}), r"model\.layers\.1\..* is missing"
    )


def test_nothing_in_the_folder_is_imported(tmp_path: Path) -> None:
    config = {**tiny.CONFIG, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    folder = tiny.write(tmp_path, config=config)
    (folder / "evil.py").write_text("raise SystemExit(3)")
    load(folder)


# Files.


def test_missing_folder_file_and_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve(str(tmp_path / "absent"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not a directory"):
        resolve(str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(tmp_path)
    tiny.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    _refused(tmp_path, r"no model\.safetensors")


@pytest.mark.parametrize("name", ["a/../../b", "a\0b", "~nobody/x", "x" * 5000, "../x", "/", ""])
def test_odd_model_argument_is_refused_without_the_network(name: str) -> None:
    with pytest.raises(FastLLMError):
        load(resolve(name))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pickle"])
def test_pickled_weights_are_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path)
    (folder / "model.safetensors").rename(folder / name)
    _refused(folder, rf"{name}.*save_pretrained")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop"])
def test_what_is_no_regular_file_is_refused(file: str, kind: str, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path)
    (folder / file).unlink()
    if kind == "fifo":
        os.mkfifo(folder / file)
    elif kind == "loop":
        (folder / file).symlink_to(folder / file)
    elif kind == "device":
        (folder / file).symlink_to("/dev/zero")
    else:
        (folder / file).mkdir()
    _refused(folder, re.escape(file))


def test_sparse_giant_file_is_refused(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path)
    with open(folder / "model.safetensors", "r+b") as file:
        try:
            file.truncate(4 << 40)
        except OSError:
            pytest.skip("the file system has no sparse files of 4 TB")
    _refused(folder, r"model\.safetensors")
    with open(folder / "config.json", "r+b") as file:
        file.truncate(4 << 40)
    _refused(folder, r"config\.json: has 4398046511104 bytes")


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    outside = tiny.write(tmp_path / "outside") / "model.safetensors"
    folder = tiny.write(tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(outside)
    _refused(folder, r"model\.safetensors: a symbolic link leads outside")


@pytest.mark.parametrize("store", ["cache/models--x/blobs", "cache/blobs/ab"])
def test_links_into_the_hub_cache_are_followed(store: str, tmp_path: Path) -> None:
    blobs = tmp_path / store
    blobs.mkdir(parents=True)
    snapshot = tiny.write(tmp_path / "cache" / "models--x" / "snapshots" / "abc")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).rename(blobs / name)
        (snapshot / name).symlink_to(blobs / name)
    assert load(snapshot).fills


# Shards.


def test_sharded_checkpoint_loads(tmp_path: Path) -> None:
    plan = load(tiny.write_sharded(tmp_path))
    assert {fill.source for fill, _ in plan.fills} == set(tiny.SHAPES)


INDEXES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "names another folder": (lambda m: {**m, tiny.Q_PROJ: "../x.safetensors"}, "is not a plain name"),
    "names an absolute path": (lambda m: {**m, tiny.Q_PROJ: "/etc/x.safetensors"}, "is not a plain name"),
    "names a pickle": (lambda m: {**m, tiny.Q_PROJ: "model.bin"}, "not the name of a .safetensors file"),
    "names a number": (lambda m: {**m, tiny.Q_PROJ: 1}, "not the name of a .safetensors file"),
    "names an absent file": (lambda m: {**m, tiny.Q_PROJ: "gone.safetensors"}, r"is here, but|gone\.safetensors"),
    "puts a tensor into the other shard": (
        lambda m: {**m, tiny.Q_PROJ: "model-00001-of-00002.safetensors"}, "q_proj.weight is missing, .*index.json"),
    "promises a tensor": (lambda m: {**m, "extra": m[tiny.Q_PROJ]}, "extra is missing"),
    "forgets a tensor": (lambda m: {k: v for k, v in m.items() if k != tiny.Q_PROJ}, "q_proj.weight is here, but"),
    "is empty": (lambda m: {}, "weight_map must be"),
    "is a list": (lambda m: [], "weight_map must be"),
    "is a string": (lambda m: "x", "weight_map must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", INDEXES)
def test_bad_index_is_refused(name: str, tmp_path: Path) -> None:
    change, pattern = INDEXES[name]
    _refused(tiny.write_sharded(tmp_path, change), pattern)


def test_several_files_without_an_index_are_refused(tmp_path: Path) -> None:
    folder = tiny.write_sharded(tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    _refused(folder, r"2 safetensors files but no model\.safetensors\.index\.json")
