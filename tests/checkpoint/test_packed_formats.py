"""Which quantized tensors stay packed, and that codes, scales and zeros are worth exactly what the format defines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import quantized_files as files
import torch
from test_quantized import CASES

from fastllm.checkpoint.gguf import reader as gguf_reader
from fastllm.checkpoint.gguf.tensor import GgufSource
from fastllm.checkpoint.packed_format import PackedFormat, Parameters, common_format, exact_format

# What is expected of each case of test_quantized, by the beginning of its name; the first that fits.
EXPECTED = {
    "gptq, bf16 scales": "int4 g32, zeros",
    "awq group -1": "int4 row, zeros",
    "awq group 32": "int4 g32, zeros",
    "awq group 64": "int4 g64, zeros",
    "awq group 128": "int4 row, zeros",  # of 128 columns: one group is a row
    "compressed packed, columns that fill no word": "int4 row",
    "compressed int8 tensor": "int8 row",
    "compressed int8 channel": "int8 row",
    "compressed int8 group": "its scales need float32",
    "compressed int8 with zero points": "int8 row, zeros",
    "compressed fp8": "its codes are no integers",
    "fp8": "its codes are no integers",
    "bitsandbytes int8": "its scale is rounded twice",
    "bitsandbytes": "its codes are no integers",
    "mxfp4": "int8 g32",
}  # fmt: skip


def _expected(name: str) -> str:
    if (fixed := next((text for start, text in EXPECTED.items() if name.startswith(start)), None)) is not None:
        return fixed
    bits = next(b for b in "48" if f"{b} bits" in name)
    group = next(g for g in ("-1", "128", "32", "64", "96") if f"group {g}," in name)
    # 96 columns are one group of 96.
    is_row = group == "-1" or (group == "96" and "compressed" in name)
    if "act order True" in name and not is_row:
        return "act-order"
    has_zeros = "sym False" in name or "symmetric False" in name
    return f"int{bits} {'row' if is_row else 'g' + group}{', zeros' if has_zeros else ''}"


def values_of(packed: PackedFormat, codes: Any, scales: Any, zeros: Any) -> np.ndarray:
    """(code - zero) * scale, as csrc/ops/weights.h defines it."""
    assert codes.dtype == np.uint8 and scales.dtype == np.float32 and (zeros is not None) == packed.has_zeros
    assert codes.max() < 1 << packed.bits and (zeros is None or zeros.max() <= packed.largest_zero)
    wide = codes.shape[1] // scales.shape[1]
    assert packed.group in (0, wide) and (packed.group or scales.shape[1] == 1)
    zero = np.full_like(scales, packed.middle) if zeros is None else zeros.astype(np.float32)
    return (codes.astype(np.float32) - zero.repeat(wide, 1)) * scales.repeat(wide, 1)


@pytest.mark.parametrize("name", CASES)
def test_packed_codes_are_worth_what_the_format_defines(name: str, tmp_path: Path) -> None:
    tensor = files.decoded(CASES[name](), tmp_path)
    packed = tensor.packed_format()
    assert (packed if isinstance(packed, str) else packed.name) == _expected(name)
    if isinstance(packed, str):
        return
    expected = files.read_all(tensor).reshape(-1, tensor.shape[-1])
    got = values_of(packed, *tensor.codes(range(len(expected)), packed))
    assert np.array_equal(got, expected)
    piece = range(3, len(expected) - 1, 2)
    assert np.array_equal(values_of(packed, *tensor.codes(piece, packed)), expected[3:-1:2])


@pytest.mark.parametrize(
    ("make", "expected"),
    [(lambda: files.compressed_bytes("float", "tensor"), "fp8 row"),
     (lambda: files.compressed_bytes("float", "channel"), "fp8 row"),
     (lambda: files.compressed_bytes("float", "group"), "fp8 g32"),
     (lambda: files.compressed_bytes("float", "block"), "fp8 g32"),
     (lambda: files.fp8(n=200, k=384), "fp8 g128"),
     (lambda: files.fp8(n=200, k=300), "groups of 128 columns"),
     (files.fp8_one_scale, "fp8 row")],
)  # fmt: skip
def test_fp8_stays_packed_where_it_may(make: Any, expected: str, tmp_path: Path) -> None:
    tensor = files.decoded(make(), tmp_path)
    assert isinstance(tensor.packed_format(), str)
    packed = tensor.packed_format(fp8=True)
    assert (packed if isinstance(packed, str) else packed.name) == expected
    if isinstance(packed, str):
        return
    values = files.read_all(tensor)
    for piece in (range(len(values)), range(3, len(values) - 1, 2)):
        codes, scales, zeros = tensor.codes(piece, packed)
        wide = codes.shape[1] // scales.shape[1]
        decoded = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy() * scales.repeat(wide, 1)
        assert zeros is None and np.array_equal(decoded, values[piece.start : piece.stop : piece.step])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("Q4_0", "int4 g32"), ("Q8_0", "int8 g32"), ("Q5_0", "int8 g32"), ("Q4_1", "Q4_1 has no such form"),
     ("F16", "it is F16")],
)  # fmt: skip
def test_blocks_of_gguf(kind: str, expected: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((24, 96)).astype(np.float32)
    number = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(values, number)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = gguf_reader.read(tmp_path / "m.gguf").tensors["t"]
    source = GgufSource(tensor, tensor.shape)
    packed = source.packed_format()
    assert (packed if isinstance(packed, str) else packed.name) == expected
    if isinstance(packed, PackedFormat):
        assert packed.scale_dtype == "float16"
        got = values_of(packed, *source.codes(range(24), packed))
        assert np.array_equal(got, gguf.quants.dequantize(data, number))


UNSIGNED4 = np.arange(16, dtype=np.float32)
GROUPED = {"levels": UNSIGNED4, "num_cols": 256, "scale_dtype": "float16"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"group_size": 256}, "int4 row, zeros"),
        ({"group_size": 64, "zeros": np.full((2, 4), 8, np.float32)}, "int4 g64"),
        ({"group_size": 64, "zeros": np.full((2, 4), 7, np.float32)}, "int4 g64, zeros"),
        ({"group_size": 32, "zeros": np.array([[0, 16]], np.float32)}, "int4 g32, zeros"),
        ({"group_size": 32, "zeros": np.array([[0, 17]], np.float32)}, "int8 g32, zeros"),
        ({"group_size": 32, "zeros": np.array([[0.5, 1]], np.float32)}, "its codes or zero points have more than 8"),
        ({"group_size": 16}, "groups of 16 columns"),
        ({"group_size": 100, "num_cols": 300}, "groups of 100 columns"),
        ({"group_size": 256, "num_cols": 512}, "int4 g128, zeros"),
        ({"group_size": 192, "num_cols": 384}, "int4 g64, zeros"),
        ({"group_size": 128, "scale_dtype": None, "scales": np.array([[0.5]], np.float32)}, "int4 g128, zeros"),
        ({"group_size": 128, "scale_dtype": None, "scales": np.array([[1e-3]], np.float32)}, "its scales need float32"),
    ],
)  # fmt: skip
def test_smallest_format_that_holds_a_tensor(changes: dict[str, Any], expected: str) -> None:
    zeros = np.array([[3, 9]], np.float32)
    found = exact_format(Parameters(**{**GROUPED, "zeros": zeros, **changes}))
    assert (found if isinstance(found, str) else found.name).startswith(expected)


def test_parts_of_a_fused_matrix_share_the_smallest_format_that_holds_all() -> None:
    int4, zeros = PackedFormat(4, 64, "float16", False), PackedFormat(4, 128, "float16", True)
    assert common_format([int4, int4]) == int4
    assert common_format([int4, zeros]) == PackedFormat(4, 64, "float16", True)
    assert common_format([int4, PackedFormat(8, 128, "float16", False)]) == PackedFormat(8, 64, "float16", False)
    assert "different types" in str(common_format([int4, PackedFormat(4, 64, "bfloat16", False)]))
    assert "different types" in str(common_format([int4, PackedFormat(8, 0, "float32", False)]))
    assert common_format([int4, "act-order"]) == "act-order"


@pytest.mark.parametrize("sym", [True, False])
def test_codes_in_a_wider_format_are_worth_the_same(sym: bool, tmp_path: Path) -> None:
    tensor = files.decoded(files.gptq(4, 64, sym), tmp_path)
    expected = files.read_all(tensor)
    for target in (PackedFormat(4, 32, "float16", True), PackedFormat(8, 32, "float16", True),
                   *([PackedFormat(8, 64, "float16", False)] if sym else [])):  # fmt: skip
        assert np.array_equal(values_of(target, *tensor.codes(range(len(expected)), target)), expected)
