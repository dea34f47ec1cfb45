"""Wrong arguments: an InvalidRequestError that names operation, tensor, expectation and finding."""

import numpy as np
import pytest

from fastllm import ops
from fastllm.errors import DeviceError, InvalidRequestError
from fastllm.ops import SampleParams

F = np.float32
X = np.ones((3, 8), F)
W = ops.PackedWeight(np.ones((6, 8), F), device="reference")
GATE_UP = ops.PackedWeight(np.ones((4, 10, 8), F), device="reference")
DOWN = ops.PackedWeight(np.ones((4, 8, 5), F), device="reference")
KV = ops.KvCache(4, 2, 8, dtype="float32", device="reference")
ON = {"device": "reference"}


def ints(*values):
    return np.array(values, np.int32)


def attend(q=None, starts=(0, 2), lengths=(20,), table=((0, 1),), **options):
    q = np.ones((2, 4, 8), F) if q is None else q
    return ops.paged_attention(
        q, KV, query_start=ints(*starts), context_len=ints(*lengths), block_table=ints(*table), scale=1.0, **options
    )


def store(q_shape=(2, 4, 8), k_shape=(2, 2, 8), slots=(0, 1), cos=None):
    return ops.rope_and_store(
        np.ones(q_shape, F), np.ones(k_shape, F), np.ones(k_shape, F), cos=cos, sin=cos, slots=ints(*slots), kv=KV
    )


def experts_ffn(experts, weights=None, x=X[:2]):
    weights = np.ones(np.shape(experts), F) if weights is None else weights
    return ops.moe_ffn(x, ints(*experts), weights, gate_up=GATE_UP, down=DOWN)


def sample(**params):
    return ops.sample(np.zeros((1, 5), F), SampleParams(**params), **ON)


TABLE = [
    (lambda: ops.embed(ints(0, 6), W), r"embed: ids\[1\] is 6, expected 0 <= ids < 6"),
    (lambda: ops.embed(ints(-1), W), r"embed: ids\[0\] is -1"),
    (lambda: ops.embed(np.array([2**40]), W), "embed: ids holds 1099511627776"),
    (lambda: ops.embed(np.ones(2, F), W), "embed: ids is float32 .*expected int32 or int64"),
    (lambda: ops.embed(ints(0), GATE_UP), "embed: table has 4 experts, expected 1"),
    (lambda: ops.linear(X[:, :7].copy(), W), r"linear: x is \[3, 7\], expected \[3, 8\]"),
    (lambda: ops.linear(X.astype(np.float64), W), "linear: x has an element type that is not supported"),
    (lambda: ops.linear(X.astype(np.float16), W), "linear: x is float16, expected float32"),
    (lambda: ops.linear(X[0], W), "linear: x has 1 dimensions, expected 2"),
    (lambda: ops.linear(X[:, ::2], W), "linear: x is not contiguous within a row"),
    (lambda: ops.linear(X[::-1], W), "linear: x has a row stride of -8"),
    (lambda: ops.linear(X, W, bias=np.ones(5, F)), "linear: bias has 5 elements, expected 6"),
    (lambda: ops.linear(X, W, out=np.empty((3, 5), F)), r"linear: y is \[3, 5\], expected \[3, 6\]"),
    (lambda: ops.linear(X, GATE_UP), "linear: weight has 4 experts, expected 1"),
    (lambda: ops.rms_norm(X, np.ones(3, F), **ON), "rms_norm: x has 8 columns, expected a multiple of the group 3"),
    (lambda: ops.rms_norm(X, np.ones(8, F), residual=X[:2], **ON), r"rms_norm: residual is \[2, 8\]"),
    (lambda: ops.rms_norm(X, np.ones(8, F), row_ids=ints(3), **ON), r"rms_norm: row_ids\[0\] is 3"),
    (lambda: ops.rms_norm(X, np.ones(8, F), eps=float("nan"), **ON), "rms_norm: eps is nan"),
    (lambda: ops.gated_activation(X[:, :7].copy(), **ON), "gated_activation: gate_up has 7 columns|y is"),
    (lambda: ops.gated_activation(X, activation="relu", **ON), 'activation is "relu"; silu, gelu_tanh'),
    (lambda: ops.gated_activation(X, activation="clamped_swiglu", limit=-1.0, **ON), "limit -1"),
    (lambda: ops.add(X, X[:2], **ON), r"add: x is \[2, 8\], expected \[3, 8\]"),
    (lambda: ops.add(X, X, gate=X, **ON), r"add: gate is \[3, 8\], expected \[3, 1\]"),
    (lambda: ops.softcap(X, 0.0, **ON), "softcap: cap is 0, expected a positive number"),
    (lambda: store(slots=(0, 64)), r"rope_and_store: slots\[1\] is 64, expected 0 <= slots < 64"),
    (lambda: store(slots=(5, 5)), "rope_and_store: slots has 5 twice"),
    (lambda: store(slots=(0,)), "rope_and_store: slots has 1 entries, expected T = 2"),
    (lambda: store(k_shape=(2, 3, 8)), r"rope_and_store: k is \[2, 24\], expected \[2, 16\]"),
    (lambda: store(q_shape=(2, 3, 8)), "rope_and_store: q has 24 columns, expected H \\* D"),
    (lambda: store(cos=np.ones((2, 5), F)), "rope_and_store: num_freqs is 5, expected at most D / 2 = 4"),
    (lambda: attend(starts=(0, 3)), "paged_attention: query_start ends with 3, expected T = 2"),
    (lambda: attend(starts=(1, 2)), r"paged_attention: query_start\[0\] is 1, expected 0"),
    (lambda: attend(starts=(0, 5, 2), lengths=(5, 1), table=((0, 1), (2, 3))), r"query_start\[1\] is 5"),
    (lambda: attend(starts=(0, -9, 2), lengths=(5, 1), table=((0, 1), (2, 3))), r"query_start\[1\] is -9"),
    (lambda: attend(starts=(0,)), r"query_start has 1 entries, expected S \+ 1 = 2"),
    (lambda: attend(lengths=(1,)), r"context_len\[0\] is 1, expected at least the 2 new tokens"),
    (lambda: attend(lengths=(33,)), r"context_len\[0\] is 33 and needs 3 pages of 16 tokens; block_table has 2"),
    (lambda: attend(table=((0, 4),)), r"block_table\[1\] is 4, expected 0 <= block_table < 4"),
    (lambda: attend(table=((0, -1),)), r"block_table\[1\] is -1"),
    (lambda: attend(q=np.ones((2, 3, 8), F)), "num_heads is 3, expected a multiple of G = 2"),
    (lambda: attend(window=-1), "window is -1"),
    (lambda: attend(softcap=-1.0), "softcap is -1"),
    (lambda: attend(sinks=np.ones(3, F)), "sinks has 3 elements, expected 4"),
    (lambda: ops.moe_route(X, top_k=9, **ON), "moe_route: top_k is 9, expected 1 <= top_k <= X = 8"),
    (lambda: ops.moe_route(X, top_k=0, **ON), "moe_route: top_k is 0"),
    (lambda: ops.moe_route(X, top_k=1, score="best", **ON), 'score is "best"; softmax'),
    (lambda: experts_ffn([[0, 4], [0, 1]]), r"moe_ffn: experts\[1\] is 4"),
    (lambda: experts_ffn([[0, 1], [2, 2]]), r"moe_ffn: experts\[1\] names an expert twice"),
    (lambda: experts_ffn([[0, 1]]), r"moe_ffn: experts must be \[T, k\] with T = 2"),
    (lambda: experts_ffn([[0], [1]], weights=np.ones((2, 2), F)), "moe_ffn: weights has 4 elements, expected 2"),
    (lambda: ops.copy_pages(KV, ints(0), ints(4)), r"copy_pages: to\[0\] is 4"),
    (lambda: ops.copy_pages(KV, ints(0), ints(1, 2)), "copy_pages: from has 1 pages and to has 2"),
    (lambda: ops.copy_pages(KV, ints(0, 1), ints(2, 2)), "copy_pages: to names a page twice"),
    (lambda: ops.copy_pages(KV, ints(0, 1), ints(2, 0)), "copy_pages: page 0 is in from and in to"),
    (lambda: sample(temperature=float("nan")), "sample: row 0: temperature is nan"),
    (lambda: sample(temperature=-1.0), "sample: row 0: temperature is -1"),
    (lambda: sample(top_k=-1), "sample: row 0: top_k is -1"),
    (lambda: sample(top_p=0.0), "sample: row 0: top_p is 0, expected 0 < top_p <= 1"),
    (lambda: sample(min_p=1.5), "sample: row 0: min_p is 1.5"),
    (lambda: sample(repetition_penalty=0.0), "sample: row 0: repetition_penalty is 0"),
    (lambda: sample(counts=[(5, 1, False)]), "sample: row 0: counts has token 5, V is 5"),
    (lambda: sample(bias={-1: 1.0}), "sample: row 0: bias has token -1"),
    (lambda: sample(bias={1: float("inf")}), "sample: row 0: bias of token 1 is inf"),
    (lambda: sample(allowed=[3, 1]), "sample: row 0: allowed has token 1 after 3"),
    (lambda: sample(allowed=[]), "sample: allowed is empty"),
    (lambda: sample(num_top=6), "sample: row 0: num_top is 6"),
    (lambda: sample(forced_token=5), "sample: row 0: forced_token is 5"),
    (lambda: ops.sample(X, [SampleParams()], **ON), "sample: logits is float32 with 3 rows, .* each of 1 parameter"),
    (lambda: ops.PackedWeight(X, dtype="int4", **ON), 'dtype is "int4"; float32, bfloat16 and float16 are known'),
    (lambda: ops.PackedWeight(ints(1, 2).reshape(1, 2), **ON), "PackedWeight: the array is int32"),
    (lambda: ops.PackedWeight(X[0], **ON), "PackedWeight: the array has 1 dimensions"),
    (lambda: ops.PackedWeight(X[:0], **ON), "PackedWeight: N is 0"),
    (lambda: ops.KvCache(-1, 1, 8, **ON), "KvCache: num_pages is -1"),
    (lambda: ops.KvCache(1, 0, 8, **ON), "KvCache: num_kv_heads is 0"),
    (lambda: ops.KvCache(2**60, 8, 128, **ON), "KvCache: .*overflows"),
    (lambda: KV.page_bytes(4), "KvCache: page 4 is not one of 4"),
]


@pytest.mark.parametrize(("call", "message"), TABLE, ids=[m for _, m in TABLE])
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(InvalidRequestError, match=message):
        call()


def test_a_weight_belongs_to_its_device():
    other = ops.Device("reference")
    with pytest.raises(InvalidRequestError, match="another backend object"):
        ops.moe_ffn(
            X,
            ints([0]),
            np.ones((3, 1), F),
            gate_up=GATE_UP,
            down=ops.PackedWeight(np.ones((4, 8, 5), F), device=other),
        )


def test_an_unknown_device_is_named():
    with pytest.raises(DeviceError, match='device "gpu" is not known'):
        ops.Device("gpu")
