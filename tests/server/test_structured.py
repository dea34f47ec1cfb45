"""Formats that must be kept, through the official client: JSON under a schema, and calls that must come."""

import json
import re
from typing import Literal

import jsonschema
import openai
import pydantic
import pytest
from serving import Serving
from toolable import ToolableLLM

from fastllm.server.config import ServerConfig
from fastllm.server.openai.tools import STYLES

USER = [{"role": "user", "content": "Who?"}]
MODEL = "fastllm-demo"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
NOW = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "time", "parameters": NOW}},
]
SCHEMAS = {"weather": CITY, "time": NOW}


@pytest.fixture(scope="module", params=sorted(STYLES))
def serving(request):
    config = ServerConfig(port=0, log_requests=False, tool_call_parser=request.param)
    with Serving(config, llm=ToolableLLM()) as found:
        yield found
        found.wait_until_idle()


@pytest.fixture(scope="module")
def client(serving):
    with openai.OpenAI(base_url=serving.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def plain(shared_server):
    with openai.OpenAI(base_url=shared_server.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


class Person(pydantic.BaseModel):
    name: Literal["Ada", "Grace"]
    born: bool
    tags: list[Literal["x", "y"]] = pydantic.Field(max_length=2)


def test_the_client_parses_its_own_classes(server, plain):
    for seed in range(8):
        answer = plain.beta.chat.completions.parse(
            model=MODEL, messages=USER, response_format=Person, seed=seed, max_tokens=100
        )
        assert isinstance(answer.choices[0].message.parsed, Person)
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_formats(server, plain, stream):
    def text(**more):
        got = plain.chat.completions.create(model=MODEL, messages=USER, max_tokens=200, stream=stream, seed=3, **more)
        if not stream:
            return got.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in got if chunk.choices)

    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    jsonschema.validate(json.loads(text(response_format=schema)), CITY)
    assert text(response_format={"type": "json_object"}).startswith("{")
    assert text(response_format={"type": "text"})
    assert text(extra_body={"structured_outputs": {"choice": ["left", "right"]}}) in ("left", "right")
    assert re.fullmatch(r"\d{4}", text(extra_body={"structured_outputs": {"regex": r"\d{4}"}}))
    completion = plain.completions.create(
        model=MODEL, prompt="x", n=3, extra_body={"structured_outputs": {"grammar": 'start: "a" | "b"'}}
    )
    assert {choice.text for choice in completion.choices} <= {"a", "b"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
         "response_format.json_schema.name"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "a"}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}}},
         "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x" * 70_000]}}}},
         "response_format"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a{1000}){1000}"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_kept_is_refused(server, body, param, stream):
    status, answer = server.post("/v1/chat/completions", {"messages": USER, "stream": stream, **body})
    assert (status, answer["error"]["param"]) == (400, param)
    assert len(answer["error"]["message"]) < 500


def calls_of(got, stream):
    """(name, arguments) of each call, the content, and how the answer ended."""
    if not stream:
        choice = got.choices[0]
        found = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
        return found, choice.message.content, choice.finish_reason
    found, content, reason = [], "", None
    for chunk in got:
        for choice in chunk.choices:
            found += [(c.function.name, c.function.arguments) for c in choice.delta.tool_calls or []]
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return found, content or None, reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("parallel", [True, False])
def test_calls_that_must_come_do_and_fit(serving, client, stream, choice, parallel):
    names, counts = set(), set()
    for seed in range(6):
        got = client.chat.completions.create(
            model=MODEL, messages=USER, tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel, seed=seed,
            max_tokens=700, stream=stream,
        )  # fmt: skip
        calls, content, reason = calls_of(got, stream)
        if reason == "length":
            continue
        assert reason == "tool_calls" and calls and not content
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        names |= {name for name, _ in calls}
        counts.add(len(calls))
    assert names and (names == {"weather"} or choice == "required")
    assert counts == {1} or (parallel and choice == "required")
