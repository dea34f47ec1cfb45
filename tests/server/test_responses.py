"""The Responses API through the official client: text, streams, tools, formats, errors."""

import json

import jsonschema
import openai
import pydantic
import pytest
from test_structured import CITY
from test_tools import TIME, WEATHER, hermes

from fastllm import LLM, SamplingParams

TEXT = "What does the os module do?"
MODEL = "fastllm-demo"
TOOLS = [
    {"type": "function", "name": "weather", "parameters": CITY, "strict": True},
    {"type": "function", "name": "time", "parameters": {"type": "object"}, "strict": False},
]


def connect(serving):
    return openai.OpenAI(base_url=serving.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(shared_server):
    with connect(shared_server) as found:
        yield found


def test_a_response_is_what_the_engine_generates(server, client):
    messages = [{"role": "system", "content": "Answer in full."}, {"role": "user", "content": TEXT}]
    with LLM(max_model_len=512, kv_cache_tokens=2048) as llm:
        expected = llm.chat(messages, SamplingParams(temperature=0, max_tokens=8))[0]
    inputs = [
        TEXT,
        [{"role": "user", "content": TEXT}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}],
    ]
    for given in inputs:
        got = client.responses.create(
            model=MODEL,
            instructions="Answer in full.",
            input=given,
            temperature=0,
            max_output_tokens=8,
            metadata={"a": "b"},
        )
        assert got.output_text == expected.outputs[0].text
        assert (got.status, got.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (got.object, got.model, got.instructions, got.metadata) == (
            "response",
            MODEL,
            "Answer in full.",
            {"a": "b"},
        )
        assert got.usage.input_tokens == len(expected.prompt_token_ids)
        assert (got.usage.output_tokens, got.usage.total_tokens) == (8, got.usage.input_tokens + 8)
    with client.responses.stream(
        model=MODEL, instructions="Answer in full.", input=TEXT, temperature=0, max_output_tokens=8
    ) as stream:
        events = list(stream)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == expected.outputs[0].text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert events[-1].response.output_text == expected.outputs[0].text
    assert events[-1].response.usage.output_tokens == 8


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_reasoning_text_and_calls_are_items(scripted, size):
    scripted.llm.text, scripted.llm.size = "<think>hm</think>I look.\n" + hermes(WEATHER, TIME), size
    tools = [{**tool, "strict": False} for tool in TOOLS]
    with connect(scripted) as client:
        got = client.responses.create(model=MODEL, input=TEXT, tools=tools)
        assert [item.type for item in got.output] == ["reasoning", "message", "function_call", "function_call"]
        assert got.status == "completed" and got.output[0].content[0].text == "hm"
        assert got.output_text.strip() == "I look."
        assert [(c.name, c.arguments) for c in got.output[2:]] == [(c.name, c.arguments) for c in (WEATHER, TIME)]
        with client.responses.stream(model=MODEL, input=TEXT, tools=tools) as stream:
            events = list(stream)
        assert events[-1].type == "response.completed"
        final = events[-1].response
        assert [item.type for item in final.output] == [item.type for item in got.output]
        assert [(c.name, c.arguments) for c in final.output[2:]] == [(c.name, c.arguments) for c in got.output[2:]]
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.id for item in done] == [item.id for item in final.output]
        # The output goes back as it came, with the results.
        scripted.llm.text = "It is sunny."
        given = [{"role": "user", "content": TEXT}, *got.output]
        given += [{"type": "function_call_output", "call_id": c.call_id, "output": "sunny"} for c in got.output[2:]]
        end = client.responses.create(model=MODEL, input=given, tools=tools)
        assert (end.status, end.output_text) == ("completed", "It is sunny.")
        seen, variables = scripted.llm.prompts[-1]
        assert [message["role"] for message in seen] == ["user", "assistant", "tool", "tool"]
        assert seen[1]["reasoning_content"] == "hm" and seen[1]["content"].strip() == "I look."
        assert [call["id"] for call in seen[1]["tool_calls"]] == [c.call_id for c in got.output[2:]]
        assert seen[1]["tool_calls"][0]["function"]["arguments"] == json.loads(WEATHER.arguments)
        assert len(variables["tools"]) == 2


class Answer(pydantic.BaseModel):
    yes: bool


def test_where_it_ends_is_told_as_in_vllm(server, client):
    """As guidellm does: an exact number of tokens, and no stop strings."""
    asked = {"model": MODEL, "input": TEXT, "temperature": 0, "max_output_tokens": 300}
    got = client.responses.create(**asked, tool_choice="none", extra_body={"stop": None, "ignore_eos": True})
    assert got.usage.output_tokens == 300
    end = got.output_text[12:18]
    for stop in (end, [end, "never this"]):
        cut = client.responses.create(**asked, extra_body={"stop": stop, "ignore_eos": True})
        assert (cut.output_text, cut.status) == (got.output_text[: got.output_text.index(end)], "completed")


def test_formats(server, client):
    got = client.responses.parse(model=MODEL, input=TEXT, text_format=Answer, max_output_tokens=60)
    assert isinstance(got.output_parsed, Answer)
    schema = {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}
    got = client.responses.create(model=MODEL, input=TEXT, text={"format": schema}, extra_body={"seed": 1})
    jsonschema.validate(json.loads(got.output_text), CITY)
    assert got.text.format.name == "city"
    got = client.responses.create(model=MODEL, input=TEXT, extra_body={"structured_outputs": {"choice": ["up"]}})
    assert (got.output_text, got.status) == ("up", "completed")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_call_that_must_come_does(toolable, choice):
    with connect(toolable) as client:
        for seed in range(3):
            got = client.responses.create(
                model=MODEL, input=TEXT, tools=TOOLS[:1], tool_choice=choice, parallel_tool_calls=False,
                extra_body={"seed": seed},
            )  # fmt: skip
            (call,) = got.output
            assert (call.type, call.name, got.status) == ("function_call", "weather", "completed")
            jsonschema.validate(json.loads(call.arguments), CITY)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": "["}]}, "input[0].arguments"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "x"}}}}, "text.format"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"user": "x" * 257}, "user"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_supported_is_named(server, changes, param, stream):
    status, answer = server.post("/v1/responses", {"input": TEXT, "stream": stream, **changes})
    assert (status, answer["error"]["param"]) == (400, param)
