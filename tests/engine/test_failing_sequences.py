"""NaN and infinity in the weights: the sequences that meet them end with an error that says so, the others do not
notice, and the counter shows it."""

import asyncio

import pytest
from requests_mix import bits, idle_stats, ids

from fastllm import LLM, AsyncLLM, InternalError, InvalidRequestError, SamplingParams

OPTIONS = {"max_model_len": 128, "num_threads": 2, "max_num_seqs": 16}
# Of token ids 0 .. 262. No prompt of this file holds them unless it is meant to, and none is drawn.
FIRST, MIDDLE, LAST = BROKEN = (0, 131, 262)
DEFAULTS = {"temperature": 0.8, "seed": 3, "max_tokens": 12, "logprobs": 2, "ignore_eos": True}
PARAMS = SamplingParams(**DEFAULTS, banned_token_ids=BROKEN)
VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def prompt(seed, length=30):
    """A prompt without the broken ids."""
    return [token for token in ids(seed, length + 9) if token not in BROKEN][:length]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A checkpoint of which some rows of a tensor are not numbers; one column is enough."""
    from checkpoints import CASES, make_model, save

    cases = {case.name: case for case in CASES}
    made = {}

    def make(name, tensor, rows, value, column=None):
        key = (name, tensor, rows, value, column)
        if key not in made:
            model = make_model(cases[name])
            weight = dict(model.named_parameters())[tensor].data
            for row in rows:
                weight[row, column if column is not None else slice(None)] = VALUES.get(value, value)
            made[key] = save(model, tmp_path_factory.mktemp("broken"))
        return made[key]

    return make


def outcome(llm, prompts, params=PARAMS):
    """Outputs of all, and how many of them failed."""
    try:
        outputs = llm.generate(prompts, params)
    except InternalError as error:
        assert "NaN" in str(error) and "logits" in str(error)
        outputs = error.outputs
    return outputs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("column", [0, 35, -1, None])
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window", "gpt-oss"])
def test_only_sequences_with_the_broken_token_fail(broken, checkpoint, name, value, column, dtype):
    good = [prompt(i, 10 + 5 * i) for i in range(6)]
    # At the beginning, inside, at the end of the prompt, on both sides of a page border.
    bad = [[FIRST, *prompt(20, 9)], [*prompt(21, 16), MIDDLE, *prompt(22, 9)], [*prompt(23, 15), LAST], [MIDDLE]]
    with LLM(checkpoint(name), dtype=dtype, **OPTIONS) as llm:
        expected = [bits(o) for o in llm.generate(good, PARAMS)]
    folder = broken(name, "model.embed_tokens.weight", BROKEN, value, column)
    # A pool so small that pages of failed sequences are used again at once, and chunks that split the prompts.
    with LLM(folder, dtype=dtype, **OPTIONS, kv_cache_tokens=256, max_num_batched_tokens=23) as llm:
        for _ in range(3):
            outputs = outcome(llm, [p for pair in zip(good, bad + bad[:2], strict=True) for p in pair])
            assert [bits(o) for o in outputs[::2]] == expected
            for output in outputs[1::2]:
                assert output.finished and output.outputs[0].finish_reason == "error"
                assert output.outputs[0].token_ids == [], "nothing is made of numbers that are none"
        stats = idle_stats(llm)
        assert stats["num_nonfinite_rows"] == 18
        assert stats["num_failed_steps"] == 0


@pytest.mark.parametrize("row", BROKEN)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_broken_row_of_the_head_fails_in_the_first_step(broken, dtype, value, row):
    # Every logit row has the entry, wherever it is: never an ordinary token.
    with LLM(broken("llama-gqa", "lm_head.weight", (row,), value), dtype=dtype, **OPTIONS) as llm:
        for params in (PARAMS, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)):
            outputs = outcome(llm, [prompt(i) for i in range(5)], params)
            assert [o.outputs[0].finish_reason for o in outputs] == ["error"] * 5
            assert all(o.outputs[0].token_ids == [] for o in outputs)
        assert idle_stats(llm)["num_nonfinite_rows"] == 10


def test_a_window_that_has_passed_the_broken_token_gives_sound_numbers(broken, checkpoint):
    # Two layers of 13 positions: what is 24 and more back has no influence, and is not even multiplied by 0.
    tail = prompt(4, 40)
    with LLM(checkpoint("mistral-window"), **OPTIONS) as llm:
        expected = bits(llm.generate([[9, *tail]], PARAMS)[0])
    with LLM(broken("mistral-window", "model.embed_tokens.weight", BROKEN, "nan"), **OPTIONS) as llm:
        assert bits(llm.generate([[MIDDLE, *tail]], PARAMS)[0]) == expected


def test_a_token_that_breaks_during_decoding_ends_its_sequence_there(broken, checkpoint):
    # The model is sound until it draws the broken token: what came before stays.
    params = SamplingParams(**DEFAULTS)
    with LLM(checkpoint("llama-gqa"), **OPTIONS) as llm:
        free = llm.generate([prompt(1)], params)[0].outputs[0].token_ids
    at = next(i for i, token in enumerate(free) if i > 2 and token not in prompt(1) + free[:i])
    with LLM(broken("llama-gqa", "model.embed_tokens.weight", (free[at],), "nan"), **OPTIONS) as llm:
        output = outcome(llm, [prompt(1)], params)[0]
        assert output.outputs[0].finish_reason == "error"
        assert output.outputs[0].token_ids == free[: at + 1]


def test_one_sequence_of_n_fails_and_its_sisters_go_on(broken, checkpoint):
    params = SamplingParams(temperature=1.0, seed=5, n=4, max_tokens=16, logprobs=1, ignore_eos=True)
    with LLM(checkpoint("llama-gqa"), **OPTIONS) as llm:
        free = llm.generate([prompt(1)], params)[0].outputs
    used = [set(c.token_ids) for c in free]
    token = next(t for t in free[2].token_ids[:-1] if t not in used[0] | used[1] | used[3] | set(prompt(1)))
    with LLM(broken("llama-gqa", "model.embed_tokens.weight", (token,), "nan"), **OPTIONS) as llm:
        found = outcome(llm, [prompt(1)], params)[0].outputs
        assert [c.finish_reason for c in found] == ["length", "length", "error", "length"]
        assert [c.token_ids for c in found[:2] + found[3:]] == [c.token_ids for c in free[:2] + free[3:]]
        assert found[2].token_ids == free[2].token_ids[: free[2].token_ids.index(token) + 1]
        idle_stats(llm)


def test_the_cache_forgets_what_a_failed_sequence_wrote(broken, checkpoint):
    with LLM(broken("llama-gqa", "model.embed_tokens.weight", (MIDDLE,), "nan"), **OPTIONS) as llm:
        bad = [*prompt(1, 40), MIDDLE, *prompt(2, 40)]
        for _ in range(2):
            assert outcome(llm, [bad])[0].outputs[0].finish_reason == "error"
        # Its sound beginning, in a request of its own.
        with LLM(checkpoint("llama-gqa"), **OPTIONS) as sound:
            assert bits(sound.generate([bad[:40]], PARAMS)[0]) == bits(llm.generate([bad[:40]], PARAMS)[0])
        idle_stats(llm)


def test_a_request_that_bans_every_token_is_refused_and_the_others_run(checkpoint):
    with LLM(checkpoint("llama-gqa"), **OPTIONS) as llm:
        expected = bits(llm.generate([prompt(1)], PARAMS)[0])
        nothing = SamplingParams(allowed_token_ids=[5], banned_token_ids=[5])
        with pytest.raises(InvalidRequestError, match="leaves no token"):
            llm.generate([prompt(1), prompt(2)], [PARAMS, nothing])
        assert bits(llm.generate([prompt(1)], PARAMS)[0]) == expected
        idle_stats(llm)


def test_async_streams_fail_alone(broken, checkpoint):
    with LLM(checkpoint("llama-gqa"), **OPTIONS) as llm:
        expected = [o.outputs[0].token_ids for o in llm.generate([prompt(i) for i in range(8)], PARAMS)]

    async def collect(llm, tokens):
        async for output in llm.generate(tokens, PARAMS):
            last = output
        return last.outputs[0].token_ids

    async def main():
        folder = broken("llama-gqa", "model.embed_tokens.weight", BROKEN, "nan", None)
        async with AsyncLLM(folder, **OPTIONS) as llm:
            tasks = [collect(llm, prompt(i)) for i in range(8)] + [collect(llm, [MIDDLE, i + 3]) for i in range(4)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:8] == expected
        assert all(isinstance(r, InternalError) for r in results[8:])

    asyncio.run(main())
