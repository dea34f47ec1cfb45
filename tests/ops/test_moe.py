"""moe_route and moe_ffn."""

import numpy as np
import oracle
import pytest
from tolerances import assert_close, assert_same_bits

from fastllm import ops


def float64_route(logits, k, score, renormalize, weight_scale):
    logits = logits.astype(np.float64)
    experts = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(logits, experts, 1)
    if score == "sigmoid":
        weights = oracle.sigmoid(chosen)
    else:
        over = chosen if score == "softmax_of_top_k" else logits
        top = logits.max(1, keepdims=True)
        weights = np.exp(chosen - top) / np.exp(over - top).sum(1, keepdims=True)
    if renormalize:
        weights = weights / weights.sum(1, keepdims=True)
    return experts, weights * weight_scale


@pytest.mark.parametrize("score", ["softmax", "softmax_of_top_k", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (8, 2), (60, 4), (128, 8), (7, 7)])
def test_route_chooses_the_largest(device, score, renormalize, num_experts, k):
    rng = np.random.default_rng(30)
    logits = 3 * oracle.normal(rng, 9, num_experts)
    options = {"top_k": k, "score": score, "renormalize": renormalize, "weight_scale": 2.5}
    experts, weights = ops.moe_route(logits, device=device, **options)
    expected_experts, expected_weights = float64_route(logits, k, score, renormalize, 2.5)
    assert_same_bits(experts, expected_experts.astype(np.int32))
    assert_close(weights, expected_weights, relative=oracle.relative(device), scale=2.5)
    for t in range(9):
        alone, alone_weights = ops.moe_route(logits[t : t + 1], device=device, **options)
        assert_same_bits(alone[0], experts[t])
        assert_same_bits(alone_weights[0], weights[t])
    assert ops.moe_route(logits[:0], device=device, **options)[0].shape == (0, k)


def test_route_breaks_ties_by_the_lower_index(device):
    logits = np.array([[1, 2, 2, 1, 2], [0, 0, 0, 0, 0]], np.float32)
    experts, _ = ops.moe_route(logits, top_k=4, device=device)
    assert experts.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


def make_layer(rng, device, dtype, num_experts, hidden, ffn):
    gate_up, exact_gate_up = oracle.weight(rng, (num_experts, 2 * ffn, hidden), dtype)
    down, exact_down = oracle.weight(rng, (num_experts, hidden, ffn), dtype)
    packed = {"gate_up": ops.PackedWeight(gate_up, device=device), "down": ops.PackedWeight(down, device=device)}
    return packed, exact_gate_up, exact_down


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("kind", ["silu", "clamped_swiglu"])
@pytest.mark.parametrize(
    ("tokens", "num_experts", "k", "hidden", "ffn"), [(1, 2, 1, 8, 4), (13, 8, 3, 33, 17), (40, 4, 4, 64, 48)]
)
def test_moe_ffn_is_the_weighted_sum_of_its_experts(device, dtype, kind, tokens, num_experts, k, hidden, ffn):
    rng = np.random.default_rng(31)
    packed, gate_up, down = make_layer(rng, device, dtype, num_experts, hidden, ffn)
    x = oracle.normal(rng, tokens, hidden)
    experts = np.stack([rng.permutation(num_experts)[:k] for _ in range(tokens)]).astype(np.int32)
    weights = rng.random((tokens, k), np.float32)
    biases = {
        "gate_up_bias": oracle.normal(rng, num_experts, 2 * ffn),
        "down_bias": oracle.normal(rng, num_experts, hidden),
    }
    got = ops.moe_ffn(x, experts, weights, activation=kind, **packed, **biases, out=np.full_like(x, np.nan))
    exact, size = np.zeros(x.shape), np.zeros(x.shape)
    for t in range(tokens):
        for e, w in zip(experts[t], weights[t], strict=True):
            both = gate_up[e] @ x[t] + biases["gate_up_bias"][e]
            act = oracle.gated(kind, both[:ffn], both[ffn:])
            exact[t] += w * (down[e] @ act + biases["down_bias"][e])
            terms = np.abs(gate_up[e]) @ np.abs(x[t]) + np.abs(biases["gate_up_bias"][e])
            # An error in gate or up reaches the activation through the other factor and a slope of at most about 2.
            carried = 2 * (terms[:ffn] * (np.abs(both[ffn:]) + 1) + terms[ffn:] * (np.abs(both[:ffn]) + 1)) + np.abs(
                act
            )
            size[t] += w * (np.abs(down[e]) @ carried + np.abs(biases["down_bias"][e]))
    assert_close(got, exact, relative=oracle.relative(device, weights=dtype), scale=size)
    for t in range(0, tokens, 5):
        rows = slice(t, t + 1)
        alone = ops.moe_ffn(x[rows], experts[rows], weights[rows], activation=kind, **packed, **biases)
        assert_same_bits(alone[0], got[t], f"token {t} alone")


def test_the_order_of_a_tokens_experts_does_not_matter(device):
    rng = np.random.default_rng(32)
    packed, _, _ = make_layer(rng, device, "bfloat16", 6, 40, 24)
    x = oracle.normal(rng, 3, 40)
    experts = np.array([[5, 0, 3]] * 3, np.int32)
    weights = rng.random((3, 3), np.float32)
    order = [1, 2, 0]
    swapped = ops.moe_ffn(x, experts[:, order].copy(), weights[:, order].copy(), **packed)
    assert_same_bits(ops.moe_ffn(x, experts, weights, **packed), swapped)
    assert ops.moe_ffn(x[:0], experts[:0], weights[:0], **packed).shape == (0, 40)
