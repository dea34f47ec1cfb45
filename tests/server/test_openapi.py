"""The OpenAPI document is true: schemathesis sends what it allows and what it does not, answers are read strictly."""

import json

import hypothesis
import msgspec
import pytest
from serving import Serving

from fastllm.server.anthropic.answers import AnthropicError, MessageAnswer, TokenCount
from fastllm.server.app import ROUTES
from fastllm.server.config import ServerConfig
from fastllm.server.openai import answers
from fastllm.server.openai.chat import ChatBody
from fastllm.server.openai.completions import CompletionBody
from fastllm.server.openai.response_answers import ResponseAnswer

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance  # noqa: E402

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
LABELS = [f"{method} {path.replace(':path}', '}')}" for method, path, _ in ROUTES if path != "/openapi.json"]


@pytest.fixture(scope="module")
def small():
    """Short sequences and a time limit: a random body may ask for much."""
    with Serving(ServerConfig(port=0, log_requests=False, request_timeout_s=5), max_model_len=48) as serving:
        yield serving
        serving.wait_until_idle()


@pytest.fixture(scope="module")
def document(small):
    return small.get("/openapi.json")[1]


@pytest.fixture(scope="module")
def operations(small):
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, POSITIVE) for label in LABELS] + [(label, NEGATIVE) for label in LABELS if label.startswith("POST")],
    ids=str,
)
def test_schemathesis(operations, label, mode):
    operation = operations[label]

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=30 if label.startswith("POST") else 3,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def run(case):
        if isinstance(case.body, dict):
            case.body.pop("request_timeout", None)  # one of a microsecond is a 504, as asked for
        case.call_and_validate(checks=CHECKS)

    run()


def test_every_route_is_in_the_document(operations):
    assert sorted(operations) == sorted(LABELS)


@pytest.mark.parametrize(("path", "kind"), [("/v1/completions", CompletionBody), ("/v1/chat/completions", ChatBody)])
def test_fields_and_ranges_are_those_that_are_enforced(small, document, path, kind):
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert set(schema["properties"]) == {field.encode_name for field in msgspec.structs.fields(kind)}
    assert schema["additionalProperties"] is False
    base = {"prompt": [5]} if kind is CompletionBody else {"messages": [{"role": "user", "content": "a"}]}
    ranged = 0
    for name, one in schema["properties"].items():
        for variant in one.get("anyOf", [one]):
            if variant.get("type") not in ("integer", "number") or name in ("max_tokens", "max_completion_tokens"):
                continue
            more = {"logprobs": True} if name == "top_logprobs" else {}
            limits = [(variant["maximum"], 1)] if "maximum" in variant else []
            limits += [(variant["minimum"], -1)] if "minimum" in variant else []
            for limit, outwards in limits:
                body = {"max_tokens": 1, **base, **more, name: limit + outwards}
                status, answer = small.post(path, body)
                assert (status, answer["error"]["param"]) == (400, name), (body, answer)
                ranged += 1
            if "exclusiveMinimum" in variant:
                status, answer = small.post(path, {"max_tokens": 1, **base, name: variant["exclusiveMinimum"]})
                assert (status, answer["error"]["param"]) == (400, name)
                ranged += 1
    assert ranged >= 15


REQUESTS = [
    ("/v1/completions", answers.CompletionAnswer, answers.CompletionAnswer, {"prompt": "a", "logprobs": 2, "n": 2}),
    ("/v1/completions", answers.CompletionAnswer, answers.CompletionAnswer, {"prompt": ["a", "b"], "echo": True}),
    ("/v1/completions", answers.CompletionAnswer, answers.CompletionAnswer, {"prompt": [5], "include_cost": True}),
    (
        "/v1/chat/completions",
        answers.ChatAnswer,
        answers.ChatChunk,
        {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2, "n": 2},
    ),
]


@pytest.mark.parametrize("more", [{}, {"input": [{"role": "user", "content": "a"}], "metadata": {"a": "b"}}])
def test_a_response_has_its_type_and_nothing_else(small, more):
    body = {"input": "a", "max_output_tokens": 4, "text": {"format": {"type": "text"}}, **more}
    status, _, data = small.request("POST", "/v1/responses", body)
    assert status == 200
    msgspec.json.decode(data, type=ResponseAnswer)


def test_a_message_and_its_errors_have_their_type_and_nothing_else(small):
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
    for path, kind in (("/v1/messages", MessageAnswer), ("/v1/messages/count_tokens", TokenCount)):
        one = body if path == "/v1/messages" else {"messages": body["messages"]}
        status, _, data = small.request("POST", path, one)
        assert status == 200
        msgspec.json.decode(data, type=kind)
        status, _, data = small.request("POST", path, {})
        assert status == 400
        msgspec.json.decode(data, type=AnthropicError)


@pytest.mark.parametrize(("path", "whole", "chunk", "body"), REQUESTS)
def test_answers_and_events_have_their_type_and_nothing_else(small, path, whole, chunk, body):
    body = {**body, "max_tokens": 4, "temperature": 0}
    status, _, data = small.request("POST", path, body)
    assert status == 200
    msgspec.json.decode(data, type=whole)
    options = {"include_usage": True, "continuous_usage_stats": True}
    for stream_options in ({}, {"stream_options": options}):
        for event in small.events(path, {**body, **stream_options}):
            msgspec.json.decode(json.dumps(event), type=chunk)
