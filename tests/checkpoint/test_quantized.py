"""Decoded weights equal the definition of their format bit for bit: against the packages that own them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import quantized_files as files
import torch
from quantized_files import Made

CASES: dict[str, Callable[[], Made]] = {
    **{
        f"gptq {bits} bits, group {group}, sym {sym}, act order {act}, {layout}":
        lambda b=bits, g=group, s=sym, a=act, v=layout: files.gptq(b, g, s, a, v)
        for bits in (4, 8) for group in (32, 64, 128, -1) for sym in (False, True) for act in (False, True)
        for layout in ("gptq", "gptq_v2")
    },
    "gptq, bf16 scales": lambda: files.gptq(dtype=torch.bfloat16),
    **{f"awq group {group}": lambda g=group: files.awq(g) for group in (32, 64, 128, -1)},
    **{
        f"compressed packed {bits} bits, group {group}, symmetric {sym}, act order {act}":
        lambda b=bits, g=group, s=sym, a=act: files.compressed_packed(b, g, s, a)
        for bits in (4, 8) for group in (32, 96, -1) for sym in (True, False) for act in (False, True)
        if not (act and group == -1)
    },
    "compressed packed, columns that fill no word": lambda: files.compressed_packed(k=33, group=-1),
    **{f"compressed int8 {how}": lambda h=how: files.compressed_bytes("int", h)
       for how in ("tensor", "channel", "group")},
    "compressed int8 with zero points": lambda: files.compressed_bytes("int", "channel", symmetric=False),
    **{f"compressed fp8 {how}": lambda h=how: files.compressed_bytes("float", h)
       for how in ("tensor", "channel", "block")},
    "fp8": files.fp8,
    "fp8, blocks of 32": lambda: files.fp8(block=32),
    "fp8, one scale": lambda: files.fp8_one_scale(),
    **{f"bitsandbytes {kind}, block {block}, nested {nested}": lambda k=kind, b=block, d=nested: files.bnb4(k, b, d)
       for kind in ("nf4", "fp4") for block in (64, 128) for nested in (False, True)},
    "bitsandbytes nf4, blocks across rows": lambda: files.bnb4(k=48, n=32),
    "bitsandbytes int8": files.bnb8,
    "mxfp4": files.mxfp4,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_decoded_values_are_those_of_the_definition(name: str, tmp_path: Path) -> None:
    made = CASES[name]()
    tensor = files.decoded(made, tmp_path)
    assert tensor.shape == tuple(made.values.shape) and tensor.dtype == "F32"
    got = torch.from_numpy(files.read_all(tensor))
    # Some packages compute in the type of the scales: the float32 value, rounded once.
    got = got.to(made.values.dtype)
    assert torch.equal(got, made.values), f"{(got != made.values).sum()} of {got.numel()} differ"


FORMATS = ("gptq 4", "awq", "compressed packed 4", "compressed int8", "fp8", "bitsandbytes nf4", "mxfp4")


@pytest.mark.parametrize("name", [next(name for name in CASES if name.startswith(kind)) for kind in FORMATS])
def test_any_piece_reads_like_the_whole(name: str, tmp_path: Path) -> None:
    tensor = files.decoded(CASES[name](), tmp_path)
    whole = files.read_all(tensor).reshape(-1)
    rng = np.random.default_rng(0)
    for _ in range(30):
        begin = int(rng.integers(tensor.num_elements))
        piece = np.empty(int(rng.integers(1, min(900, tensor.num_elements - begin + 1))), np.float32)
        tensor.read(begin, piece.data.cast("B"))
        assert np.array_equal(piece, whole[begin : begin + len(piece)])
