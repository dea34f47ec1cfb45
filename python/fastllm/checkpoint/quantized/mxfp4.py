"""MXFP4 as gpt-oss has it: blocks of 32 FP4 (E2M1) elements with a common power of two.

X_blocks [.., N, K / 32, 16] holds the codes, the first of two elements in the low half; X_scales [.., N, K / 32] is the
exponent + 127. W = table[code] * 2^(scale - 127); here the table is doubled and the scale is half of that. The rows are
those of the weight (outputs), unlike the unquantized X [.., K, N]; the decoded tensor keeps the name X_blocks, so that
the architecture can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastllm.checkpoint.config import Config
from fastllm.checkpoint.packed_format import Parameters
from fastllm.checkpoint.quantized.tensor import QuantizedRows, QuantizedTensor, find_part, read_rows
from fastllm.checkpoint.safetensors import Tensor
from fastllm.errors import CheckpointError

BLOCK = 32
SUFFIXES = ("scales",)
TABLE = np.zeros(256, np.float32)
TABLE[:16] = [0, 1, 2, 3, 4, 6, 8, 12, -0.0, -1, -2, -3, -4, -6, -8, -12]  # doubled, so that they are integers


class Mxfp4Tensor(QuantizedTensor):
    def __init__(self, blocks: Tensor, scales: Tensor) -> None:
        *leading, num_blocks, _ = blocks.shape
        super().__init__(blocks.name, (*leading, num_blocks * BLOCK), [blocks, scales])
        self._blocks, self._scales, self._num_blocks = blocks, scales, num_blocks

    def parameters(self) -> Parameters:
        return Parameters(TABLE[:16], BLOCK, self.shape[-1], "bfloat16")  # which holds every 2^(e - 128)

    def load(self) -> bool:
        return True  # a piece is read when it is asked for

    def rows(self, loaded: Any, begin: int, end: int) -> QuantizedRows:
        packed = read_rows(self._blocks, begin, end, self._num_blocks * BLOCK // 2)
        exponents = read_rows(self._scales, begin, end, self._num_blocks)
        if (exponents == 255).any():  # E8M0: NaN
            raise CheckpointError("a scale is NaN (exponent 255)")
        codes = np.empty((*packed.shape, 2), np.uint8)
        codes[..., 0], codes[..., 1] = packed & 15, packed >> 4
        scales = np.ldexp(np.float32(1.0), exponents.astype(np.int32) - 128).astype(np.float32)
        return QuantizedRows(codes.reshape(end - begin, -1), TABLE, scales, BLOCK)


def read(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, QuantizedTensor]:
    """`config` is quantization_config."""
    del config
    found: dict[str, QuantizedTensor] = {}
    for name in [name for name in tensors if name.endswith("_blocks")]:
        blocks = find_part(tensors, name, ("U8",))
        if len(blocks.shape) < 3 or blocks.shape[-1] != BLOCK // 2 or math.prod(blocks.shape) == 0:
            raise CheckpointError(f"{blocks.where}: shape is {list(blocks.shape)}, expected [.., N, K / 32, 16]")
        scales = find_part(tensors, f"{name.removesuffix('_blocks')}_scales", ("U8",), blocks.shape[:-1])
        found[name] = Mxfp4Tensor(blocks, scales)
    return found
