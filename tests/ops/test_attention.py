"""rope_table, rope_and_store, paged_attention, copy_pages."""

import numpy as np
import oracle
import pytest
from tolerances import FLOAT32_EPSILON, assert_close, assert_same_bits

from fastllm import UnsupportedModelError, _core, ops

HEADS = [(1, 1, 32), (4, 4, 64), (6, 2, 48), (8, 1, 128), (2, 2, 80), (5, 1, 33)]  # H, G, D


def test_processors_refuse_fp8_pages():
    with pytest.raises(UnsupportedModelError, match="fp8 is for CUDA; use int8"):
        ops.KvCache(1, 1, 32, dtype="fp8", device="cpu")


def ids(heads):
    return "H{}G{}D{}".format(*heads)


def test_rope_table_is_cos_and_sin_of_the_rounded_angle(device):
    positions = np.array([0, 1, 17, 4095, 131071], np.int32)
    inv_freq = (10000.0 ** -(np.arange(0, 64, 2) / 64)).astype(np.float32)
    cos, sin = ops.rope_table(positions, inv_freq, scale=1.25, device=device)
    angle = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    assert_close(cos, 1.25 * np.cos(angle), relative=4 * FLOAT32_EPSILON, scale=1.25)
    assert_close(sin, 1.25 * np.sin(angle), relative=4 * FLOAT32_EPSILON, scale=1.25)
    one, _ = ops.rope_table(positions[3:4], inv_freq, scale=1.25, device=device)
    assert_same_bits(one[0], cos[3])
    assert ops.rope_table(positions[:0], inv_freq, device=device)[0].shape == (0, 32)


@pytest.mark.parametrize("heads", HEADS, ids=ids)
@pytest.mark.parametrize("part", [0, 0.5, 1])
def test_rope_rotates_pairs_half_a_rotation_apart(device, heads, part):
    num_heads, num_kv_heads, dim = heads
    rng = np.random.default_rng(20)
    n = int(dim * part) // 2
    q, k, v = (oracle.normal(rng, 5, h, dim) for h in (num_heads, num_kv_heads, num_kv_heads))
    angle = rng.uniform(0, 6, (5, n))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    kv = ops.KvCache(2, num_kv_heads, dim, dtype="float32", device=device)
    slots = np.array([3, 0, 17, 31, 9])
    got_q, got_k = ops.rope_and_store(q, k, v, cos=cos, sin=sin, slots=slots, kv=kv)
    for got, x in [(got_q, q), (got_k, k)]:
        a, b, rest = np.split(x.astype(np.float64), [n, 2 * n], axis=-1)
        c, s = cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
        exact = np.concatenate([a * c - b * s, b * c + a * s, rest], axis=-1)
        assert_close(got, exact, relative=8 * FLOAT32_EPSILON, scale=np.abs(x).max())
    for t in range(5):  # alone, into another cache: the same bits everywhere
        row = slice(t, t + 1)
        alone = ops.KvCache(2, num_kv_heads, dim, dtype="float32", device=device)
        alone_q, alone_k = ops.rope_and_store(
            q[row], k[row], v[row], cos=cos[row], sin=sin[row], slots=slots[row], kv=alone
        )
        assert_same_bits(alone_q[0], got_q[t])
        assert_same_bits(alone_k[0], got_k[t])


@pytest.mark.parametrize("dtype", oracle.KV_DTYPES)
def test_a_context_of_one_token_gives_its_stored_value(device, dtype):
    rng = np.random.default_rng(21)
    sequences = oracle.PagedSequences(rng, device, [1, 1, 1], 2, 40, dtype)
    q = oracle.normal(rng, 3, 4, 40)
    got = sequences.attend(q, [1, 1, 1], scale=0.1)
    expected = np.repeat(np.concatenate(sequences.v), 2, axis=1)
    assert_close(got, expected, relative=4 * FLOAT32_EPSILON)


OPTIONS = [
    {},
    {"window": 1},
    {"window": 7},
    {"window": 16},
    {"softcap": 5.0},
    {"sinks": True},
    {"window": 33, "sinks": True, "softcap": 3.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) + str(o.get("window", "")) or "plain")
@pytest.mark.parametrize("dtype", oracle.KV_DTYPES)
@pytest.mark.parametrize("heads", HEADS, ids=ids)
def test_attention_over_shuffled_pages(device, heads, dtype, options):
    num_heads, num_kv_heads, dim = heads
    rng = np.random.default_rng(22)
    lengths, counts = [1, 15, 16, 17, 0, 71, 40], [1, 15, 1, 3, 0, 5, 40]
    sequences = oracle.PagedSequences(rng, device, lengths, num_kv_heads, dim, dtype)
    q = oracle.normal(rng, sum(counts), num_heads, dim)
    options = {"scale": dim**-0.5, **options}
    if options.pop("sinks", False):
        options["sinks"] = oracle.normal(rng, num_heads)
    got = sequences.attend(q, counts, **options)
    begin = 0
    for s, n in enumerate(counts):
        exact, size = oracle.attention(
            q[begin : begin + n].astype(np.float64), sequences.k[s], sequences.v[s], **options
        )
        if dtype == "int8" and device.name.startswith("cpu"):  # weights of V in units of the largest: one error for all
            size = size.max(-1, keepdims=True, initial=0)
        assert_close(
            got[begin : begin + n],
            exact,
            relative=oracle.attention_relative(device, dtype),
            scale=size + 1e-3,
            what=f"sequence {s}",
        )
        begin += n


@pytest.mark.parametrize("options", OPTIONS[::2], ids=lambda o: "+".join(o) or "plain")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "fp8"])
def test_attention_is_the_same_alone_in_a_batch_and_in_chunks(device, dtype, options):
    rng = np.random.default_rng(23)
    lengths = [300, 5, 33, 64]
    sequences = oracle.PagedSequences(rng, device, lengths, 2, 64, dtype)
    q = [oracle.normal(rng, n, 6, 64) for n in lengths]
    options = {"scale": 0.125, **options}
    if options.pop("sinks", False):
        options["sinks"] = oracle.normal(rng, 6)
    whole = sequences.attend(np.concatenate(q), lengths, **options)
    begin = 0
    for s, n in enumerate(lengths):
        expected = whole[begin : begin + n]
        begin += n
        assert_same_bits(sequences.attend(q[s], [n], seqs=[s], **options), expected, f"sequence {s} alone")
        last = sequences.attend(q[s][-1:], [1], seqs=[s], **options)
        assert_same_bits(last[0], expected[-1], f"last token of sequence {s}")
        for chunk in [1, 7, 16, 50]:
            done = 0
            while done < min(n, 120):
                end = min(n, done + chunk)
                got = sequences.attend(q[s][done:end], [end - done], seqs=[s], context=[end], **options)
                assert_same_bits(got, expected[done:end], f"sequence {s}, chunk {chunk} at {done}")
                done = end


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_sequences_that_share_pages_have_the_bits_of_each_alone(device, dtype):
    """Prefixes of one tile, of two, of all but the last page, of the whole context; and one that shares nothing."""
    rng = np.random.default_rng(31)
    num_heads, num_kv_heads, dim = 6, 2, 48
    kv = ops.KvCache(240, num_kv_heads, dim, dtype=dtype, device=device)
    values = oracle.normal(rng, 240 * kv.page_size, num_kv_heads, dim)
    oracle.store(kv, values, values[::-1].copy())
    order = rng.permutation(240).astype(np.int32)
    base = order[:40]
    lengths = [600, 633, 520, 300, 257, 640, 640, 256, 600, 5]
    table = np.full((len(lengths), 40), -1, np.int32)
    kept = [40, 16, 32, 16, 16, 39, 40, 16, 0, 1]  # pages in common with the first
    at = 40
    for s, length in enumerate(lengths):
        pages = -(-length // kv.page_size)
        same = min(kept[s], pages)
        table[s, :same] = base[:same]
        table[s, same:pages] = order[at : at + pages - same]
        at += pages - same
    q = oracle.normal(rng, len(lengths), num_heads, dim)

    def attend(rows):
        return ops.paged_attention(
            q[rows],
            kv,
            query_start=np.arange(len(rows) + 1, dtype=np.int32),
            context_len=np.array([lengths[r] for r in rows], np.int32),
            block_table=table[rows],
            scale=0.15,
            window=580,
        )

    alone = np.concatenate([attend([s]) for s in range(len(lengths))])
    assert_same_bits(attend(list(range(len(lengths)))), alone)
    mixed = rng.permutation(len(lengths))
    assert_same_bits(attend(list(mixed)), alone[mixed])


def values_as_held(kv, values):
    """What a cache gives back of V: 40 sequences of one token each, which attend to that token alone."""
    slots = np.arange(40, dtype=np.int64) * kv.page_size
    oracle.store(kv, np.zeros_like(values), values, slots)
    return ops.paged_attention(
        np.zeros_like(values),
        kv,
        query_start=np.arange(41, dtype=np.int32),
        context_len=np.ones(40, np.int32),
        block_table=np.arange(40, dtype=np.int32)[:, None],
        scale=1.0,
    )


def test_int8_pages_hold_each_number_to_half_a_step(device):
    """|x - x'| <= scale / 2, where the scale is the largest of its numbers over 127, rounded to bfloat16."""
    rng = np.random.default_rng(26)
    values = oracle.normal(rng, 40, 2, 80) * np.exp(oracle.normal(rng, 40, 2, 1) * 8)
    values[3] = 0
    values[5, 0, :2] = [1e-41, -2e-41]  # subnormal
    kv = ops.KvCache(40, 2, 80, dtype="int8", device=device)
    got = values_as_held(kv, values)
    half_step = np.abs(values).max(-1, keepdims=True).astype(np.float64) / 254
    assert (np.abs(got - values.astype(np.float64)) <= half_step * (1 + 2.0**-7) + 1e-30).all()


def test_int8_pages_cost_less_than_a_hundredth(device):
    """Against float64 with K and V as they were, for unit variances: the error of output elements."""
    rng = np.random.default_rng(27)
    lengths = [64, 300, 700]
    sequences = oracle.PagedSequences(rng, device, lengths, 2, 128, "int8")
    q = oracle.normal(rng, 3, 4, 128)
    got = sequences.attend(q, [1, 1, 1], scale=128**-0.5)
    for s in range(3):
        exact, _ = oracle.attention(
            q[s : s + 1].astype(np.float64), sequences.given_k[s], sequences.given_v[s], scale=128**-0.5
        )
        assert np.abs(got[s] - exact[0]).max() < 1e-2


@pytest.mark.parametrize("dtype", oracle.KV_DTYPES)
@pytest.mark.parametrize("what", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dim", [40, 64])
def test_a_number_that_is_not_finite_is_not_lost(device, dtype, what, bad, dim):
    """It reaches the token that sees it, and no earlier one."""
    rng = np.random.default_rng(28)
    tensors = {name: oracle.normal(rng, 20, 1, dim) for name in ("q", "k", "v")}
    tensors[what][9, 0, 3] = bad
    kv = ops.KvCache(2, 1, dim, dtype=dtype, device=device)
    oracle.store(kv, tensors["k"], tensors["v"])
    out = ops.paged_attention(
        tensors["q"],
        kv,
        query_start=np.array([0, 20], np.int32),
        context_len=np.array([20], np.int32),
        block_table=np.array([[0, 1]], np.int32),
        scale=0.2,
    )
    assert np.isfinite(out[:9]).all()
    if what == "q":
        assert np.isfinite(out[10:]).all()
    if not (what == "k" and bad > 0):  # an infinite score may leave the weight of one token, or none
        assert not np.isfinite(out[9]).all()


@pytest.mark.parametrize("name", ["reference", "cuda:emulated"])
def test_fp8_pages_hold_each_number_to_a_sixteenth(name):
    """|x - x'| <= max(|x| / 16, scale * 2^-10), scale: the largest that shares it over 448; one huge number in a head
    costs the others nothing, where int8 would lose them."""
    rng = np.random.default_rng(32)
    values = oracle.normal(rng, 40, 2, 80) * np.exp(oracle.normal(rng, 40, 2, 1) * 8)
    values[3] = 0
    values[4, :, 7] *= 300
    kv = ops.KvCache(40, 2, 80, dtype="fp8", device=name)
    got = values_as_held(kv, values)
    scale = np.abs(values).max(-1, keepdims=True).astype(np.float64) / 448 * (1 + 2.0**-8)
    bound = np.maximum(np.abs(values) * (2.0**-4 + 2.0**-8), scale * 2.0**-10) + 1e-30
    assert (np.abs(got - values.astype(np.float64)) <= bound).all()


def test_int8_attention_has_the_same_bits_on_every_level():
    """Integer sums and one order of the float ones."""
    results = []
    for name in _core.cpu_isa_levels():
        device = ops.Device(f"cpu:{name}", num_threads=1)
        sequences = oracle.PagedSequences(np.random.default_rng(29), device, [300, 33], 2, 72, "int8")
        q = oracle.normal(np.random.default_rng(30), 45, 6, 72)
        results.append(sequences.attend(q, [40, 5], scale=0.1, softcap=20.0, window=270))
    for other in results[1:]:
        assert_same_bits(other, results[0])


def test_no_tokens_and_no_sequences(device):
    sequences = oracle.PagedSequences(np.random.default_rng(24), device, [3, 0], 1, 32)
    assert sequences.attend(np.empty((0, 2, 32), np.float32), [0, 0], scale=1.0).shape == (0, 2, 32)
    assert sequences.attend(np.empty((0, 2, 32), np.float32), [], seqs=[], scale=1.0).shape == (0, 2, 32)


@pytest.mark.parametrize("dtype", oracle.KV_DTYPES)
def test_copied_pages_are_equal_and_others_stay(device, dtype):
    rng = np.random.default_rng(25)
    kv = ops.KvCache(5, 2, 24, dtype=dtype, device=device)
    values = oracle.normal(rng, 5 * kv.page_size, 2, 24)
    oracle.store(kv, values, values)
    before = [kv.page_bytes(p) for p in range(5)]
    ops.copy_pages(kv, np.array([0, 0], np.int32), np.array([4, 2], np.int32))
    assert [kv.page_bytes(p) for p in range(5)] == [before[0], before[1], before[0], before[3], before[0]]
    ops.copy_pages(kv, np.empty(0, np.int32), np.empty(0, np.int32))


def test_page_offsets_are_64_bit():
    """A pool of 2^32 elements: only the touched ends are resident."""
    num_pages = 2**32 // (2 * 16 * 64) + 5
    kv = ops.KvCache(num_pages, 1, 64, dtype="float32", device="reference")
    value = np.full((1, 1, 64), 3.0, np.float32)
    oracle.store(kv, value, value, np.array([num_pages * kv.page_size - 1]))
    assert any(kv.page_bytes(num_pages - 1))
    assert not any(kv.page_bytes(0))
