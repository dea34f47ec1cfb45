"""Bodies are read strictly: what is wrong is a 400 that names the field, in a fixed text, and quickly."""

import json
import shutil
import time
from pathlib import Path

import pytest
from serving import ENGINE, Serving

from fastllm import AsyncLLM
from fastllm.demo import DEMO_MODEL
from fastllm.server.config import ServerConfig

GOOD = {
    "/v1/completions": {"prompt": "The os module", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
}
CANARY = "canary-7f3a"
NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p", "repetition_penalty")
INTEGERS = ("max_tokens", "n", "seed", "top_k", "min_tokens")
# Field -> values that it must not have; each with the name that the error gives.
WRONG = {
    **{name: [CANARY, [], {}, True, [1.0]] for name in NUMBERS},
    **{name: [CANARY, 1.5, [], True, 2**63, -(2**63) - 1, 10**400] for name in INTEGERS},
    "stop": [1, [1], {}, [""], ["x"] * 17, ["x" * 1025]],
    "logit_bias": [[], {"a": 1}, {"5": CANARY}, {"-1": 1}, {"99999999": 1}, {"5": 101}, {"5": None}],
    "stop_token_ids": [5, ["5"], [-1], [10**6], [2**70], [1] * 1025],
    "allowed_token_ids": [[], [-1], [10**9]],
    "bad_words": ["x", [1]],
    "stream": [1, CANARY],
    "stream_options": [1, {"include_usage": True}],
    "ignore_eos": ["yes"],
    "user": [1, "u" * 257],
    "cache_salt": [1, "s" * 257],
    "priority": [1.5, 2**40],
    "request_timeout": [0, -1, "1"],
    "model": [1],
}
RANGES = {
    "temperature": [-0.1, 101],
    "top_p": [0, 1.1],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [3],
    "repetition_penalty": [0, -1],
    "n": [0, 129, 10**9],
    "max_tokens": [-1, 2**31],
    "top_k": [-2],
    "min_tokens": [-1, 3],
}


def refused(server, path, body, param):
    start = time.perf_counter()
    status, answer = server.post(path, body)
    seconds = time.perf_counter() - start
    assert status == 400, (body, answer)
    error = answer["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] is not None and error["param"].split("[")[0].split(".")[0] == param, error
    assert CANARY not in json.dumps(answer)
    assert seconds < 5


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("field", sorted(WRONG))
def test_a_wrong_type_is_refused_by_name(server, path, field):
    for value in WRONG[field]:
        refused(server, path, {**GOOD[path], field: value}, field)


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("field", sorted(RANGES))
def test_a_wrong_range_is_refused_by_name(server, path, field):
    for value in RANGES[field]:
        wanted = field
        if field == "max_tokens" and value > 0:
            wanted = "max_tokens" if value > 2**30 else "prompt"
        refused(server, path, {**GOOD[path], field: value}, wanted)


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("field", ["functions", "telepathy", "best_off", "Temperature", "guided_json", "x" * 1000])
def test_an_unknown_field_is_refused_by_name(server, path, field):
    status, answer = server.post(path, {**GOOD[path], field: None})
    assert status == 400
    assert answer["error"]["param"] == field[:64]
    assert answer["error"]["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("field", "neutral", "other"),
    [("service_tier", "auto", "flex"), ("store", False, True), ("modalities", ["text"], ["audio"])],
)
def test_a_known_field_is_taken_only_when_it_changes_nothing(server, field, neutral, other):
    path = "/v1/chat/completions"
    assert server.post(path, {**GOOD[path], field: neutral})[0] == 200
    assert server.post(path, {**GOOD[path], field: None})[0] == 200
    refused(server, path, {**GOOD[path], field: other}, field)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [4096]}, "prompt"),
        ({"prompt": [[1], [2**40]]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [5] * 600}, "prompt"),
        ({"prompt": ["a"] * 3, "n": 100}, "n"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": [-1], "echo": True}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_completion_tokens": 2}, "max_completion_tokens"),
    ],
)
def test_wrong_completions(server, body, param):
    refused(server, "/v1/completions", body, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{}]}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages"),
        ({"messages": [{"role": "user", "content": "x " * 1000}]}, "messages"),
        ({"messages": GOOD["/v1/chat/completions"]["messages"], "top_logprobs": 2}, "top_logprobs"),
        ({**GOOD["/v1/chat/completions"], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({**GOOD["/v1/chat/completions"], "logprobs": 2}, "logprobs"),
        ({**GOOD["/v1/chat/completions"], "max_completion_tokens": 2}, "max_tokens"),
        ({**GOOD["/v1/chat/completions"], "chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
        ({**GOOD["/v1/chat/completions"], "chat_template_kwargs": {"a": []}}, "chat_template_kwargs"),
        ({**GOOD["/v1/chat/completions"], "chat_template": "{{ 1 }}"}, "chat_template"),
        ({**GOOD["/v1/chat/completions"], "prompt": "x"}, "prompt"),
    ],
)
def test_wrong_chats(server, body, param):
    refused(server, "/v1/chat/completions", body, param)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"{} {}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"telepathy": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b"\x00" * 100,
        "{\ufeff}".encode(),
    ],
    ids=lambda data: f"{data[:20]!r}",
)
def test_what_is_not_json_is_refused(server, data):
    start = time.perf_counter()
    status, _, answer = server.request("POST", "/v1/completions", data)
    assert status == 400 and json.loads(answer)["error"]["type"] == "invalid_request_error"
    assert time.perf_counter() - start < 5


def test_depth_is_counted_outside_of_strings(server):
    body = {"prompt": '[{"' * 50 + "\\" + '"}]' * 10, "max_tokens": 1}
    assert server.post("/v1/completions", body)[0] == 200


def test_other_content_is_refused(server):
    body = json.dumps(GOOD["/v1/completions"]).encode()
    assert server.request("POST", "/v1/completions", body, {"content-type": "text/plain"})[0] == 415
    assert server.request("POST", "/v1/completions", body, {"content-encoding": "gzip"})[0] == 415
    assert (
        server.request("POST", "/v1/completions", body, {"content-type": "application/json; charset=utf-8"})[0] == 200
    )


def test_tokenize_and_back(server):
    text = "The os módule 🦙"
    status, answer = server.post("/tokenize", {"prompt": text, "return_token_strs": True})
    assert status == 200 and answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert server.post("/detokenize", {"tokens": answer["tokens"]}) == (200, {"prompt": text})
    status, chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]})
    assert status == 200 and chat["count"] > 2
    assert server.post("/tokenize", {})[0] == 400
    assert server.post("/detokenize", {"tokens": [-1]})[0] == 400
    assert server.post("/detokenize", {"tokens": [2**31 - 1]})[0] in (200, 400)


def test_unknown_places(server):
    assert server.get("/nowhere")[1]["error"]["type"] == "not_found_error"
    status, headers, _ = server.request("GET", "/v1/completions")
    assert status == 405 and "POST" in headers["allow"]
    assert server.get("/version")[0] == server.get("/ready")[0] == 200


def test_without_strict_openai_unknown_fields_are_left_out_and_named():
    config = ServerConfig(port=0, log_requests=False, strict_openai=False)
    with Serving(config, max_model_len=64, kv_cache_tokens=512) as server:
        body = {"prompt": "a", "max_tokens": 1, "logit_bias": {"5": 1}}
        status, headers, data = server.request("POST", "/v1/completions", body)
        assert status == 200 and "x-ignored-fields" not in headers
        wanted = json.loads(data)["choices"]
        more = {"metadata": {"a": [1]}, "reasoning_effort": "low", "x y\r\n": 1}
        status, headers, data = server.request("POST", "/v1/completions", {**more, **body, "seed": 0, "temperature": 0})
        assert status == 200 and headers["x-ignored-fields"] == "metadata, reasoning_effort, x?y??"
        assert len(json.loads(data)["choices"]) == len(wanted)
        # Only of the outermost object, and nothing that is known.
        for wrong, param in (({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"), ({"n": 0}, "n")):
            status, answer = server.post("/v1/completions", {**more, **body, **wrong})
            assert (status, answer["error"]["param"]) == (400, param)


def test_variables_of_a_template_have_any_name(server):
    for name in ("self", "loop", "params", "sampling_params", "runtime"):
        body = {**GOOD["/v1/chat/completions"], "chat_template_kwargs": {name: 1}}
        assert server.post("/v1/chat/completions", body)[0] == 200


def test_a_model_without_a_tokenizer_serves_token_ids(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(DEMO_MODEL) / name, tmp_path)
    with Serving(ServerConfig(port=0, log_requests=False), llm=AsyncLLM(tmp_path, **ENGINE)) as found:
        body = {"prompt": [1, 2, 3], "max_tokens": 2, "ignore_eos": True}
        status, answer = found.post("/v1/completions", body)
        assert status == 200 and answer["usage"]["completion_tokens"] == 2, answer
