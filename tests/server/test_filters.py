"""Content filters: nothing of a match leaves, whatever the pieces; the rest leaves unchanged."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedLLM
from serving import Serving

from fastllm.errors import InvalidRequestError
from fastllm.server.config import ServerConfig
from fastllm.server.filters import FilterChain, RegexFilter, WordFilter, load_filters

SMALL = st.text("abcA é", max_size=30)


def run(one, pieces):
    """(what left, whether something matched)."""
    stream, shown = one.stream(), ""
    for piece in pieces:
        text, found = stream.feed(piece)
        shown += text
        if found:
            return shown, True
    text, found = stream.finish()
    return shown + text, found


def pieces_of(text, sizes):
    at = 0
    for size in sizes:
        yield text[at : at + size]
        at += size
    yield text[at:]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.text("abcA", min_size=1, max_size=5), min_size=1, max_size=5), SMALL, st.lists(st.integers(0, 6)))
def test_words(words, text, sizes):
    one = WordFilter(words)
    lower = text.lower()
    ends = [i for i in range(len(lower) + 1) if any(lower[:i].endswith(word.lower()) for word in words)]
    shown, found = run(one, pieces_of(text, sizes))
    assert found == bool(ends) == one.matches(text)
    assert text.startswith(shown)
    if found:
        assert not any(word.lower() in shown.lower() for word in words)
        longest = max(len(word) for word in words if lower[: ends[0]].endswith(word.lower()))
        assert len(shown) <= ends[0] - longest
    else:
        assert shown == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SMALL, st.lists(st.integers(0, 6)))
def test_patterns_and_chains(text, sizes):
    pattern = RegexFilter("ab+c|A{2}", longest=8)
    chain = FilterChain([WordFilter(["cab"]), pattern])
    shown, found = run(chain, pieces_of(text, sizes))
    forbidden = re.compile("(?i:cab)|ab{1,6}c|A{2}")
    if forbidden.search(text):
        assert found or "b" * 7 in text
    assert not forbidden.search(shown)
    assert text.startswith(shown) and (found or shown == text)


def test_wrong_filters_are_refused(tmp_path):
    with pytest.raises(InvalidRequestError):
        RegexFilter("(")
    with pytest.raises(InvalidRequestError):
        RegexFilter("a*")
    with pytest.raises(InvalidRequestError):
        load_filters(names=["no.such:Thing"])
    with pytest.raises(InvalidRequestError):
        load_filters(word_file=tmp_path / "none")
    assert load_filters() is None


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    path = tmp_path_factory.mktemp("filter") / "words"
    path.write_text("forbidden\nsecret plan\n")
    config = ServerConfig(port=0, log_requests=False, filters=load_filters(word_file=path, patterns=[r"\d{4}-\d{4}"]))
    with Serving(dataclasses.replace(config, tool_call_parser="hermes"), llm=ScriptedLLM()) as found:
        yield found


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("bad", ["Forbidden", "secret plan", "1234-5678"])
def test_nothing_of_a_match_leaves_the_server(serving, size, bad):
    serving.llm.text, serving.llm.size = f"All is well, {bad} and more", size
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        choice = serving.post(path, body)[1]["choices"][0]
        assert choice.get("text", choice.get("message", {}).get("content")) == "All is well, "
        assert choice["finish_reason"] == "content_filter"
        choices = [event["choices"][0] for event in serving.events(path, body)]
        text = "".join(choice.get("text", choice.get("delta", {}).get("content")) or "" for choice in choices)
        assert text == "All is well, " and choices[-1]["finish_reason"] == "content_filter"


def test_prompts_are_filtered_and_logprobs_are_not_given(serving):
    serving.llm.text = "fine"
    for body in ({"prompt": "the FORBIDDEN thing"}, {"prompt": ["a", "secret plan"]}):
        status, answer = serving.post("/v1/completions", body)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "content_filter", "prompt")
        assert "secret" not in str(answer)
    status, answer = serving.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "my secret plan"}]})
    assert (status, answer["error"]["param"]) == (400, "messages[0].content")
    assert serving.post("/v1/completions", {"prompt": "a", "logprobs": 1})[0] == 400
    assert serving.post("/v1/completions", {"prompt": "a"})[0] == 200


USER = {"role": "user", "content": "hi"}


def called(arguments, **more):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        USER,
        {"role": "assistant", "tool_calls": [call], **more},
        {"role": "tool", "tool_call_id": "a", "content": ""},
    ]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": called('{"a": ["the secret plan"]}')}, "messages[1].tool_calls"),
        ("chat/completions", {"messages": called('{"forbidden": 1}')}, "messages[1].tool_calls"),
        ("chat/completions", {"messages": called("{}", reasoning_content="forbidden")},
         "messages[1].reasoning_content"),
        ("chat/completions", {"messages": [{**USER, "name": "forbidden"}]}, "messages[0].name"),
        ("chat/completions", {"messages": [USER], "chat_template_kwargs": {"a": "forbidden"}}, "chat_template_kwargs"),
        ("chat/completions", {"messages": [USER], "chat_template_kwargs": {"forbidden": 1}}, "chat_template_kwargs"),
        ("chat/completions", {"messages": [USER], "tools": [
            {"type": "function", "function": {"name": "f", "description": "forbidden"}}]}, "tools"),
        ("chat/completions", {"messages": [USER], "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"forbidden": {}}}}]}, "tools"),
        ("responses", {"input": "x", "instructions": "forbidden"}, "input"),
        ("responses", {"input": [{"type": "reasoning", "summary": [], "content": [
            {"type": "reasoning_text", "text": "forbidden"}]}, {"role": "assistant", "content": "x"}]}, "input"),
        ("messages", {"system": "a", "messages": [{**USER, "content": "forbidden"}], "max_tokens": 5}, "messages"),
        ("messages", {"messages": [USER], "max_tokens": 5, "tools": [
            {"name": "f", "description": "forbidden", "input_schema": {}}]}, "tools"),
    ],
)  # fmt: skip
def test_every_text_that_the_template_sees_is_filtered(serving, path, body, param):
    serving.llm.text = "fine"
    status, answer = serving.post(f"/v1/{path}", body)
    assert status == 400 and answer["error"]["message"].startswith(f"{param}: holds what"), answer
    assert answer["error"].get("param", param) == param
