"""The official client works unchanged: every parameter, streams, errors."""

import asyncio
import math

import openai
import pytest

from fastllm import LLM, SamplingParams

USER = [{"role": "user", "content": "What does the os module do?"}]
MODEL = "fastllm-demo"


@pytest.fixture(scope="module")
def client(shared_server):
    with openai.OpenAI(base_url=shared_server.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def llm():
    with LLM(max_model_len=512, max_num_seqs=4, kv_cache_tokens=4096) as engine:
        yield engine


def test_models(client, server):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_completion_is_what_the_engine_generates(client, server, llm):
    expected = llm.generate("The os module", SamplingParams(temperature=0, max_tokens=20))[0]
    got = client.completions.create(model=MODEL, prompt="The os module", temperature=0, max_tokens=20)
    assert got.choices[0].text == expected.outputs[0].text
    assert got.choices[0].finish_reason == "length"
    assert got.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert got.usage.completion_tokens == 20
    assert got.usage.total_tokens == got.usage.prompt_tokens + 20
    chunks = list(
        client.completions.create(model=MODEL, prompt="The os module", temperature=0, max_tokens=20, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.outputs[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_is_what_the_engine_generates(client, server, llm):
    expected = llm.chat(USER, SamplingParams(temperature=0, max_tokens=20))[0].outputs[0].text
    got = client.chat.completions.create(model=MODEL, messages=USER, temperature=0, max_completion_tokens=20)
    assert (got.choices[0].message.role, got.choices[0].message.content) == ("assistant", expected)
    parts = [{"role": "user", "content": [{"type": "text", "text": USER[0]["content"]}]}]
    stream = client.chat.completions.create(
        model=MODEL, messages=parts, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].choices == [] and chunks[-1].usage == got.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_n_and_many_prompts_are_indexed_and_seeded(client, server, stream):
    def texts(**changes):
        got = client.completions.create(
            model=MODEL, prompt=["The os", "A list"], n=3, seed=7, max_tokens=12, stream=stream, **changes
        )
        found = [""] * 6
        for chunk in got if stream else [got]:
            for choice in chunk.choices:
                found[choice.index] += choice.text
        return found

    first = texts()
    assert len(set(first)) == 6
    assert texts() == first
    assert texts(temperature=0) != first


def test_stop_strings(client, server):
    free = client.completions.create(model=MODEL, prompt="The os module", temperature=0, max_tokens=40).choices[0].text
    stop = free[12:18]
    for stream in (False, True):
        got = client.completions.create(
            model=MODEL, prompt="The os module", temperature=0, max_tokens=40, stop=[stop, "never this"], stream=stream
        )
        choices = [choice for chunk in (got if stream else [got]) for choice in chunk.choices]
        assert "".join(choice.text for choice in choices) == free[: free.index(stop)]
        assert choices[-1].finish_reason == "stop" and choices[-1].stop_reason == stop


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(client, server, stream):
    got = client.chat.completions.create(
        model=MODEL, messages=USER, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3, stream=stream
    )
    text, entries = "", []
    for chunk in got if stream else [got]:
        for choice in chunk.choices:
            text += (choice.delta.content or "") if stream else choice.message.content
            entries += choice.logprobs.content if choice.logprobs else []
    assert len(entries) == 8
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == text
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1 + 1e-6


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs(client, server, stream):
    got = client.completions.create(
        model=MODEL, prompt="The os module", temperature=0, max_tokens=8, logprobs=2, stream=stream
    )
    text, tokens, offsets = "", [], []
    for chunk in got if stream else [got]:
        text += chunk.choices[0].text
        logprobs = chunk.choices[0].logprobs
        if logprobs is not None:
            tokens += logprobs.tokens
            offsets += logprobs.text_offset
            assert all(len(top) == 2 for top in logprobs.top_logprobs)
            assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert len(tokens) == 8 and "".join(tokens) == text
    assert all(text[offset:].startswith(token) for offset, token in zip(offsets, tokens, strict=True))


def test_echo(client, server):
    plain = client.completions.create(model=MODEL, prompt="The os module", temperature=0, max_tokens=5)
    for stream in (False, True):
        got = client.completions.create(
            model=MODEL, prompt="The os module", temperature=0, max_tokens=5, echo=True, stream=stream
        )
        text = "".join(chunk.choices[0].text for chunk in (got if stream else [got]))
        assert text == "The os module" + plain.choices[0].text
    only = client.completions.create(model=MODEL, prompt="The os module", max_tokens=0, echo=True)
    assert only.choices[0].text == "The os module" and only.usage.completion_tokens == 0
    assert only.usage.total_tokens == only.usage.prompt_tokens == plain.usage.prompt_tokens


def test_bias_and_extensions(client, server):
    ids = client.post("/../tokenize", body={"prompt": " is"}, cast_to=object)["tokens"]
    assert len(ids) == 1
    got = client.completions.create(
        model=MODEL, prompt="The os module", temperature=0, max_tokens=3, logit_bias={str(ids[0]): 100}
    )
    assert got.choices[0].text == " is is is"
    got = client.chat.completions.create(
        model=MODEL,
        messages=USER,
        max_tokens=12,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        top_p=0.9,
        extra_body={
            "top_k": 5,
            "min_p": 0.01,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "min_tokens": 12,
            "stop_token_ids": [5],
            "priority": 1,
            "cache_salt": "a",
        },
    )
    assert got.usage.completion_tokens == 12
    got = client.completions.create(
        model=MODEL, prompt="The", max_tokens=6, extra_body={"allowed_token_ids": ids, "ignore_eos": True}
    )
    assert got.choices[0].text == " is" * 6


def test_errors_are_openai_errors(client, server):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=USER, extra_body={"telepathy": 1})
    assert caught.value.param == "telepathy" and caught.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=USER, max_completion_tokens=100000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=USER)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=USER, temperature=-1, stream=True)
    assert caught.value.param == "temperature"


def test_the_async_client_streams_at_the_same_time(server):
    async def one(client, i):
        stream = await client.chat.completions.create(
            model=MODEL, messages=USER, max_tokens=16, seed=i, stream=True, extra_body={"ignore_eos": True}
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def main():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            alone = await one(client, 3)
            assert (await asyncio.gather(*(one(client, i) for i in range(24))))[3] == alone

    asyncio.run(main())
