"""What each matrix is held as: options, mixed checkpoints, the bytes of the memory plan, and what is said about it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantized_files as files
from test_quantized_models import _write

import fastllm
from fastllm import InvalidRequestError, _core
from fastllm.checkpoint.formats import MatrixShape, Rounding, choose_formats
from fastllm.demo import DEMO_MODEL

SMALL = {"num_threads": 1, "max_num_seqs": 2, "kv_cache_tokens": 256}


def _info(folder: Path, **options: Any) -> dict[str, Any]:
    with fastllm.LLM(str(folder), **{**SMALL, **options}) as llm:
        llm.generate([[1, 2, 3]], fastllm.SamplingParams(max_tokens=2))
        return llm.info()


def _shape(slot: str, num_cols: int) -> MatrixShape:
    return MatrixShape(slot, 64, num_cols, 1, False)


@pytest.mark.parametrize(
    ("text", "slot", "num_cols", "expected"),
    [
        ("int4", "layers.0.o", 1024, "int4 g128, zeros"),
        ("int4", "layers.0.o", 192, "int4 g64, zeros"),
        ("int4", "layers.0.o", 96, "int4 g32, zeros"),
        ("int4", "layers.0.o", 72, "int8 row"),
        ("int4-g64", "layers.0.o", 1024, "int4 g64, zeros"),
        ("int4-row", "layers.0.o", 72, "int4 row, zeros"),
        ("int4-g32", "lm_head", 1024, "int8 g128"),
        ("int4", "embed", 1024, "int8 g128"),
        ("int8", "layers.0.o", 1024, "int8 g128"),
        ("int8-row", "lm_head", 1024, "int8 row"),
    ],
)
def test_what_an_option_means_for_a_matrix(text: str, slot: str, num_cols: int, expected: str) -> None:
    assert Rounding.parse(text).format_of(_shape(slot, num_cols)).name == expected


@pytest.mark.parametrize("text", ["int5", "int4-48", "int4-g48", "int4-g", "int4-", "INT4", "awq", "", "int4 g64"])
def test_unknown_formats_are_refused_with_those_that_are_known(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"quantization = .* is not known; use None, 'int4' or 'int8', or"):
        fastllm.LLM(quantization=text)


def test_a_group_that_does_not_divide_names_matrix_and_what_is_possible(tmp_path: Path) -> None:
    folder = _write(tmp_path / "m", lambda n, k, seed: files.gptq(n=n, k=k, seed=seed), parts=False)
    with pytest.raises(InvalidRequestError, match=r"layers\.0\.\w+ has (64|96) columns, which 128 does not div"):
        fastllm.LLM(str(folder), quantization="int4-g128", **SMALL)
    with pytest.raises(InvalidRequestError, match=r"layers\.0\.down has 96 .* possible are 'int4-g32', 'int4-row'"):
        fastllm.LLM(str(folder), quantization="int4-g64", **SMALL)


@pytest.mark.parametrize(
    ("mode", "match"),
    [
        ("a7", "activation_mode = 'a7' is not known; use one of auto, a8, a8r, a15, bf16, f32, fp8"),
        ({"*.down": "w"}, "activation_mode = 'w' is not known"),
        (5, "activation_mode = 5 must be a mode"),
        ("fp8", r"'\*' fits none of the 0 fp8 matrices .* a checkpoint of fp8 is held as fp8 on CUDA alone"),
        ({"*.dwon": "a15"}, r"'\*\.dwon' fits none of the 17 integer matrices \(embed, layers\.0\.qkv,"),
    ],
)
def test_wrong_activation_modes(mode: Any, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        fastllm.LLM(quantization="int8", activation_mode=mode, **SMALL)


def test_activation_modes_by_pattern() -> None:
    info = _info(DEMO_MODEL, quantization="int4", activation_mode={"*.down": "a15", "layers.0.*": "bf16"})
    assert info["activation_mode"] == "a15, a8r, bf16"


@pytest.mark.parametrize("device", ["cpu", "cpu:scalar", "reference"])
@pytest.mark.parametrize("quantization", [None, "int8", "int8-row", "int4", "int4-g32", "int4-row"])
def test_the_memory_plan_counts_what_is_held(device: str, quantization: str | None) -> None:
    info = _info(DEMO_MODEL, device=device, quantization=quantization)
    assert sum(info["weights"].values()) == info["memory"]["weight_bytes"]


def test_linear_weights_take_the_share_that_is_promised() -> None:
    def linear_bytes(quantization: str | None) -> int:
        with fastllm.LLM(quantization=quantization, **SMALL) as llm:
            sizes = llm._runtime._native.matrix_bytes()
        return sum(size for slot, size in sizes.items() if slot != "embed")

    floats = linear_bytes(None)
    assert linear_bytes("int8") <= 0.52 * floats and linear_bytes("int4") <= 0.27 * floats


def test_wrong_formats_are_refused_by_the_core() -> None:
    spec = fastllm.checkpoint.loader.load(Path(DEMO_MODEL)).spec
    good = {"format": "int4", "group": 64, "scale_dtype": "float16", "has_zeros": False, "act": "a8r"}
    for slot, changes, match in (
        ("layers.0.o", {"group": 48}, r"layers\.0\.o: int4 with groups of 48 is not possible; groups are 32, 64 or"),
        ("layers.0.o", {"group": 0}, "scales of int4 with whole rows are float32, not float16"),
        ("layers.0.o", {"scale_dtype": "float32"}, "scales of int4 with groups are float16 or bfloat16, not float32"),
        ("layers.9.o", {}, r"layers\.9\.o: the model has no such matrix"),
        ("layers.0.o", {"format": "int3"}, '"int3"'),
        ("layers.0.o", {"act": "a9"}, '"a9"'),
    ):
        with pytest.raises(InvalidRequestError, match=match):
            formats = {slot: _core.MatrixFormat(**{**good, **changes})}
            _core.Model(spec, device="cpu", num_threads=1, dtype="float32", formats=formats).weight_bytes()


@pytest.mark.parametrize(
    ("part", "value", "match"),
    [
        ("codes", 16, r"layers\.0\.o: .*codes\[1, 5\] is 16, expected 0 to 15 for int4"),
        ("zeros", 17, r"layers\.0\.o: .*zeros\[1, 0\] is 17, expected 0 to 16 for int4"),
        ("scales", 0.1, r"layers\.0\.o: .*scales\[1, 0\] is 0\.1, which is not a float16"),
        ("scales", np.inf, r"layers\.0\.o: the scale of row 9, group 0 is inf, expected a finite number"),
    ],
)
def test_codes_that_the_format_cannot_hold_are_refused(part: str, value: float, match: str) -> None:
    spec = fastllm.checkpoint.loader.load(Path(DEMO_MODEL)).spec
    (shape,) = [MatrixShape(*shape) for shape in _core.matrix_shapes(spec) if shape[0] == "layers.0.o"]
    formats = {
        "layers.0.o": _core.MatrixFormat(format="int4", group=64, scale_dtype="float16", has_zeros=True, act="a8")
    }
    model = _core.Model(spec, device="cpu", num_threads=1, dtype="float32", formats=formats)
    model.allocate_weights()
    groups = shape.num_cols // 64
    arrays = {
        "codes": np.full((2, shape.num_cols), 15, np.uint8),
        "scales": np.ones((2, groups), np.float32),
        "zeros": np.full((2, groups), 16, np.uint8),
    }
    model.fill_codes(name="layers.0.o", **arrays, row_begin=6, expert=0)
    arrays[part][1, 5 if part == "codes" else 0] = value
    with pytest.raises(fastllm.CheckpointError, match=match):
        model.fill_codes(name="layers.0.o", **arrays, row_begin=8, expert=0)


# Checkpoints that hold some modules quantized, in _write(): all of layer 0, and the feed-forward of layer 1.


def test_quantized_modules_stay_packed_and_the_others_are_rounded_if_asked(tmp_path: Path) -> None:
    folder = _write(tmp_path / "m", lambda n, k, seed: files.gptq(n=n, k=k, seed=seed, sym=True))
    plain = _info(folder)
    assert plain["weights"].keys() == {"float32", "int4 g32", "vectors"}
    assert plain["quantization"]["matrices_kept_packed"] == 6 and plain["activation_mode"] == "a8r"
    rounded = _info(folder, quantization="int8")
    assert rounded["weights"].keys() == {"int4 g32", "int8 g64", "vectors"}
    assert rounded["weights"]["int4 g32"] == plain["weights"]["int4 g32"]
    assert rounded["quantization"]["matrices_rounded"] == 4


def test_a_fused_matrix_with_a_float_part_is_held_as_floats(tmp_path: Path) -> None:
    """q and k quantized, v not, as a config that excludes v_proj has it."""
    from safetensors.torch import load_file, save_file

    folder = _write(tmp_path / "m", lambda n, k, seed: files.gptq(n=n, k=k, seed=seed))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    module = "model.layers.0.self_attn.v_proj."
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        del tensors[module + part]
    tensors[f"{module}weight"] = tensors["model.layers.1.self_attn.v_proj.weight"].clone()
    save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    found = _info(folder)["quantization"]
    assert found["tensors_decoded"] == {"a part of the same matrix is a float": 2}
    assert found["matrices_kept_packed"] == 5


def test_the_log_says_what_became_of_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _write(tmp_path / "m", lambda n, k, seed: files.gptq(n=n, k=k, seed=seed, act_order=True))
    with caplog.at_level(logging.INFO, "fastllm"):
        _info(folder)
    assert "10 gptq tensors of" in caplog.text and "decoded: 10 because act-order; held as float32" in caplog.text


def test_a_zero_point_that_disagrees_with_sym_is_taken_as_it_is(tmp_path: Path) -> None:
    """`sym` in the config is a claim; the tensors decide."""
    made = files.gptq(sym=False)
    made.config["sym"] = True
    assert files.decoded(made, tmp_path).packed_format().has_zeros


def test_routers_are_floats_whatever_is_asked_for() -> None:
    shapes = [_shape("layers.0.experts.down", 64), MatrixShape("layers.0.router", 4, 64, 1, True)]
    assert choose_formats(shapes, [], "int4", "auto").packed.keys() == {"layers.0.experts.down"}


def test_values_that_cannot_be_rounded_name_tensor_and_file(tmp_path: Path) -> None:
    import tiny

    arrays = tiny.tensors()
    arrays[tiny.Q_PROJ][0, 3] = np.nan
    folder = tiny.write(tmp_path / "m", weights=tiny.file_bytes(arrays))
    with pytest.raises(fastllm.CheckpointError, match=rf"model\.safetensors: tensor {tiny.Q_PROJ}: a value is not"):
        fastllm.LLM(str(folder), quantization="int8", **SMALL)
