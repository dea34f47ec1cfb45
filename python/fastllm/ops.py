"""Every operation of the runtime, on anything that speaks DLPack (NumPy arrays, torch tensors).

Letters: T new tokens, S sequences, E hidden, H query heads, G key/value heads, D head size, F feed-forward,
V vocabulary, P page size, X experts, k experts per token.

Activations are float32 and results are new NumPy arrays; inputs are never written, `KvCache` excepted. Weights are
float32, bfloat16 or float16 (bfloat16 from torch: NumPy has none). `device` is ``"reference"``, ``"cpu"``,
``"cpu:<level>"``, ``"cuda"``, ``"cuda:N"`` or a :class:`Device`; a string always names the same object, so that its
threads and scratch memory are made once. Wrong shapes, dtypes, devices or ids raise
:class:`fastllm.InvalidRequestError` and compute nothing.

On a GPU, arrays of the host are copied there and results back. Tensors that lie there are used as they are, in torch's
current stream (other producers': in the device's default stream), and results are tensors there. The host waits only
in calls with index arrays (ids, positions, slots, tables, experts): it checks them, and copies them there; they may lie
with the host in any case. Arrays of weights come from the host.

>>> import numpy as np
>>> from fastllm import ops
>>> w = ops.PackedWeight(np.eye(3, dtype=np.float32))
>>> ops.linear(np.ones((1, 3), np.float32), w)
array([[1., 1., 1.]], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastllm._core as _core
from fastllm.device_arrays import DeviceArray, call, copy, empty, to_host
from fastllm.errors import InvalidRequestError

Floats = NDArray[np.float32]  # for arrays on a device: a torch tensor, or a DeviceArray where the input is no tensor
Array = Any  # an object with __dlpack__

__all__ = [
    "Device",
    "DeviceArray",
    "KvCache",
    "PackedWeight",
    "SampleOutput",
    "SampleParams",
    "add",
    "copy_pages",
    "embed",
    "gated_activation",
    "linear",
    "moe_ffn",
    "moe_route",
    "paged_attention",
    "rms_norm",
    "rope_and_store",
    "rope_table",
    "sample",
    "softcap",
]

_ACTIVATIONS = {
    "silu": _core.Activation.SILU,
    "gelu_tanh": _core.Activation.GELU_TANH,
    "clamped_swiglu": _core.Activation.CLAMPED_SWIGLU,
}
_SCORES = {
    "softmax": _core.RouteScore.SOFTMAX,
    "softmax_of_top_k": _core.RouteScore.SOFTMAX_OF_TOP_K,
    "sigmoid": _core.RouteScore.SIGMOID,
}


class Device:
    """A backend with its threads and scratch memory. num_threads=None: as many as the machine grants."""

    def __init__(self, name: str = "cpu", *, num_threads: int | None = None) -> None:
        self._native = _core.OpsBackend(name, num_threads or 0)

    @property
    def name(self) -> str:
        """With the chosen level, for example ``"cpu:avx512"``."""
        return str(self._native.name)

    @property
    def num_threads(self) -> int:
        return int(self._native.num_threads)

    @property
    def page_size(self) -> int:
        """P, tokens in one page of a :class:`KvCache`."""
        return int(self._native.page_size)


@cache
def _named_device(name: str) -> Device:
    return Device(name)


def _device(device: str | Device) -> Device:
    return device if isinstance(device, Device) else _named_device(device)


class PackedWeight:
    """W [N, K], or [X, N, K] for experts, in the layout of one device. dtype=None keeps the array's."""

    def __init__(self, array: Array, *, dtype: str | None = None, device: str | Device = "cpu") -> None:
        self.device = _device(device)
        self._native = _core.OpsWeight(self.device._native, array, dtype)

    @classmethod
    def from_codes(
        cls,
        codes: Array,
        scales: Array,
        zeros: Array | None = None,
        *,
        format: str = "int4",
        group: int = 64,
        act: str = "a8r",
        scale_dtype: str | None = None,
        device: str | Device = "cpu",
    ) -> PackedWeight:
        """W[n, k] = (codes[n, k] - zeros[n, g]) * scales[n, g] with g = k // group, kept as codes.

        codes [N, K] or [X, N, K] uint8, 0..15 for format "int4", 0..255 for "int8". scales [N, groups] (or [X, N,
        groups]) float32, each exact in scale_dtype; groups = ceil(K / group). group: 32, 64 or 128 columns, or 0: one
        scale for a whole row. Format "fp8": codes are e4m3, without zeros, scales float32, act "bf16", "f32" or "fp8";
        on CUDA and the reference. zeros like scales, uint8, at most 16 for int4; None: 8 for int4, 128 for int8.

        act: how activations meet the integers: "a8" (one signed byte each, a scale per row and group), "a8r" (and a
        second byte in groups with an outlier), "a15" (two bytes), "bf16", "f32". The first three give the same bits on
        every level, backend and number of threads. For format "fp8" also "fp8" (one e4m3 each, a scale per row and
        group). scale_dtype: "float16" (default) or "bfloat16" with groups, "float32" for whole rows.
        """
        self = cls.__new__(cls)
        self.device = _device(device)
        self._native = _core.OpsWeight(
            self.device._native,
            codes,
            scales,
            zeros,
            group=group,
            format=format,
            act=act,
            scale_dtype=scale_dtype or ("float16" if group and format != "fp8" else "float32"),
        )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, N, K); X is 1 without experts."""
        num_experts, n, k = self._native.shape
        return num_experts, n, k

    @property
    def nbytes(self) -> int:
        return int(self._native.nbytes)


class KvCache:
    """Pages of P tokens for the keys and values of one layer. Zero at first.

    dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"int8"``: signed bytes with a bfloat16 scale, the largest
    number over 127, for 32 dimensions of a key or all dimensions of a value. ``"fp8"``: e4m3 with the same scales, over
    448; on CUDA and the reference, other devices raise UnsupportedModelError.
    """

    def __init__(
        self,
        num_pages: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: str = "bfloat16",
        device: str | Device = "cpu",
    ) -> None:
        self.device = _device(device)
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self._native = _core.OpsKvCache(self.device._native, num_pages, num_kv_heads, head_dim, dtype)

    @property
    def num_pages(self) -> int:
        return int(self._native.num_pages)

    @property
    def page_size(self) -> int:
        return self.device.page_size

    @property
    def nbytes(self) -> int:
        return int(self._native.nbytes)

    def page_bytes(self, page: int) -> bytes:
        """A copy of one page. The layout belongs to the device; equal pages have equal bytes."""
        return bytes(self._native.page_bytes(page))


def _rows(x: Array) -> int:
    return int(x.shape[0])


def _choice(what: str, table: Mapping[str, Any], name: str) -> Any:
    if name not in table:
        raise InvalidRequestError(f'{what} is "{name}"; {", ".join(table)} are known')
    return table[name]


def _activation(kind: str, alpha: float, limit: float) -> Any:
    return _core.ActivationSpec(kind=_choice("activation", _ACTIVATIONS, kind), alpha=alpha, limit=limit)


def embed(ids: Array, table: PackedWeight, *, scale: float = 1.0, out: Floats | None = None) -> Floats:
    """table[ids] * scale. ids [T] int32 or int64, table [V, E] -> [T, E]."""
    if out is None:
        out = empty(table.device, ids, (_rows(ids), table.shape[2]))
    call(_core.ops_embed, table.device, to_host(table.device, ids), table._native, out, scale)
    return out


def rms_norm(
    x: Array,
    weight: Array,
    *,
    residual: Array | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    row_ids: Array | None = None,
    device: str | Device = "cpu",
    out: Floats | None = None,
) -> Floats | tuple[Floats, Floats]:
    """x / sqrt(mean(x^2) + eps) * (weight + weight_offset) over each group of len(weight) columns.

    x [T, E], weight [E] (or [D]: each head of its own) -> [T, E]. With residual [T, E], x + residual is normalised and
    returned second. With row_ids [R], only those rows -> [R, E], and residual comes back as it was.
    """
    num_rows = _rows(x) if row_ids is None else _rows(row_ids)
    on = _device(device)
    y = empty(on, x, (num_rows, *x.shape[1:])) if out is None else out
    total = None if residual is None else copy(on, residual)
    call(_core.ops_rms_norm, on, x, weight, y, total, eps, weight_offset, to_host(on, row_ids))
    return y if total is None else (y, total)


def linear(x: Array, weight: PackedWeight, *, bias: Array | None = None, out: Floats | None = None) -> Floats:
    """x W^T + bias. x [M, K], weight [N, K], bias [N] float32 -> [M, N]."""
    if out is None:
        out = empty(weight.device, x, (_rows(x), weight.shape[1]))
    call(_core.ops_linear, weight.device, x, weight._native, out, bias)
    return out


def rope_table(
    positions: Array, inv_freq: Array, *, scale: float = 1.0, device: str | Device = "cpu"
) -> tuple[Floats, Floats]:
    """cos and sin of positions * inv_freq, times scale. positions [T], inv_freq [n] float32 -> two [T, n]."""
    shape = (_rows(positions), _rows(inv_freq))
    on = _device(device)
    cos, sin = empty(on, inv_freq, shape), empty(on, inv_freq, shape)
    call(_core.ops_rope_table, on, to_host(on, positions), inv_freq, cos, sin, scale)
    return cos, sin


def rope_and_store(
    q: Array, k: Array, v: Array, *, cos: Array | None, sin: Array | None, slots: Array, kv: KvCache
) -> tuple[Floats, Floats]:
    """Rotates q and k ("half" pairing, first 2n dimensions of each head) and writes k and v into kv.

    q [T, H, D] or [T, H * D], k and v [T, G, D], cos and sin [T, n] (None: no rotation), slots [T] = page * P + offset
    -> rotated q, k. Values are rounded to the cache's dtype.
    """
    rotated_q, rotated_k = copy(kv.device, q), copy(kv.device, k)
    indices = to_host(kv.device, slots)
    call(_core.ops_rope_and_store, kv.device, rotated_q, rotated_k, v, cos, sin, indices, kv._native)
    return rotated_q, rotated_k


def paged_attention(
    q: Array,
    kv: KvCache,
    *,
    query_start: Array,
    context_len: Array,
    block_table: Array,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Array | None = None,
    out: Floats | None = None,
) -> Floats:
    """Causal attention of the new tokens of S sequences over their pages.

    q [T, H, D] or [T, H * D]; query_start [S + 1]: sequence s owns rows [query_start[s], query_start[s + 1]), the last
    ones of its context of context_len[s] tokens; block_table [S, pages]; sinks [H] float32. window 0: the whole
    context; softcap 0: none. -> an array like q.
    """
    if out is None:
        out = empty(kv.device, q, q.shape)
    step = [to_host(kv.device, x) for x in (query_start, context_len, block_table)]
    call(_core.ops_paged_attention, kv.device, q, kv._native, *step, out, scale, window, softcap, sinks)
    return out


def gated_activation(
    gate_up: Array,
    *,
    activation: str = "silu",
    alpha: float = 1.702,
    limit: float = 7.0,
    device: str | Device = "cpu",
    out: Floats | None = None,
) -> Floats:
    """act(gate) * up for gate_up [T, 2F], gate first -> [T, F].

    activation: "silu", "gelu_tanh", or "clamped_swiglu" (gpt-oss), which reads alpha and limit.
    """
    if out is None:
        out = empty(_device(device), gate_up, (_rows(gate_up), int(gate_up.shape[1]) // 2))
    call(_core.ops_gated_activation, _device(device), gate_up, _activation(activation, alpha, limit), out)
    return out


def moe_route(
    logits: Array,
    *,
    top_k: int,
    score: str = "softmax",
    renormalize: bool = False,
    weight_scale: float = 1.0,
    device: str | Device = "cpu",
) -> tuple[NDArray[np.int32], Floats]:
    """The top_k experts of each token, best first, and their weights. logits [T, X] -> two [T, k].

    score: "softmax" (over all), "softmax_of_top_k", "sigmoid". Ties go to the lower index.
    """
    shape = (_rows(logits), max(top_k, 0))
    on = _device(device)
    experts, weights = empty(on, logits, shape, "int32"), empty(on, logits, shape)
    native_score = _choice("score", _SCORES, score)
    call(_core.ops_moe_route, on, logits, top_k, native_score, renormalize, weight_scale, experts, weights)
    return experts, weights


def moe_ffn(
    x: Array,
    experts: Array,
    weights: Array,
    *,
    gate_up: PackedWeight,
    down: PackedWeight,
    gate_up_bias: Array | None = None,
    down_bias: Array | None = None,
    activation: str = "silu",
    alpha: float = 1.702,
    limit: float = 7.0,
    out: Floats | None = None,
) -> Floats:
    """Sum over the chosen experts, ascending, of weight * down(act(gate_up(x))).

    x [T, E], experts and weights [T, k], gate_up [X, 2F, E], down [X, E, F], biases [X, 2F] and [X, E] -> [T, E].
    """
    if out is None:
        out = empty(gate_up.device, x, x.shape)
    spec = _activation(activation, alpha, limit)
    call(
        _core.ops_moe_ffn,
        gate_up.device,
        x,
        to_host(gate_up.device, experts),
        weights,
        gate_up._native,
        down._native,
        spec,
        out,
        gate_up_bias,
        down_bias,
    )
    return out


def add(residual: Array, x: Array, *, gate: Array | None = None, device: str | Device = "cpu") -> Floats:
    """residual + x * sigmoid(gate). residual and x [T, E], gate [T, 1] (None: factor 1) -> [T, E]."""
    total: Floats = copy(_device(device), residual)
    call(_core.ops_add, _device(device), total, x, gate)
    return total


def softcap(x: Array, cap: float, *, device: str | Device = "cpu") -> Floats:
    """cap * tanh(x / cap)."""
    capped: Floats = copy(_device(device), x)
    call(_core.ops_softcap, _device(device), capped, cap)
    return capped


def copy_pages(kv: KvCache, source: Array, target: Array) -> None:
    """Copies page source[i] of kv to page target[i]. A target is named once and is no source."""
    call(_core.ops_copy_pages, kv.device, kv._native, to_host(kv.device, source), to_host(kv.device, target))


@dataclass(frozen=True, slots=True)
class SampleParams:
    """How one row of logits is sampled. Steps in this order: penalties, bias, allowed ids and mask, temperature, top_k,
    top_p, min_p, then a draw that depends on (seed, sequence, position) alone."""

    temperature: float = 1.0  # below 1e-5: the largest logit, ties to the lower id
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    sequence: int = 0
    position: int = 0
    counts: Sequence[tuple[int, int, bool]] = ()  # (token, times generated, in the prompt), distinct tokens
    bias: Mapping[int, float] = field(default_factory=dict)  # added; -inf bans
    allowed: Sequence[int] | None = None  # ascending; None: all
    mask: Sequence[int] = ()  # words of 32 bits: bit i % 32 of word i // 32 allows id i; (): all
    wants_logprob: bool = False
    num_top: int = 0
    forced_token: int = -1  # >= 0: draw nothing, report this token


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """token is -1 and is_finite False if the row held a NaN or +infinity, or if every token was banned."""

    token: int
    is_finite: bool
    logprob: float
    rank: int  # 1: the most likely under the raw logits
    top_tokens: list[int]
    top_logprobs: list[float]


def _native_params(p: SampleParams) -> Any:
    if p.allowed is not None and len(p.allowed) == 0:
        raise InvalidRequestError("sample: allowed is empty, expected at least one id, or None for all")
    return _core.OpsSampleRow(
        temperature=p.temperature,
        top_k=p.top_k,
        top_p=p.top_p,
        min_p=p.min_p,
        repetition_penalty=p.repetition_penalty,
        frequency_penalty=p.frequency_penalty,
        presence_penalty=p.presence_penalty,
        seed=p.seed,
        sequence=p.sequence,
        position=p.position,
        counts=list(p.counts),
        bias=list(p.bias.items()),
        allowed=list(p.allowed or ()),
        mask=list(p.mask),
        wants_logprob=p.wants_logprob,
        num_top=p.num_top,
        forced_token=p.forced_token,
    )


def sample(
    logits: Array, params: SampleParams | Sequence[SampleParams], *, device: str | Device = "cpu"
) -> list[SampleOutput]:
    """One token for each row of logits [R, V]; params for all rows, or one for each."""
    rows = copy(_device(device), logits)
    each = [params] * _rows(rows) if isinstance(params, SampleParams) else list(params)
    results = call(_core.ops_sample, _device(device), rows, [_native_params(p) for p in each])
    return [SampleOutput(*r) for r in results]
