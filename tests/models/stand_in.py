"""A decoder in numpy that runs a ModelSpec: it pins what a spec and its fills mean without the native core."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from fastllm import _core

Array = np.ndarray


class Weights:
    """Takes what LoadPlan.fill() gives, as the native ModelWeights does."""

    def __init__(self, spec: Any) -> None:
        self.matrices: dict[str, Array] = {}
        self.vectors: dict[str, Array] = {}
        e, v = spec.hidden_size, spec.vocab_size
        self._matrix("embed", v, e)
        if not spec.tied_embeddings:
            self._matrix("lm_head", v, e)
        self._vector("final_norm", e)
        for i, layer in enumerate(spec.layers):
            self._declare_layer(f"layers.{i}.", layer, e)

    def _declare_layer(self, p: str, layer: Any, e: int) -> None:
        a = layer.attention
        q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        self._matrix(p + "qkv", q + 2 * kv, e)
        self._matrix(p + "o", e, q)
        vectors = {
            "qkv_bias": (a.has_qkv_bias, q + 2 * kv), "o_bias": (a.has_output_bias, e),
            "sinks": (a.has_sinks, a.num_heads),
            "q_norm": (a.qk_norm != _core.QkNorm.NONE, q if a.qk_norm == _core.QkNorm.FULL else a.head_dim),
            "k_norm": (a.qk_norm != _core.QkNorm.NONE, kv if a.qk_norm == _core.QkNorm.FULL else a.head_dim),
            **{name: (getattr(layer, name) is not None, e)
               for name in ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm")},
        }  # fmt: skip
        for name, (is_there, size) in vectors.items():
            if is_there:
                self._vector(p + name, size)
        if layer.ffn is not None:
            self._matrix(p + "gate_up", 2 * layer.ffn.ffn_dim, e)
            self._matrix(p + "down", e, layer.ffn.ffn_dim)
            return
        moe = layer.moe
        x, f, s = moe.num_experts, moe.ffn_dim, moe.shared_ffn_dim
        self._matrix(p + "router", x, e)
        self._matrix(p + "experts.gate_up", 2 * f, e, x)
        self._matrix(p + "experts.down", e, f, x)
        if moe.has_router_bias:
            self._vector(p + "router_bias", x)
        if moe.has_expert_bias:
            self._vector(p + "experts.gate_up_bias", x * 2 * f)
            self._vector(p + "experts.down_bias", x * e)
        if s:
            self._matrix(p + "shared.gate_up", 2 * s, e)
            self._matrix(p + "shared.down", e, s)
            self._matrix(p + "shared_gate", 1, e)

    def _matrix(self, name: str, n: int, k: int, experts: int = 1) -> None:
        self.matrices[name] = np.full((experts, n, k), np.nan)

    def _vector(self, name: str, size: int) -> None:
        self.vectors[name] = np.full(size, np.nan)

    def fill_matrix(
        self, *, name: str, address: int, dtype: str, num_rows: int, num_cols: int, row_stride: int, col_stride: int,
        row_begin: int, expert: int,
    ) -> None:  # fmt: skip
        flat = _read(address, dtype, (num_rows - 1) * row_stride + (num_cols - 1) * col_stride + 1)
        rows, cols = np.arange(num_rows)[:, None], np.arange(num_cols)[None, :]
        target = self.matrices[name][expert, row_begin : row_begin + num_rows]
        assert target.shape == (num_rows, num_cols), (name, target.shape)
        assert np.isnan(target).all(), f"{name} filled twice"
        target[...] = flat[rows * row_stride + cols * col_stride]

    def fill_vector(self, *, name: str, address: int, dtype: str, count: int, stride: int, offset: int) -> None:
        target = self.vectors[name][offset : offset + count]
        assert target.shape == (count,), (name, target.shape)
        assert np.isnan(target).all(), f"{name} filled twice"
        target[...] = _read(address, dtype, (count - 1) * stride + 1)[::stride]

    def unfilled(self) -> list[str]:
        return [name for name, a in (self.matrices | self.vectors).items() if np.isnan(a).any()]


def _read(address: int, dtype: str, count: int) -> Array:
    size, kind = {"float32": (4, np.float32), "float16": (2, np.float16), "bfloat16": (2, np.uint16)}[dtype]
    raw = np.frombuffer(ctypes.string_at(address, count * size), dtype=kind)
    if dtype == "bfloat16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float64)


def _norm(x: Array, weight: Array, norm: Any) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.eps) * (weight + norm.weight_offset)


def _activate(gate_up: Array, activation: Any) -> Array:
    gate, up = np.split(gate_up, 2, axis=-1)
    if activation.kind == _core.Activation.GELU_TANH:
        return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
    if activation.kind == _core.Activation.CLAMPED_SWIGLU:
        gate, up = np.minimum(gate, activation.limit), np.clip(up, -activation.limit, activation.limit)
        return gate / (1 + np.exp(-activation.alpha * gate)) * (up + 1)
    return gate / (1 + np.exp(-gate)) * up


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _rotate(x: Array, rope: Any) -> Array:
    """x [T, heads, D]"""
    n = len(rope.inv_freq)
    angles = np.arange(len(x), dtype=np.float32)[:, None] * np.asarray(rope.inv_freq, np.float32)
    cos, sin = (f(angles.astype(np.float64))[:, None] * rope.scale for f in (np.cos, np.sin))
    a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def _attention(x: Array, layer: Any, w: Any, rope: Any) -> Array:
    a, t = layer.attention, len(x)
    q_dim, kv_dim = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    q, k, v = np.split(x @ w("qkv").T + w("qkv_bias", 0.0), [q_dim, q_dim + kv_dim], axis=-1)
    if a.qk_norm == _core.QkNorm.FULL:
        q, k = _norm(q, w("q_norm"), layer.qk_norm), _norm(k, w("k_norm"), layer.qk_norm)
    q, k, v = (m.reshape(t, -1, a.head_dim) for m in (q, k, v))
    if a.qk_norm == _core.QkNorm.PER_HEAD:
        q, k = _norm(q, w("q_norm"), layer.qk_norm), _norm(k, w("k_norm"), layer.qk_norm)
    q, k = _rotate(q, rope), _rotate(k, rope)
    k, v = (np.repeat(m, a.num_heads // a.num_kv_heads, axis=1) for m in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * a.scale
    if a.softcap:
        scores = a.softcap * np.tanh(scores / a.softcap)
    age = np.arange(t)[:, None] - np.arange(t)[None, :]
    scores = np.where((age < 0) | ((age >= a.window) if a.window else False), -np.inf, scores)
    if a.has_sinks:
        scores = np.concatenate([scores, np.broadcast_to(w("sinks")[:, None, None], (a.num_heads, t, 1))], -1)
    p = _softmax(scores)[..., :t]
    return np.einsum("hqk,khd->qhd", p, v).reshape(t, -1) @ w("o").T + w("o_bias", 0.0)


def _moe(x: Array, moe: Any, w: Any) -> Array:
    logits = x @ w("router").T + w("router_bias", 0.0)
    scores = logits if moe.score == _core.RouteScore.SOFTMAX_OF_TOP_K else _softmax(logits)
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, : moe.experts_per_token]
    weights = np.take_along_axis(scores, chosen, -1)
    if moe.score == _core.RouteScore.SOFTMAX_OF_TOP_K:
        weights = _softmax(weights)
    if moe.renormalize:
        weights = weights / weights.sum(-1, keepdims=True)
    x_count, e = moe.num_experts, x.shape[1]
    up_bias, down_bias = np.zeros((x_count, 1)), np.zeros((x_count, 1))
    if moe.has_expert_bias:
        up_bias, down_bias = w("experts.gate_up_bias").reshape(x_count, -1), w("experts.down_bias").reshape(-1, e)
    out = np.zeros_like(x)
    for t, slot in np.ndindex(*chosen.shape):
        i = chosen[t, slot]
        hidden = _activate(w.experts("gate_up")[i] @ x[t] + up_bias[i], moe.activation)
        out[t] += weights[t, slot] * (w.experts("down")[i] @ hidden + down_bias[i])
    if moe.shared_ffn_dim:
        shared = _activate(x @ w("shared.gate_up").T, moe.activation) @ w("shared.down").T
        out += shared / (1 + np.exp(-(x @ w("shared_gate").T)))
    return out


class _LayerView:
    def __init__(self, weights: Weights, i: int) -> None:
        self.weights, self.prefix = weights, f"layers.{i}."

    def __call__(self, name: str, default: Any = None) -> Any:
        key = self.prefix + name
        if key in self.weights.matrices:
            return self.weights.matrices[key][0]
        return self.weights.vectors.get(key, default)

    def experts(self, name: str) -> Array:
        return self.weights.matrices[f"{self.prefix}experts.{name}"]


def run(spec: Any, weights: Weights, ids: list[int]) -> Array:
    """Logits [T, V] of one sequence."""
    embed = weights.matrices["embed"][0]
    x = embed[np.asarray(ids)] * spec.embedding_scale
    ropes = spec.ropes
    for i, layer in enumerate(spec.layers):
        w = _LayerView(weights, i)

        def normed(y: Array, name: str, layer: Any = layer, w: _LayerView = w) -> Array:
            norm = getattr(layer, name)
            return y if norm is None else _norm(y, w(name), norm)

        delta = _attention(normed(x, "attention_norm"), layer, w, ropes[layer.attention.rope_idx])
        x = x + normed(delta, "attention_post_norm")
        y = normed(x, "ffn_norm")
        if layer.moe is not None:
            delta = _moe(y, layer.moe, w)
        else:
            delta = _activate(y @ w("gate_up").T, layer.ffn.activation) @ w("down").T
        x = x + normed(delta, "ffn_post_norm")
    x = _norm(x, weights.vectors["final_norm"], spec.final_norm)
    logits = x @ (embed if spec.tied_embeddings else weights.matrices["lm_head"][0]).T
    return spec.final_softcap * np.tanh(logits / spec.final_softcap) if spec.final_softcap else logits
