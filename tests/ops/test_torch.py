"""fastllm.torch: operators that torch accepts as its own, and that give what fastllm.ops gives."""

import gc

import numpy as np
import pytest
import torch

import fastllm.torch as ft
from fastllm import ops

E, H, G, D, F = 16, 4, 2, 8, 12


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def weight(seed, *shape):
    return ft.Weight(ops.PackedWeight(normal(seed, *shape)))


def cache():
    return ft.Cache(ops.KvCache(4, G, D, dtype="float32"))


def ids(*values):
    return torch.tensor(values, dtype=torch.int32)


def schema_cases():
    w, up, down, kv = weight(1, 20, E), weight(2, 3, 2 * F, E), weight(3, 3, E, F), cache()
    keep = [w, up, down, kv]
    x, q, k = normal(4, 5, E), normal(5, 3, H, D), normal(6, 3, G, D)
    table, o = normal(7, 3, D // 2), torch.ops.fastllm
    step = (ids(0, 3), ids(3), torch.zeros(1, 1, dtype=torch.int32))
    cases = {
        "embed": (o.embed, (ids(3, 19), w.name, 2.0)),
        "rms_norm": (o.rms_norm, (x, normal(8, E), 1e-6, 0.0, None)),
        "rms_norm of rows": (o.rms_norm, (x, normal(8, E), 1e-6, 1.0, ids(4, 0))),
        "add_rms_norm": (o.add_rms_norm, (x, normal(8, E), normal(9, 5, E), 1e-6, 0.0, None)),
        "linear": (o.linear, (x, w.name, None)),
        "linear with bias": (o.linear, (x, w.name, normal(9, 20))),
        "rope_table": (o.rope_table, (ids(0, 5, 2), normal(9, 4), 1.0)),
        "rope_and_store": (o.rope_and_store, (q, k, k + 1, table, table, ids(0, 1, 2), kv.name, kv.order)),
        "paged_attention": (o.paged_attention, (q, kv.name, kv.order, *step, 0.3, 0, 0.0, None)),
        "gated_activation": (o.gated_activation, (x, "silu", 1.702, 7.0)),
        "moe_route": (o.moe_route, (normal(9, 5, 3), 2, "softmax", True, 1.0)),
        "moe_ffn": (
            o.moe_ffn,
            (x[:2], ids(0, 2, 1, 0).view(2, 2), normal(9, 2, 2), up.name, down.name, None, None, "silu", 1.702, 7.0),
        ),
        "add": (o.add, (x, x + 1, normal(9, 5, 1))),
        "softcap": (o.softcap, (x, 2.0)),
        "copy_pages": (o.copy_pages, (kv.name, kv.order, ids(0), ids(1))),
    }
    return keep, cases


KEEP, CASES = schema_cases()


@pytest.mark.parametrize("case", CASES)
def test_torch_finds_nothing_wrong_with_an_operator(case):
    operator, args = CASES[case]
    torch.library.opcheck(operator.default, args)


def test_every_operation_but_sample_is_an_operator():
    names = set(ops.__all__) - {
        "Device",
        "DeviceArray",
        "KvCache",
        "PackedWeight",
        "SampleOutput",
        "SampleParams",
        "sample",
    }
    assert names | {"Cache", "Weight"} == set(ft.__all__)


class Block:
    """A layer with attention, a mixture and everything between them, on a cache of its own."""

    def __init__(self):
        self.table, self.qkv, self.out = weight(1, 30, E), weight(2, (H + 2 * G) * D, E), weight(3, E, H * D)
        self.up, self.down, self.router = weight(4, 3, 2 * F, E), weight(5, 3, E, F), weight(6, 3, E)
        self.norm, self.freqs, self.kv = normal(7, E), normal(8, D // 2), cache()

    def __call__(self, tokens, positions, query_start, context_len, block_table):
        x = ft.embed(tokens, self.table, scale=2.0)
        q, k, v = ft.linear(ft.rms_norm(x, self.norm), self.qkv).split([H * D, G * D, G * D], dim=1)
        cos, sin = ft.rope_table(positions, self.freqs)
        q, _ = ft.rope_and_store(q, k, v, cos=cos, sin=sin, slots=positions, kv=self.kv)
        step = {"query_start": query_start, "context_len": context_len, "block_table": block_table}
        a = ft.paged_attention(q, self.kv, **step, scale=D**-0.5)
        y, x = ft.rms_norm(ft.linear(a, self.out), self.norm, residual=x)
        experts, weights = ft.moe_route(ft.linear(y, self.router), top_k=2, renormalize=True)
        y = ft.moe_ffn(y, experts, weights, gate_up=self.up, down=self.down)
        return ft.softcap(ft.add(x, y), 5.0)


def run_two_steps(block, function):
    """A prompt of 5 tokens, then one more: the second step reads what the first one stored."""
    table = torch.zeros(1, 1, dtype=torch.int32)
    first = function(ids(3, 1, 4, 1, 5), ids(0, 1, 2, 3, 4), ids(0, 5), ids(5), table)
    second = function(ids(9), ids(5), ids(0, 1), ids(6), table)
    return first, second, block.kv.kv.page_bytes(0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_compiled_block_gives_the_bits_of_the_block(backend, dynamic):
    torch.compiler.reset()
    plain, compiled = Block(), Block()
    wanted = run_two_steps(plain, plain)
    got = run_two_steps(compiled, torch.compile(compiled.__call__, fullgraph=True, backend=backend, dynamic=dynamic))
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
    assert got[2] == wanted[2], "the cache holds something else"


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_copy_of_pages_is_neither_dropped_nor_moved(backend):
    torch.compiler.reset()
    kv, q = cache(), normal(1, 1, H, D)

    def store_and_copy(k):
        ft.rope_and_store(q, k, k, cos=None, sin=None, slots=ids(0), kv=kv)
        ft.copy_pages(kv, ids(0), ids(1))
        ft.rope_and_store(q, 2 * k, k, cos=None, sin=None, slots=ids(0), kv=kv)

    torch.compile(store_and_copy, fullgraph=True, backend=backend)(normal(2, 1, G, D))
    copied, last = kv.kv.page_bytes(1), kv.kv.page_bytes(0)
    ft.rope_and_store(q, normal(2, 1, G, D), normal(2, 1, G, D), cos=None, sin=None, slots=ids(0), kv=kv)
    assert copied == kv.kv.page_bytes(0) != last


def test_results_are_those_of_ops():
    x, w = normal(1, 5, E), weight(2, 20, E)
    np.testing.assert_array_equal(ft.linear(x, w).numpy(), ops.linear(x, w.packed))
    np.testing.assert_array_equal(ft.softcap(x, 2.0).numpy(), ops.softcap(x, 2.0))


def test_a_tensor_that_wants_a_derivative_is_taken_and_gives_none():
    y = ft.softcap(normal(1, 2, 3).requires_grad_(), 2.0)
    with pytest.raises(RuntimeError, match=r"autograd|backward"):
        y.sum().backward()


def test_a_weight_that_is_gone_is_named():
    w = weight(1, 4, E)
    name = w.name
    del w
    gc.collect()
    with pytest.raises(RuntimeError, match=f'"{name}" is no Weight of this process any more'):
        torch.ops.fastllm.linear(normal(1, 2, E), name, None)
