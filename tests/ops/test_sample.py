"""sample: against a plain NumPy model that sorts, and as a distribution."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import _core, ops
from fastllm.ops import SampleParams

FALSE_ALARMS = 1e-6  # chance that the chi-square test fails on a correct sampler; seeds are fixed, so it is decided


def philox_uniform(seed, sequence, position):
    """Philox4x32-10, from the paper, as a double in [0, 1)."""
    mask = 0xFFFFFFFF
    c = [position & mask, position >> 32, sequence & mask, sequence >> 32]
    k0, k1 = seed & mask, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & mask, (p0 >> 32) ^ c[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return (((c[0] << 32) | c[1]) >> 11) * 2.0**-53


def kept_probabilities(logits, p):
    """The distribution that is drawn from, by sorting the vocabulary; None if nothing is left."""
    x = logits.astype(np.float32).copy()
    for token, in_output, in_prompt in p.counts:
        if in_output or in_prompt:
            factor = np.float32(p.repetition_penalty)
            x[token] = x[token] / factor if x[token] > 0 else x[token] * factor
        if in_output:
            x[token] -= np.float32(p.frequency_penalty) * np.float32(in_output)
            x[token] -= np.float32(p.presence_penalty)
    for token, bias in p.bias.items():
        x[token] += np.float32(bias)
    is_kept = np.ones(len(x), bool)
    if p.allowed is not None:
        is_kept[:] = False
        is_kept[list(p.allowed)] = True
    if p.mask:
        is_kept &= [i // 32 < len(p.mask) and bool(p.mask[i // 32] >> i % 32 & 1) for i in range(len(x))]
    x = np.where(is_kept, x, -np.inf).astype(np.float64)
    if np.isneginf(x).all():
        return None
    order = np.argsort(-x, kind="stable")
    if p.temperature < 1e-5:
        return np.eye(len(x))[order[0]]
    weights = np.exp((x - x.max()) / np.float64(np.float32(p.temperature)))
    if p.top_k:
        weights[order[p.top_k :]] = 0
    if p.top_p < 1:
        cumulative = np.cumsum(weights[order])
        reaches = cumulative >= np.float64(np.float32(p.top_p)) * weights.sum()
        weights[order[np.argmax(reaches) + 1 :]] = 0
    weights[weights < np.float64(np.float32(p.min_p)) * weights.max()] = 0
    return weights / weights.sum()


def numpy_sample(logits, p):
    probabilities = kept_probabilities(logits, p)
    if probabilities is None:
        return -1
    cdf = np.cumsum(probabilities)
    above = cdf > philox_uniform(p.seed, p.sequence, p.position) * cdf[-1]
    return int(np.argmax(above))


def draws(device, logits, params, n):
    each = [SampleParams(**{**params, "position": i}) for i in range(n)]
    return np.array([r.token for r in ops.sample(np.tile(logits, (n, 1)), each, device=device)])


CASES = [
    {},
    {"temperature": 0.3},
    {"temperature": 7.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10**6},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"top_p": 0.999999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.05, "temperature": 1.3},
    {"temperature": 0.0},
    {"counts": [(3, 2, True), (4, 0, True), (5, 1, False)], "repetition_penalty": 1.3},
    {"counts": [(3, 2, True), (5, 1, False)], "frequency_penalty": 0.5, "presence_penalty": -0.4},
    {"bias": {0: 4.0, 1: float("-inf"), 2: -1.5}},
    {"allowed": [1, 4, 5, 9]},
    {"allowed": [7], "top_p": 0.5, "top_k": 3},
    {"mask": [0b1010110010]},  # ids from 32 on are behind its end
    {"mask": [0x80000011] * 200, "top_k": 3, "temperature": 0.0},
    {"mask": [0x00000112] * 200, "top_p": 0.8, "allowed": [1, 4, 5, 9]},
]


@pytest.mark.parametrize("vocab", [10, 257, 3001])
@pytest.mark.parametrize("params", CASES, ids=str)
def test_tokens_are_those_of_the_sorting_model(device, params, vocab):
    rng = np.random.default_rng(40)
    for scale in (0.01, 1.0, 5.0):
        logits = scale * oracle.normal(rng, 24, vocab)
        each = [SampleParams(**params, seed=7, sequence=r % 3, position=r) for r in range(24)]
        got = [r.token for r in ops.sample(logits, each, device=device)]
        assert got == [numpy_sample(logits[r], each[r]) for r in range(24)]


def large_rows(rng, vocab):
    """Rows in which shortcuts could go wrong, and some as models make them."""
    rows = {"flat": 0.01 * oracle.normal(rng, vocab), "equal": np.zeros(vocab, np.float32)}
    rows["model"] = 2.5 * oracle.normal(rng, vocab)
    rows["model"][rng.integers(0, vocab, 40)] += 12
    rows["ties"] = np.round(4 * oracle.normal(rng, vocab)) / 4
    rows["peak"] = oracle.normal(rng, vocab)
    rows["peak"][-1] = 60
    rows["two"] = np.full(vocab, -np.inf, np.float32)
    rows["two"][[5, vocab - 3]] = 1.0
    rows["half banned"] = np.where(rng.random(vocab) < 0.5, -np.inf, 3 * oracle.normal(rng, vocab)).astype(np.float32)
    rows["huge"] = (1e30 * oracle.normal(rng, vocab)).astype(np.float32)
    is_early = np.arange(vocab) < vocab // 2
    rows["ties far up"] = np.where(is_early & (rng.random(vocab) < 0.5), 1e10, 0).astype(np.float32)
    return rows


LARGE = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.02},
    {"temperature": 1e7},
    {"top_k": 1},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 20_011},
    {"top_k": 20_010, "min_p": 0.01},
    {"top_p": 0.5},
    {"top_p": 0.9, "temperature": 0.7},
    {"top_p": 0.999999},
    {"top_p": 0.95, "min_p": 0.02},
    {"min_p": 0.05},
    {"min_p": 1e-30},
    {"counts": [(5, 2, True)], "repetition_penalty": 1.2, "frequency_penalty": 0.5},
]


@pytest.mark.parametrize("params", LARGE, ids=str)
def test_tokens_of_a_large_vocabulary_are_those_of_the_reference(device, params):
    """The reference looks at every logit in double."""
    rows = large_rows(np.random.default_rng(45), 20_011)
    logits = np.repeat(np.stack(list(rows.values())), 6, axis=0)
    each = [SampleParams(**params, seed=r, position=r % 6) for r in range(len(logits))]
    assert ops.sample(logits, each, device=device) == ops.sample(logits, each, device="reference")


@pytest.mark.parametrize("name", ["model", "flat", "ties", "peak", "half banned", "ties far up"])
def test_log_probabilities_of_a_large_vocabulary(device, name):
    logits = large_rows(np.random.default_rng(46), 20_011)[name][None]
    exact = torch.log_softmax(torch.from_numpy(logits[0]).double(), -1).numpy()
    order = np.argsort(-logits[0], kind="stable")
    for rank in (1, 2, 700):
        p = SampleParams(forced_token=int(order[rank - 1]), wants_logprob=True, num_top=20)
        (got,) = ops.sample(logits, p, device=device)
        assert (got.rank, got.top_tokens) == (rank, order[:20].tolist())
        np.testing.assert_allclose(got.logprob, exact[got.token], rtol=1e-6)
        np.testing.assert_allclose(got.top_logprobs, exact[got.top_tokens], rtol=1e-6)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_parameters_agree_with_the_sorting_model(data):
    vocab = data.draw(st.integers(1, 40))
    # Multiples of 1/4 make ties likely; -inf is a legal logit.
    logit = st.one_of(st.integers(-12, 12).map(lambda i: i / 4), st.just(float("-inf")))
    logits = np.array([data.draw(st.lists(logit, min_size=vocab, max_size=vocab))], np.float32)
    tokens = st.integers(0, vocab - 1)
    p = SampleParams(
        temperature=data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        top_k=data.draw(st.integers(0, vocab + 2)),
        # Odd fractions: a border that float sums hit exactly may fall on either side.
        top_p=data.draw(st.sampled_from([1.0, 0.123456, 0.7654321, 0.9371])),
        min_p=data.draw(st.sampled_from([0.0, 0.0437, 0.31])),
        bias=data.draw(st.dictionaries(tokens, st.sampled_from([-1.0, 0.5, float("-inf")]), max_size=4)),
        allowed=data.draw(st.none() | st.lists(tokens, min_size=1, unique=True).map(sorted)),
        mask=data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=3)),
        seed=data.draw(st.integers(0, 2**64 - 1)),
        position=data.draw(st.integers(0, 2**40)),
    )
    expected = -1 if np.isneginf(logits).all() else numpy_sample(logits[0], p)
    (got,) = ops.sample(logits, p, device="reference")
    assert got.token == expected
    assert got.is_finite == (expected >= 0)


@pytest.mark.parametrize("params", [{}, {"temperature": 0.7}, {"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.2}], ids=str)
def test_draws_follow_the_distribution(device, params):
    """Chi-square over many draws; the critical value comes from the Wilson-Hilferty approximation."""
    logits = np.random.default_rng(41).standard_normal((1, 50)).astype(np.float32)
    n = 20_000 if device.name != "cuda:emulated" else 2_000
    expected = n * kept_probabilities(logits[0], SampleParams(**params))
    tokens = draws(device, logits, {**params, "seed": 11}, n)
    counts = np.bincount(tokens, minlength=50)
    assert (counts[expected == 0] == 0).all(), "a token that was filtered out was drawn"
    is_kept = expected > 0
    statistic = ((counts - expected)[is_kept] ** 2 / expected[is_kept]).sum()
    freedom = is_kept.sum() - 1
    z = 4.7534  # the normal quantile of 1 - FALSE_ALARMS
    critical = freedom * (1 - 2 / (9 * freedom) + z * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < critical, f"chi-square {statistic:.1f} with {freedom} degrees of freedom, limit {critical:.1f}"


def test_a_draw_depends_on_its_row_alone(device):
    rng = np.random.default_rng(42)
    logits = oracle.normal(rng, 30, 500)
    each = [SampleParams(top_p=0.9, seed=r // 3, sequence=r % 3, position=5 * r, wants_logprob=True) for r in range(30)]
    together = ops.sample(logits, each, device=device)
    for r in range(30):
        assert ops.sample(logits[r : r + 1], each[r], device=device) == together[r : r + 1]
    assert ops.sample(logits[::-1], each[::-1], device=device) == together[::-1]


def test_a_draw_does_not_depend_on_the_penalties_of_other_rows(device):
    """More counts than one launch takes (1024 a row). Token 1 is so near to min_p that it is kept or not as exp and log
    are rounded: whoever samples a row in another way in company is found out."""
    device = ops.Device(device.name)  # has room for what was asked of it, so for this call alone
    min_p = np.random.default_rng(48).uniform(0.3, 0.9, 20).astype(np.float32)
    logits = np.full((20, 1200), -np.inf, np.float32)
    logits[:, 0] = 0
    logits[:, 1] = np.log(min_p.astype(np.float64))
    counts = [(token, 0, True) for token in range(1100)]
    each = [SampleParams(min_p=float(p), counts=counts, seed=9, position=r) for r, p in enumerate(min_p)]
    together = ops.sample(logits, each, device=device)
    assert {r.token for r in together} == {0, 1}
    for r in range(20):
        alone = ops.sample(logits[r : r + 1], each[r], device=ops.Device(device.name))
        assert alone == together[r : r + 1], f"row {r}"


def test_log_probabilities_are_of_the_raw_logits(device):
    rng = np.random.default_rng(43)
    logits = oracle.normal(rng, 6, 300)
    p = SampleParams(temperature=0.5, bias={7: 20.0}, wants_logprob=True, num_top=5)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    for r, got in enumerate(ops.sample(logits, p, device=device)):
        assert got.token == 7  # through the bias, which the log-probability does not see
        assert got.logprob == pytest.approx(exact[r, 7], rel=1e-6)
        assert got.rank == 1 + (logits[r] > logits[r, 7]).sum()
        assert got.top_tokens == np.argsort(-logits[r], kind="stable")[:5].tolist()
        np.testing.assert_allclose(got.top_logprobs, exact[r, got.top_tokens], rtol=1e-6)


@pytest.mark.parametrize("num_top", [0, 1, 20, 32, 33, 129])
def test_log_probabilities_beside_every_parameter_are_those_of_the_reference(device, num_top):
    """All cases in one call: each row has its own place among penalties, masks and likely tokens."""
    rng = np.random.default_rng(47)
    logits = np.concatenate([np.round(4 * oracle.normal(rng, len(CASES), 300)) / 4, oracle.normal(rng, 2, 300)])
    each = [
        SampleParams(**case, seed=r, wants_logprob=r % 3 != 1, num_top=num_top if r % 4 != 2 else 0)
        for r, case in enumerate([*CASES, {"forced_token": 17}, {"forced_token": 5, "bias": {5: 3.0}}])
    ]
    found = ops.sample(logits, each, device=device)
    for got, wanted in zip(found, ops.sample(logits, each, device="reference"), strict=True):
        assert (got.token, got.rank, got.top_tokens) == (wanted.token, wanted.rank, wanted.top_tokens)
        np.testing.assert_allclose(got.logprob, wanted.logprob, rtol=1e-6)
        np.testing.assert_allclose(got.top_logprobs, wanted.top_logprobs, rtol=1e-6)


def test_a_forced_token_is_reported_not_drawn(device):
    logits = np.array([[1, 3, 3, 2]], np.float32)
    p = SampleParams(temperature=0.0, forced_token=2, wants_logprob=True, num_top=4)
    (got,) = ops.sample(logits, p, device=device)
    assert (got.token, got.rank, got.top_tokens) == (2, 2, [1, 2, 3, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 8191, 9999])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(device, bad, at, temperature):
    logits = oracle.normal(np.random.default_rng(44), 3, 10_000)
    p = SampleParams(temperature=temperature, wants_logprob=True, num_top=2)
    clean = ops.sample(logits, p, device=device)
    logits[1, at] = bad
    got = ops.sample(logits, p, device=device)
    assert (got[1].token, got[1].is_finite) == (-1, False)
    assert [got[0], got[2]] == [clean[0], clean[2]]


@pytest.mark.parametrize(
    "params",
    [
        {"allowed": [0, 2], "bias": {0: float("-inf"), 2: float("-inf")}},
        {"bias": dict.fromkeys(range(4), float("-inf"))},
        {"counts": [(1, 0, True)], "repetition_penalty": 1e-39},  # overflows to infinity
    ],
    ids=["allowed and banned", "all banned", "overflow"],
)
def test_a_row_without_a_choice_says_so(device, params):
    (got,) = ops.sample(np.ones((1, 4), np.float32), SampleParams(**params), device=device)
    assert (got.token, got.is_finite) == (-1, False)


def test_levels_of_the_machine_are_named_in_order():
    levels = _core.cpu_isa_levels()
    assert levels == ["scalar", "avx2", "avx512", "vnni", "bf16"][: len(levels)]
