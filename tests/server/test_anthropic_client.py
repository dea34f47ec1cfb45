"""The official anthropic client works unchanged: messages, streams, tools, errors."""

import json

import anthropic
import pytest
from serving import Serving
from test_tools import TIME, WEATHER, hermes

from fastllm import LLM, SamplingParams
from fastllm.server.config import ApiKey, ServerConfig

USER = [{"role": "user", "content": "What does the os module do?"}]
MODEL = "fastllm-demo"
GREEDY = {"temperature": 0}  # the client has no such parameter any more
TOOLS = [
    {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}},
    {"name": "time", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
]


def connect(serving, key="none"):
    return anthropic.Anthropic(base_url=serving.url, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(shared_server):
    with connect(shared_server) as found:
        yield found


def test_a_message_is_what_the_engine_generates(server, client):
    system = "Answer in full."
    with LLM(max_model_len=512, kv_cache_tokens=2048) as llm:
        expected = llm.chat(
            [{"role": "system", "content": system}, *USER], SamplingParams(temperature=0, max_tokens=8)
        )[0]
    for text in (system, [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]):
        got = client.messages.create(model=MODEL, max_tokens=8, system=text, messages=USER, extra_body=GREEDY)
        assert (got.type, got.role, got.model) == ("message", "assistant", MODEL)
        assert [(block.type, block.text) for block in got.content] == [("text", expected.outputs[0].text)]
        assert (got.stop_reason, got.stop_sequence) == ("max_tokens", None)
        usage = got.usage
        assert usage.input_tokens + usage.cache_read_input_tokens == len(expected.prompt_token_ids)
        assert usage.output_tokens == 8
    with client.messages.stream(model=MODEL, max_tokens=8, system=system, messages=USER, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == expected.outputs[0].text
        final = stream.get_final_message()
    assert [block.text for block in final.content] == [got.content[0].text] and final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 8
    assert client.messages.count_tokens(model=MODEL, system=system, messages=USER).input_tokens == len(
        expected.prompt_token_ids
    )


def test_stop_sequences(server, client):
    free = client.messages.create(model=MODEL, max_tokens=40, messages=USER, extra_body=GREEDY).content[0].text
    stop = free[12:18]
    got = client.messages.create(
        model=MODEL, max_tokens=40, messages=USER, extra_body=GREEDY, stop_sequences=[stop, "never this"]
    )
    assert (got.content[0].text, got.stop_reason, got.stop_sequence) == (
        free[: free.index(stop)],
        "stop_sequence",
        stop,
    )


def test_raw_events_follow_the_protocol(server, client):
    events = list(
        client.messages.create(
            model=MODEL, max_tokens=8, messages=USER, extra_body={"top_k": 5, "top_p": 0.9}, stream=True
        )
    )
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert events[0].message.content == [] and events[0].message.stop_reason is None
    assert events[-2].delta.stop_reason == "max_tokens" and events[-2].usage.output_tokens == 8


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_thinking_text_and_calls_are_blocks(scripted, size):
    scripted.llm.text, scripted.llm.size = "<think>hm</think>I look.\n" + hermes(WEATHER, TIME), size
    with connect(scripted) as client:
        got = client.messages.create(model=MODEL, max_tokens=100, messages=USER, tools=TOOLS)
        assert [block.type for block in got.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert got.stop_reason == "tool_use"
        thinking, text, weather, time = got.content
        assert (thinking.thinking, text.text.strip()) == ("hm", "I look.")
        assert (weather.name, weather.input) == ("weather", json.loads(WEATHER.arguments))
        assert (time.name, time.input) == ("time", {}) and weather.id != time.id
        with client.messages.stream(model=MODEL, max_tokens=100, messages=USER, tools=TOOLS) as stream:
            final = stream.get_final_message()
        assert [block.model_dump(exclude={"id"}) for block in final.content] == [
            block.model_dump(exclude={"id"}) for block in got.content
        ]
        assert final.stop_reason == "tool_use"
        # The answer goes back as it came, with the results.
        scripted.llm.text = "It is sunny."
        messages = [
            *USER,
            {"role": "assistant", "content": got.content},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": weather.id, "content": "sunny"},
                    {"type": "tool_result", "tool_use_id": time.id, "content": [{"type": "text", "text": "9"}]},
                    {"type": "text", "text": "So?"},
                ],
            },
        ]
        end = client.messages.create(model=MODEL, max_tokens=100, messages=messages, tools=TOOLS)
        assert (end.stop_reason, end.content[0].text) == ("end_turn", "It is sunny.")
        seen, variables = scripted.llm.prompts[-1]
        assert [message["role"] for message in seen] == ["user", "assistant", "tool", "tool", "user"]
        assert seen[1]["tool_calls"][0]["function"]["arguments"] == json.loads(WEATHER.arguments)
        assert seen[1]["reasoning_content"] == "hm" and seen[2]["content"] == "sunny"
        assert [tool["function"]["name"] for tool in variables["tools"]] == ["weather", "time"]


@pytest.mark.parametrize(
    "choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "time"}]
)
def test_a_call_that_must_come_does(toolable, choice):
    with connect(toolable) as client:
        for seed in range(3):
            tools = [TOOLS[1], {**TOOLS[1], "name": f"time_{seed}"}]
            got = client.messages.create(model=MODEL, max_tokens=300, messages=USER, tools=tools, tool_choice=choice)
            (call,) = got.content
            assert (call.type, call.input, got.stop_reason) == ("tool_use", {}, "tool_use")
            assert call.name == "time" or choice["type"] == "any"


def test_errors_have_the_shape_of_the_dialect(server, client):
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model=MODEL, max_tokens=5, messages=USER, extra_body={"telepathy": 1})
    body = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert "telepathy" in body["error"]["message"] and body["request_id"]
    with pytest.raises(anthropic.BadRequestError, match="temperature = -1"):
        client.messages.create(model=MODEL, max_tokens=5, messages=USER, extra_body={"temperature": -1})
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="claude", max_tokens=5, messages=USER)
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences"):
        client.messages.create(model=MODEL, max_tokens=5, messages=USER, stop_sequences=["x"] * 17, stream=True)
    keys = (ApiKey("team", "sk-123456789"),)
    with Serving(ServerConfig(port=0, log_requests=False, api_keys=keys)) as serving:
        with connect(serving, "wrong-key") as wrong, pytest.raises(anthropic.AuthenticationError) as caught:
            wrong.messages.create(model=MODEL, max_tokens=5, messages=USER)
        assert caught.value.body["error"]["type"] == "authentication_error"
        with connect(serving, "sk-123456789") as right:
            assert right.messages.create(model=MODEL, max_tokens=5, messages=USER).usage.output_tokens > 0


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [*USER, {"role": "assistant", "content": "It"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"tools": [{"name": "a", "input_schema": {}, "type": "bash_20250124"}]}, "tools[0].type"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0]"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"metadata": {"user_id": "x" * 257}}, "metadata.user_id"),
        ({"container": "x"}, "container"),
    ],
    ids=lambda value: str(value)[:50],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_supported_is_named(scripted, changes, names, stream):
    body = {"model": MODEL, "max_tokens": 5, "messages": USER, "stream": stream, **changes}
    body = {name: value for name, value in body.items() if value is not None}
    status, answer = scripted.post("/v1/messages", body)
    assert (status, answer["type"]) == (400, "error")
    assert answer["error"]["message"].startswith(names)
