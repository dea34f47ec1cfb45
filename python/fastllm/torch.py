"""The operations of :mod:`fastllm.ops` as operators of torch, so that ``torch.compile`` keeps them in its graphs.

Importing this module needs torch (2.4 has the interfaces, 2.13 is what the tests run) and registers
``torch.ops.fastllm.*``. The functions here mean what those of :mod:`fastllm.ops` mean, on tensors; each runs on the
device of its weight or cache, or of its first tensor. They are for inference: nothing has a derivative. ``sample`` is
not among them, since its parameters are no tensors.

>>> import torch
>>> import fastllm.torch as ft
>>> from fastllm import ops
>>> w = ft.Weight(ops.PackedWeight(torch.eye(3)))
>>> torch.compile(lambda x: ft.linear(x, w), fullgraph=True, backend="eager")(torch.ones(1, 3))
tensor([[1., 1., 1.]])

A graph holds the *name* of a weight or cache, which is known in this process while the object lives: graphs with these
operators cannot be saved for another process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "fastllm.torch needs torch; pip install 'fastllm-runtime[torch]'", name="torch"
    ) from error

import numpy as np
from torch import Tensor

from fastllm import ops

__all__ = [
    "Cache",
    "Weight",
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
    "softcap",
]

_numbers = itertools.count()


class Weight:
    """A :class:`fastllm.ops.PackedWeight` that graphs can name. Make it once, outside of what is compiled."""

    def __init__(self, packed: ops.PackedWeight) -> None:
        self.packed = packed
        self.name = f"weight{next(_numbers)}"
        _weights[self.name] = self


class Cache:
    """A :class:`fastllm.ops.KvCache` that graphs can name. Make it once, outside of what is compiled.

    ``order`` stands for the pages in a graph: operators that write pages say that they write it, those that read pages
    take it, and so torch neither drops them nor changes their order.
    """

    def __init__(self, kv: ops.KvCache) -> None:
        self.kv = kv
        self.order = torch.zeros(1)
        self.name = f"cache{next(_numbers)}"
        _caches[self.name] = self


_weights: WeakValueDictionary[str, Weight] = WeakValueDictionary()
_caches: WeakValueDictionary[str, Cache] = WeakValueDictionary()


def _weight(name: str) -> ops.PackedWeight:
    if name not in _weights:
        raise RuntimeError(
            f'fastllm.torch: "{name}" is no Weight of this process any more; keep it while graphs use it'
        )
    return _weights[name].packed


def _kv(name: str) -> ops.KvCache:
    if name not in _caches:
        raise RuntimeError(f'fastllm.torch: "{name}" is no Cache of this process any more; keep it while graphs use it')
    return _caches[name].kv


def _device(x: Tensor) -> str:
    return f"cuda:{x.device.index or 0}" if x.device.type == "cuda" else "cpu"


def _tensors(result: Any) -> Any:
    """NumPy arrays as tensors on the same memory; tensors as they are."""
    if isinstance(result, tuple):
        return tuple(_tensors(x) for x in result)
    return torch.from_numpy(result) if isinstance(result, np.ndarray) else result


def _floats(like: Tensor, *shape: Any) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _operator(schema: str, fake: Callable[..., Any], writes: str = "") -> Callable[[Callable[..., Any]], Any]:
    """Registers a function as torch.ops.fastllm.<its name>; `fake` gives results of the right shape with no values."""

    def register(function: Callable[..., Any]) -> Any:
        def run(*args: Any) -> Any:
            return _tensors(function(*[a.detach() if isinstance(a, Tensor) else a for a in args]))

        name = f"fastllm::{function.__name__.strip('_')}"
        operator = torch.library.custom_op(name, run, mutates_args=(writes,) if writes else (), schema=schema)
        operator.register_fake(fake)
        return operator

    return register


@_operator(
    "(Tensor ids, str table, float scale) -> Tensor",
    lambda ids, table, scale: _floats(ids, ids.shape[0], _weight(table).shape[2]),
)
def _embed(ids: Tensor, table: str, scale: float) -> Any:
    return ops.embed(ids, _weight(table), scale=scale)


def embed(ids: Tensor, table: Weight, *, scale: float = 1.0) -> Tensor:
    """See :func:`fastllm.ops.embed`."""
    y: Tensor = _embed(ids, table.name, scale)
    return y


@_operator(
    "(Tensor x, Tensor weight, float eps, float weight_offset, Tensor? row_ids) -> Tensor",
    lambda x, weight, eps, offset, row_ids: _floats(x, (x if row_ids is None else row_ids).shape[0], *x.shape[1:]),
)
def _rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float, row_ids: Tensor | None) -> Any:
    return ops.rms_norm(x, weight, eps=eps, weight_offset=weight_offset, row_ids=row_ids, device=_device(x))


@_operator(
    "(Tensor x, Tensor weight, Tensor residual, float eps, float weight_offset, Tensor? row_ids) -> (Tensor, Tensor)",
    lambda x, weight, residual, eps, offset, row_ids: (
        _floats(x, (x if row_ids is None else row_ids).shape[0], *x.shape[1:]),
        _floats(x, *residual.shape),
    ),
)
def _add_rms_norm(
    x: Tensor, weight: Tensor, residual: Tensor, eps: float, weight_offset: float, row_ids: Tensor | None
) -> Any:
    return ops.rms_norm(
        x, weight, residual=residual, eps=eps, weight_offset=weight_offset, row_ids=row_ids, device=_device(x)
    )


def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    row_ids: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`fastllm.ops.rms_norm`."""
    result: Tensor | tuple[Tensor, Tensor] = (
        _rms_norm(x, weight, eps, weight_offset, row_ids)
        if residual is None
        else _add_rms_norm(x, weight, residual, eps, weight_offset, row_ids)
    )
    return result


@_operator(
    "(Tensor x, str weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: _floats(x, x.shape[0], _weight(weight).shape[1]),
)
def _linear(x: Tensor, weight: str, bias: Tensor | None) -> Any:
    return ops.linear(x, _weight(weight), bias=bias)


def linear(x: Tensor, weight: Weight, *, bias: Tensor | None = None) -> Tensor:
    """See :func:`fastllm.ops.linear`."""
    y: Tensor = _linear(x, weight.name, bias)
    return y


@_operator(
    "(Tensor positions, Tensor inv_freq, float scale) -> (Tensor, Tensor)",
    lambda positions, inv_freq, scale: (
        _floats(inv_freq, positions.shape[0], inv_freq.shape[0]),
        _floats(inv_freq, positions.shape[0], inv_freq.shape[0]),
    ),
)
def _rope_table(positions: Tensor, inv_freq: Tensor, scale: float) -> Any:
    return ops.rope_table(positions, inv_freq, scale=scale, device=_device(inv_freq))


def rope_table(positions: Tensor, inv_freq: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """See :func:`fastllm.ops.rope_table`."""
    cos, sin = _rope_table(positions, inv_freq, scale)
    return cos, sin


@_operator(
    "(Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin, Tensor slots, str kv, Tensor(a!) order)"
    " -> (Tensor, Tensor)",
    lambda q, k, v, cos, sin, slots, kv, order: (_floats(q, *q.shape), _floats(k, *k.shape)),
    writes="order",
)
def _rope_and_store(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor | None, sin: Tensor | None, slots: Tensor, kv: str, order: Tensor
) -> Any:
    return ops.rope_and_store(q, k, v, cos=cos, sin=sin, slots=slots, kv=_kv(kv))


def rope_and_store(
    q: Tensor, k: Tensor, v: Tensor, *, cos: Tensor | None, sin: Tensor | None, slots: Tensor, kv: Cache
) -> tuple[Tensor, Tensor]:
    """See :func:`fastllm.ops.rope_and_store`."""
    rotated_q, rotated_k = _rope_and_store(q, k, v, cos, sin, slots, kv.name, kv.order)
    return rotated_q, rotated_k


@_operator(
    "(Tensor q, str kv, Tensor order, Tensor query_start, Tensor context_len, Tensor block_table, float scale,"
    " int window, float softcap, Tensor? sinks) -> Tensor",
    lambda q, *_: _floats(q, *q.shape),
)
def _paged_attention(
    q: Tensor,
    kv: str,
    order: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    block_table: Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Any:
    return ops.paged_attention(
        q,
        _kv(kv),
        query_start=query_start,
        context_len=context_len,
        block_table=block_table,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )


def paged_attention(
    q: Tensor,
    kv: Cache,
    *,
    query_start: Tensor,
    context_len: Tensor,
    block_table: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """See :func:`fastllm.ops.paged_attention`."""
    out: Tensor = _paged_attention(
        q, kv.name, kv.order, query_start, context_len, block_table, scale, window, softcap, sinks
    )
    return out


@_operator(
    "(Tensor gate_up, str activation, float alpha, float limit) -> Tensor",
    lambda gate_up, *_: _floats(gate_up, gate_up.shape[0], gate_up.shape[1] // 2),
)
def _gated_activation(gate_up: Tensor, activation: str, alpha: float, limit: float) -> Any:
    return ops.gated_activation(gate_up, activation=activation, alpha=alpha, limit=limit, device=_device(gate_up))


def gated_activation(gate_up: Tensor, *, activation: str = "silu", alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """See :func:`fastllm.ops.gated_activation`."""
    y: Tensor = _gated_activation(gate_up, activation, alpha, limit)
    return y


@_operator(
    "(Tensor logits, int top_k, str score, bool renormalize, float weight_scale) -> (Tensor, Tensor)",
    lambda logits, top_k, *_: (
        logits.new_empty((logits.shape[0], top_k), dtype=torch.int32),
        _floats(logits, logits.shape[0], top_k),
    ),
)
def _moe_route(logits: Tensor, top_k: int, score: str, renormalize: bool, weight_scale: float) -> Any:
    return ops.moe_route(
        logits, top_k=top_k, score=score, renormalize=renormalize, weight_scale=weight_scale, device=_device(logits)
    )


def moe_route(
    logits: Tensor, *, top_k: int, score: str = "softmax", renormalize: bool = False, weight_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """See :func:`fastllm.ops.moe_route`."""
    experts, weights = _moe_route(logits, top_k, score, renormalize, weight_scale)
    return experts, weights


@_operator(
    "(Tensor x, Tensor experts, Tensor weights, str gate_up, str down, Tensor? gate_up_bias, Tensor? down_bias,"
    " str activation, float alpha, float limit) -> Tensor",
    lambda x, *_: _floats(x, *x.shape),
)
def _moe_ffn(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: str,
    down: str,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    alpha: float,
    limit: float,
) -> Any:
    return ops.moe_ffn(
        x,
        experts,
        weights,
        gate_up=_weight(gate_up),
        down=_weight(down),
        gate_up_bias=gate_up_bias,
        down_bias=down_bias,
        activation=activation,
        alpha=alpha,
        limit=limit,
    )


def moe_ffn(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    *,
    gate_up: Weight,
    down: Weight,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: str = "silu",
    alpha: float = 1.702,
    limit: float = 7.0,
) -> Tensor:
    """See :func:`fastllm.ops.moe_ffn`."""
    y: Tensor = _moe_ffn(
        x, experts, weights, gate_up.name, down.name, gate_up_bias, down_bias, activation, alpha, limit
    )
    return y


@_operator(
    "(Tensor residual, Tensor x, Tensor? gate) -> Tensor",
    lambda residual, *_: _floats(residual, *residual.shape),
)
def _add(residual: Tensor, x: Tensor, gate: Tensor | None) -> Any:
    return ops.add(residual, x, gate=gate, device=_device(x))


def add(residual: Tensor, x: Tensor, *, gate: Tensor | None = None) -> Tensor:
    """See :func:`fastllm.ops.add`."""
    y: Tensor = _add(residual, x, gate)
    return y


@_operator("(Tensor x, float cap) -> Tensor", lambda x, cap: _floats(x, *x.shape))
def _softcap(x: Tensor, cap: float) -> Any:
    return ops.softcap(x, cap, device=_device(x))


def softcap(x: Tensor, cap: float) -> Tensor:
    """See :func:`fastllm.ops.softcap`."""
    y: Tensor = _softcap(x, cap)
    return y


@_operator("(str kv, Tensor(a!) order, Tensor source, Tensor target) -> ()", lambda *_: None, writes="order")
def _copy_pages(kv: str, order: Tensor, source: Tensor, target: Tensor) -> None:
    ops.copy_pages(_kv(kv), source, target)


def copy_pages(kv: Cache, source: Tensor, target: Tensor) -> None:
    """See :func:`fastllm.ops.copy_pages`."""
    _copy_pages(kv.name, kv.order, source, target)
