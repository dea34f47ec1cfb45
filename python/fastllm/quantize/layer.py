"""One decoder layer in torch, from the same LayerSpec that the native decoder runs: attention with rotation, q/k norms,
biases, windows, sinks and soft caps; a dense feed-forward network or a mixture of experts.

Every product with a matrix tells `tap(slot, expert, x)` its input first: that is where calibration looks.
Tested against the native decoder on random checkpoints of every architecture (tests/quantize/test_layer.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastllm import _core

Tap = Callable[[str, int, Tensor], None]


def rms_norm(x: Tensor, weight: Tensor, norm: Any) -> Tensor:
    variance = x.square().mean(-1, keepdim=True)
    scale: Tensor = weight + norm.weight_offset
    return x * torch.rsqrt(variance + norm.eps) * scale


def rope_table(rope: Any, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, [length, rotary_dim / 2]."""
    angles = torch.arange(length, dtype=torch.float32, device=device).unsqueeze(1) * torch.tensor(
        rope.inv_freq, dtype=torch.float32, device=device
    )
    angles = angles.double()
    return (angles.cos() * rope.scale).float(), (angles.sin() * rope.scale).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [L, heads, D]; pairs i and i + rotary_dim / 2 of the first rotary_dim dimensions."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def activate(gate: Tensor, up: Tensor, spec: Any) -> Tensor:
    if spec.kind == _core.Activation.SILU:
        return F.silu(gate) * up
    if spec.kind == _core.Activation.GELU_TANH:
        return F.gelu(gate, approximate="tanh") * up
    gate, up = gate.clamp(max=spec.limit), up.clamp(-spec.limit, spec.limit)
    return gate * torch.sigmoid(spec.alpha * gate) * (up + 1.0)


SCORES = 1 << 20  # of attention, at once


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Any, sinks: Tensor | None) -> Tensor:
    """q [L, H, D], k and v [L, G, D] of one sequence -> [L, H * D]."""
    length, num_heads, _ = q.shape
    step = max(1, SCORES // (num_heads * length))
    return torch.cat([_attend(q[begin : begin + step], begin, k, v, spec, sinks) for begin in range(0, length, step)])


def _attend(q: Tensor, first: int, k: Tensor, v: Tensor, spec: Any, sinks: Tensor | None) -> Tensor:
    """Of a few queries, from position `first`."""
    rows, num_heads, _ = q.shape
    length = len(k)
    grouped = q.reshape(rows, spec.num_kv_heads, -1, spec.head_dim).permute(1, 2, 0, 3)  # [G, H / G, rows, D]
    scores = grouped @ k.permute(1, 2, 0).unsqueeze(1) * spec.scale
    if spec.softcap > 0:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    position = torch.arange(length, device=q.device)
    distance = position[first : first + rows].unsqueeze(1) - position
    hidden = (distance < 0) | (distance >= (spec.window or length))
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        column = sinks.reshape(spec.num_kv_heads, -1, 1, 1).expand(-1, -1, rows, 1)
        weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    out = weights @ v.permute(1, 0, 2).unsqueeze(1)  # [G, H / G, rows, D]
    return out.permute(2, 0, 1, 3).reshape(rows, num_heads * spec.head_dim)


class Layer:
    """`slots`: the float32 weights by the last part of their name, changed in place by quantization."""

    def __init__(self, spec: Any, rope: Any, slots: dict[str, Tensor]) -> None:
        self.spec = spec
        self.rope = rope
        self.slots = slots

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """x [S, L, E], S sequences of L tokens from position 0 -> the same after the layer."""
        spec = self.spec
        delta = self._attention(self._norm(x, "attention_norm"), tap)
        x = x + self._norm(delta, "attention_post_norm")
        normed = self._norm(x, "ffn_norm").reshape(-1, x.shape[-1])
        if spec.moe is not None:
            delta = self._experts(normed, spec.moe, tap)
        else:
            delta = self._gated(normed, "gate_up", "down", spec.ffn.activation, tap)
        return x + self._norm(delta.reshape(x.shape), "ffn_post_norm")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        norm = getattr(self.spec, name)
        return x if norm is None else rms_norm(x, self.slots[name], norm)

    def _linear(self, x: Tensor, slot: str, tap: Tap | None, bias: str | None = None) -> Tensor:
        if tap is not None:
            tap(slot, 0, x)
        return F.linear(x, self.slots[slot], self.slots.get(bias) if bias is not None else None)

    def _attention(self, x: Tensor, tap: Tap | None) -> Tensor:
        spec = self.spec.attention
        num_seqs, length, hidden = x.shape
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        qkv = self._linear(x.reshape(-1, hidden), "qkv", tap, "qkv_bias")
        q, k, v = torch.split(qkv, [heads * dim, kv_heads * dim, kv_heads * dim], -1)
        if spec.qk_norm == _core.QkNorm.FULL:
            q = rms_norm(q, self.slots["q_norm"], self.spec.qk_norm)
            k = rms_norm(k, self.slots["k_norm"], self.spec.qk_norm)
        q, k, v = (t.reshape(num_seqs, length, -1, dim) for t in (q, k, v))
        if spec.qk_norm == _core.QkNorm.PER_HEAD:
            q = rms_norm(q, self.slots["q_norm"], self.spec.qk_norm)
            k = rms_norm(k, self.slots["k_norm"], self.spec.qk_norm)
        cos, sin = rope_table(self.rope, length, x.device)
        sinks = self.slots.get("sinks")
        attended = torch.cat(
            [attend(rotate(q[s], cos, sin), rotate(k[s], cos, sin), v[s], spec, sinks) for s in range(num_seqs)]
        )
        return self._linear(attended, "o", tap, "o_bias").reshape(x.shape)

    def _gated(self, x: Tensor, gate_up: str, down: str, activation: Any, tap: Tap | None) -> Tensor:
        gate, up = self._linear(x, gate_up, tap).chunk(2, -1)
        return self._linear(activate(gate, up, activation), down, tap)

    def _experts(self, x: Tensor, moe: Any, tap: Tap | None) -> Tensor:
        chosen, weights = route(self._linear(x, "router", tap, "router_bias"), moe)
        out = torch.zeros_like(x)
        gate_up, down = self.slots["experts.gate_up"], self.slots["experts.down"]
        gate_up_bias, down_bias = self.slots.get("experts.gate_up_bias"), self.slots.get("experts.down_bias")
        for expert in range(moe.num_experts):
            tokens, place = (chosen == expert).nonzero(as_tuple=True)
            if len(tokens) == 0:
                continue
            inputs = x[tokens]
            if tap is not None:
                tap("experts.gate_up", expert, inputs)
            bias = None if gate_up_bias is None else gate_up_bias.reshape(moe.num_experts, -1)[expert]
            gate, up = F.linear(inputs, gate_up[expert], bias).chunk(2, -1)
            hidden = activate(gate, up, moe.activation)
            if tap is not None:
                tap("experts.down", expert, hidden)
            bias = None if down_bias is None else down_bias.reshape(moe.num_experts, -1)[expert]
            out.index_add_(0, tokens, F.linear(hidden, down[expert], bias) * weights[tokens, place].unsqueeze(1))
        if moe.shared_ffn_dim > 0:
            shared = self._gated(x, "shared.gate_up", "shared.down", moe.activation, tap)
            out = out + torch.sigmoid(self._linear(x, "shared_gate", tap)) * shared
        return out


def route(logits: Tensor, moe: Any) -> tuple[Tensor, Tensor]:
    """Chosen experts [T, k] and their weights."""
    # A stable sort: equal logits go to the lower expert.
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    top, chosen = ordered[:, : moe.experts_per_token], order[:, : moe.experts_per_token]
    if moe.score == _core.RouteScore.SIGMOID:
        weights = torch.sigmoid(top)
    elif moe.score == _core.RouteScore.SOFTMAX_OF_TOP_K:
        weights = torch.softmax(top, -1)
    else:
        weights = torch.exp(top - torch.logsumexp(logits, -1, keepdim=True))
    if moe.renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return chosen, weights * moe.weight_scale
