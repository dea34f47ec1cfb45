"""What the fuzzers feed: one function per parser. Each takes bytes and may raise only errors of fastllm.

A target also checks that what is accepted makes sense: safetensors files against the reading of the safetensors
package, tokenizers by a round through encode and decode.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors as reference
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
import corruptions
import quantized_files
import tiny
import tiny_gguf

import fastllm
from fastllm import _core, models
from fastllm.checkpoint import safetensors
from fastllm.checkpoint.config import Config
from fastllm.checkpoint.formats import WeightFormats
from fastllm.checkpoint.gguf import reader, text
from fastllm.checkpoint.loader import load
from fastllm.checkpoint.packed_format import PackedFormat
from fastllm.checkpoint.quantized import decode
from fastllm.checkpoint.quantized.tensor import QuantizedTensor
from fastllm.text.tokenizer import Tokenizer
from fastllm.weights import HeldWeights

INDEX = "model.safetensors.index.json"


class Folder:
    """A good model folder in which one file is replaced for each input."""

    def __init__(self, sharded: bool = False) -> None:
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._owner = tempfile.TemporaryDirectory(prefix="fastllm-fuzz-", dir=place)
        self.path = corruptions.write_good(Path(self._owner.name))
        if sharded:
            tiny.write_sharded(self.path)

    def put(self, name: str, data: bytes) -> Path:
        (self.path / name).write_bytes(data)
        return self.path


_folders: dict[bool, Folder] = {}


def _folder(sharded: bool = False) -> Folder:
    if sharded not in _folders:
        _folders[sharded] = Folder(sharded)
    return _folders[sharded]


def safetensors_file(data: bytes) -> None:
    path = _folder().put("fuzz.safetensors", data) / "fuzz.safetensors"
    ours = {name: (t.dtype, list(t.shape), bytes(t.bytes())) for name, t in safetensors.read(path).items()}
    theirs = {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in reference.deserialize(data)}
    assert ours == theirs


def config_json(data: bytes) -> None:
    config = Config.load(_folder().put("config.json", data))
    spec = models.family_of(config).spec(config, None)
    assert spec.hidden_size > 0 and spec.vocab_size > 0 and len(spec.layers) > 0
    _ = config.dtype


def tokenizer_json(data: bytes) -> None:
    tokenizer = Tokenizer.load(_folder().put("tokenizer.json", data))
    tokenizer.decode(tokenizer.encode("ab a<s>"))


def index_json(data: bytes) -> None:
    plan = load(_folder(sharded=True).put(INDEX, data))
    assert {fill.source for fill, _ in plan.fills} == set(tiny.SHAPES)


def gguf_file(data: bytes) -> None:
    path = _folder().put("fuzz.gguf", data) / "fuzz.gguf"
    files = text.files_of(reader.read(path))
    assert not files or files["tokenizer.json"]["model"]["vocab"]
    plan = load(path)
    # Every value is read: blocks whose scales are no numbers are refused, and nothing else happens.
    plan.fill(_Nothing())
    # And as a start reads it: blocks that a kernel takes go to the core as codes.
    held = HeldWeights(
        plan.spec, plan, dtype="float32", quantization=None, activation_mode="f32", auto_mode="f32", keeps_fp8=False
    )  # fmt: skip
    native = _core.Model(plan.spec, device="cpu", num_threads=1, dtype="float32", formats=held.formats.native())
    held.load(native, cache=None, seed=0, show_progress=False)


def quantized_file(data: bytes) -> None:
    """A safetensors file with the parts of quantized weights, read as each format."""
    path = _folder().put("fuzz.safetensors", data) / "fuzz.safetensors"
    tensors = safetensors.read(path)
    for config in QUANTIZATIONS:
        try:
            sources, _ = decode(Config({"quantization_config": config}, str(path)), tensors)
            for source in sources.values():
                if isinstance(source, QuantizedTensor):
                    values = np.empty((source.num_elements // source.shape[-1], source.shape[-1]), np.float32)
                    source.read(0, values.data.cast("B"))
                    if isinstance(packed := source.packed_format(), PackedFormat):
                        _check_packed(source, packed, values)
        except (fastllm.CheckpointError, fastllm.UnsupportedModelError):
            pass


def _check_packed(source: QuantizedTensor, packed: PackedFormat, values: np.ndarray) -> None:
    """What goes to a kernel means what reading gives, and the core takes it."""
    num_rows, num_cols = values.shape
    codes, scales, zeros = source.codes(range(num_rows), packed)
    group_of = np.arange(num_cols) // (packed.group or num_cols)
    zero = np.float32(packed.middle) if zeros is None else zeros.astype(np.float32)[:, group_of]
    with np.errstate(over="ignore"):
        assert np.array_equal((codes.astype(np.float32) - zero) * scales[:, group_of], values)
    shape = {"vocab_size": num_rows, "hidden_size": num_cols, "num_attention_heads": 2, "head_dim": 8}
    config = Config({**tiny.CONFIG, **shape}, "config")
    native = _core.Model(
        models.family_of(config).spec(config, None), device="cpu", num_threads=1, dtype="float32",
        formats=WeightFormats({"lm_head": packed}).native(),
    )  # fmt: skip
    native.allocate_weights()
    native.fill_codes(name="lm_head", codes=codes, scales=scales, zeros=zeros, row_begin=0, expert=0)


class _Nothing:
    """Takes weights and forgets them."""

    def fill_matrix(self, **_: object) -> None: ...
    def fill_vector(self, **_: object) -> None: ...
    def unfilled(self) -> list[str]:
        return []


def _bytes_of(value: object) -> bytes:
    return json.dumps(value).encode()


QUANTIZATIONS = [
    {"quant_method": "gptq", "bits": 4, "group_size": 32}, {"quant_method": "awq", "bits": 4, "group_size": 32},
    *({"quant_method": method} for method in ("compressed-tensors", "fp8", "bitsandbytes", "mxfp4")),
]  # fmt: skip


def _quantized(make: Callable[[], quantized_files.Made]) -> bytes:
    return save({f"m.{name}": part.contiguous() for name, part in make().parts.items()})


TARGETS: dict[str, Callable[[bytes], None]] = {
    "safetensors": safetensors_file, "config": config_json, "tokenizer": tokenizer_json, "index": index_json,
    "gguf": gguf_file, "quantized": quantized_file,
}  # fmt: skip


def seeds(target: str) -> list[bytes]:
    """Good inputs to start from, and every input that once showed a defect (files seeds/<target>-*)."""
    good = {
        "safetensors": lambda: [tiny.file_bytes({k: v for k, v in list(tiny.tensors().items())[:4]})],
        "config": lambda: [
            _bytes_of(tiny.CONFIG),
            _bytes_of({**tiny.CONFIG, "rope_scaling": {"type": "yarn", "factor": 4.0}}),
            _bytes_of({**tiny.CONFIG, "architectures": ["Gemma3ForCausalLM"], "sliding_window": 4}),
        ],
        "tokenizer": lambda: [_bytes_of(corruptions.TOKENIZER)],
        "index": lambda: [(_folder(sharded=True).path / INDEX).read_bytes()],
        "quantized": lambda: [_quantized(make) for make in (quantized_files.gptq, quantized_files.awq,
                              quantized_files.compressed_packed, quantized_files.fp8_one_scale,
                              lambda: quantized_files.bnb4(nested=True), quantized_files.mxfp4)],
        "gguf": lambda: [tiny_gguf.write(_folder().path, quantized=q).read_bytes() for q in (False, True)],
    }[target]()  # fmt: skip
    kept = sorted((Path(__file__).parent / "seeds").glob(f"{target}-*"))
    return good + [path.read_bytes() for path in kept]


def attempt(target: str, data: bytes) -> None:
    """Feeds one input. Everything but a clean refusal goes through."""
    try:
        TARGETS[target](data)
    except fastllm.FastLLMError as e:
        assert not isinstance(e, fastllm.InternalError), e
