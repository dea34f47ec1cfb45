"""Arguments of the calls: whatever is wrong is refused with InvalidRequestError that says what was expected."""

import asyncio

import pytest

from fastllm import LLM, AsyncLLM, InvalidRequestError, SamplingParams

SMALL = {"max_model_len": 128, "max_num_seqs": 4, "kv_cache_tokens": 512, "num_threads": 1}
ONE = SamplingParams(max_tokens=1)


@pytest.fixture(scope="module")
def llm():
    with LLM(**SMALL) as engine:
        yield engine


PROMPTS = [
    5, None, ..., b"abc", [None], [5.5], [[1.5]], [[]], "", [""], {}, {"x": 1}, {"prompt": 5}, {"prompt": None},
    {"prompt_token_ids": "abc"}, {"prompt_token_ids": None}, [["a"]], [b"abc"], [[2**70]], [[-(2**70)]], [[True]],
    [[-1]], [[4096]], "word " * 1000,
]  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: repr(p)[:30])
def test_prompts(llm, prompt):
    with pytest.raises(InvalidRequestError):
        llm.generate(prompt, ONE)
    with pytest.raises(InvalidRequestError):
        # One of many: nothing of the call is generated.
        llm.generate(["fine", prompt if not isinstance(prompt, list) else prompt[0]], ONE)


@pytest.mark.parametrize("params", ["x", 5, [], [ONE, ONE], {}, [None], [5], ...], ids=repr)
def test_sampling_params(llm, params):
    with pytest.raises(InvalidRequestError, match="sampling_params"):
        llm.generate("a", params)
    if not isinstance(params, list):
        with pytest.raises(InvalidRequestError, match="sampling_params"):
            list(llm.stream("a", params))


@pytest.mark.parametrize("priority", ["x", 1.5, 2**63, -(2**63) - 1, None, True])
def test_priorities(llm, priority):
    with pytest.raises(InvalidRequestError, match="priority"):
        llm.generate("a", ONE, priority=priority)


@pytest.mark.parametrize("salt", [5, None, b"x", "x" * 257, "é" * 129, "\ud800"])
def test_salts(llm, salt):
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        llm.generate("a", ONE, cache_salt=salt)


@pytest.mark.parametrize("messages", [5, None, "hi", {"role": "user"}, [5], [[5]], [[{"role": "user"}], 5], ["x"]])
def test_conversations(llm, messages):
    with pytest.raises(InvalidRequestError):
        llm.chat(messages, ONE)


def test_texts_and_token_ids(llm):
    for text in (5, None, b"x", ["a"]):
        with pytest.raises(InvalidRequestError):
            llm.encode(text)
    for ids in ([4096], [-1], ["x"], [1.5], [2**70], 5, None, "abc"):
        with pytest.raises(InvalidRequestError):
            llm.decode(ids)
    assert llm.decode([]) == "" and llm.encode("") == []


def test_the_async_interface_refuses_the_same():
    async def main():
        async with AsyncLLM(**SMALL) as llm:
            for prompt, params, more in (
                (5, ONE, {}),
                ("", ONE, {}),
                ("a", "x", {}),
                ("a", ONE, {"priority": "x"}),
                ("a", ONE, {"cache_salt": 5}),
            ):
                with pytest.raises(InvalidRequestError):
                    await anext(llm.generate(prompt, params, **more))
            with pytest.raises(InvalidRequestError):
                await anext(llm.chat("hi", ONE))
            for request_id in ("", "x", "-1", "9" * 40, "²"):
                llm.abort(request_id)  # names no request
            async for output in llm.generate("a", ONE):
                assert output.finished
            assert llm.info()["engine"]["num_requests"] == 1

    asyncio.run(main())


def test_refusals_leave_the_engine_as_it_was(llm):
    before = llm.generate("The os module", SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].token_ids
    for prompt in PROMPTS:
        with pytest.raises(InvalidRequestError):
            llm.generate(prompt, ONE)
    again = llm.generate("The os module", SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].token_ids
    assert again == before
