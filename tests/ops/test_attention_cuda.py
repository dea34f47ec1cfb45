"""What the attention kernels of csrc/cuda promise beyond the contract, in the emulator and on a GPU: a row has the same
bits whichever of them computed it and wherever its pages lie; all head sizes that have an instance; numbers at the
edge."""

import numpy as np
import oracle
import pytest
from devices import has_cuda
from tolerances import assert_close, assert_same_bits

from fastllm import ops

# D, H, G. Groups of 1 to 16 heads: one and two blocks of eight columns, full and ragged.
HEADS = [(64, 5, 1), (64, 8, 1), (80, 2, 2), (96, 12, 1), (128, 6, 2), (128, 16, 1), (256, 3, 1)]
SMALL = ["bfloat16", "float16", "int8", "fp8"]


@pytest.fixture(scope="module", params=["cuda:emulated", *(["cuda"] if has_cuda() else [])])
def cuda(request):
    return ops.Device(request.param)


def heads_id(heads):
    return "D{}H{}G{}".format(*heads)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("heads", HEADS, ids=heads_id)
def test_a_row_has_the_same_bits_from_decode_and_from_prefill(cuda, heads, dtype):
    """Contexts of one to three units of 256 positions; the last 12 tokens at once, and in parts of 1 to 8."""
    dim, num_heads, num_kv_heads = heads
    rng = np.random.default_rng(40)
    lengths = [30, 260, 523]
    sequences = oracle.PagedSequences(rng, cuda, lengths, num_kv_heads, dim, dtype)
    q = oracle.normal(rng, 36, num_heads, dim)
    options = {"scale": dim**-0.5, "sinks": oracle.normal(rng, num_heads)}
    whole = sequences.attend(q, [12, 12, 12], **options)  # more than decode takes
    for s, length in enumerate(lengths):
        rows = slice(12 * s, 12 * s + 12)
        exact, size = oracle.attention(q[rows].astype(np.float64), sequences.k[s], sequences.v[s], **options)
        assert_close(whole[rows], exact, relative=oracle.attention_relative(cuda, dtype), scale=size + 1e-3)
        done = 0
        for count in [1, 2, 8, 1]:
            context = length - 12 + done + count
            part = sequences.attend(q[rows][done : done + count], [count], seqs=[s], context=[context], **options)
            assert_same_bits(part, whole[rows][done : done + count], f"sequence {s}, {count} tokens at {done}")
            done += count


@pytest.mark.parametrize("window", [0, 1, 16, 100, 256, 300])
@pytest.mark.parametrize("dtype", SMALL)
def test_contexts_at_the_edges_of_slots_tiles_and_units(cuda, dtype, window):
    rng = np.random.default_rng(41)
    lengths = [0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 513]
    counts = [min(n, 1) for n in lengths]
    sequences = oracle.PagedSequences(rng, cuda, lengths, 2, 64, dtype)
    q = oracle.normal(rng, sum(counts), 6, 64)
    options = {"scale": 0.125, "window": window}
    got = sequences.attend(q, counts, **options)
    for row, s in enumerate(s for s, n in enumerate(counts) if n):
        exact, size = oracle.attention(q[row : row + 1].astype(np.float64), sequences.k[s], sequences.v[s], **options)
        assert_close(
            got[row : row + 1],
            exact,
            relative=oracle.attention_relative(cuda, dtype),
            scale=size + 1e-3,
            what=f"context {lengths[s]}",
        )


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 64])
def test_any_number_of_heads_shares_a_kv_head(cuda, group):
    rng = np.random.default_rng(42)
    sequences = oracle.PagedSequences(rng, cuda, [40, 21, 19], 2, 64, "bfloat16")
    q = oracle.normal(rng, 12, 2 * group, 64)
    got = sequences.attend(q, [1, 2, 9], scale=0.125)
    begin = 0
    for s, n in enumerate([1, 2, 9]):
        rows = slice(begin, begin + n)
        exact, size = oracle.attention(q[rows].astype(np.float64), sequences.k[s], sequences.v[s], scale=0.125)
        assert_close(got[rows], exact, relative=oracle.attention_relative(cuda, "bfloat16"), scale=size + 1e-3)
        begin += n


@pytest.mark.parametrize("dtype", SMALL)
def test_where_pages_lie_changes_no_bit(cuda, dtype):
    rng = np.random.default_rng(43)
    length = 300
    k, v = oracle.normal(rng, length, 2, 80), oracle.normal(rng, length, 2, 80)
    q = oracle.normal(rng, 13, 6, 80)
    results = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(25)[:19]
        kv = ops.KvCache(25, 2, 80, dtype=dtype, device=cuda)
        at = np.arange(length)
        oracle.store(kv, k, v, np.asarray(order, np.int64)[at // 16] * 16 + at % 16)
        table = np.stack([order, order]).astype(np.int32)  # two sequences with the same pages
        results.append(
            ops.paged_attention(
                q,
                kv,
                query_start=np.array([0, 1, 13], np.int32),
                context_len=np.array([length, length - 7], np.int32),
                block_table=table,
                scale=0.1,
            )
        )
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_contexts_beyond_the_cells_of_decode_have_the_same_bits(cuda):
    """Scratch memory holds 32 units (8192 positions) of each sequence; what does not fit is done by prefill."""
    rng = np.random.default_rng(44)
    q = oracle.normal(rng, 1, 1, 64)
    results = []
    for num_seqs in (1, 2):  # one has too few cells, two share enough
        device = ops.Device(cuda.name)
        sequences = oracle.PagedSequences(np.random.default_rng(45), device, [8500], 1, 64, "bfloat16")
        counts, context = [1, 0][:num_seqs], [8500, 0][:num_seqs]
        results.append(sequences.attend(q, counts, seqs=[0] * num_seqs, context=context, scale=0.125))
        exact, size = oracle.attention(q.astype(np.float64), sequences.k[0], sequences.v[0], scale=0.125)
        assert_close(results[-1], exact, relative=oracle.attention_relative(device, "bfloat16"), scale=size + 1e-3)
    assert_same_bits(results[1], results[0])


@pytest.mark.parametrize("count", [8, 12])
def test_tokens_of_one_sequence_among_empty_ones(cuda, count):
    """As many tokens as sequences, and yet not one each."""
    rng = np.random.default_rng(46)
    sequences = oracle.PagedSequences(rng, cuda, [40], 2, 64, "bfloat16")
    q = oracle.normal(rng, count, 4, 64)
    counts, seqs = [0] * count, [0] * count
    counts[1] = count
    got = sequences.attend(q, counts, seqs=seqs, context=[40 if n else 0 for n in counts], scale=0.125)
    exact, size = oracle.attention(q.astype(np.float64), sequences.k[0], sequences.v[0], scale=0.125)
    assert_close(got, exact, relative=oracle.attention_relative(cuda, "bfloat16"), scale=size + 1e-3)


@pytest.mark.parametrize("dtype", SMALL)
def test_numbers_at_the_edge(cuda, dtype):
    """Large scores of either sign, one huge v, equal scores, zeros and subnormals: finite, and what float64 says."""
    rng = np.random.default_rng(46)
    k, v = oracle.normal(rng, 80, 1, 64), oracle.normal(rng, 80, 1, 64)
    q = oracle.normal(rng, 6, 1, 64)
    k[::2] *= 30
    q[1] *= 300  # scores of about 1e4: one token takes all
    q[2] = 0  # equal scores
    q[3] = 1e-41
    v[7] *= 2e4
    v[8] = 0
    v[9] = 1e-41
    k[10] = 0
    kv = ops.KvCache(5, 1, 64, dtype=dtype, device=cuda)
    oracle.store(kv, k, v)
    got = ops.paged_attention(
        q,
        kv,
        query_start=np.array([0, 1, 2, 3, 4, 5, 6], np.int32),
        context_len=np.full(6, 80, np.int32),
        block_table=np.tile(np.arange(5, dtype=np.int32), (6, 1)),
        scale=0.125,
    )
    assert np.isfinite(got).all()
    for row in (1, 2, 3):  # the others have scores so large that rounding q changes who wins
        exact, size = oracle.attention(
            q[row : row + 1].astype(np.float64),
            oracle.rounded(k, dtype, group=32),
            oracle.rounded(v, dtype),
            scale=0.125,
        )
        assert_close(got[row : row + 1], exact, relative=oracle.attention_relative(cuda, dtype), scale=size + 1e-3)
