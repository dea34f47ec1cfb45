"""Random and mutated bodies: every answer is a success, a refusal or an overload; nothing hangs, leaks or is a 500.

The share in the suite is small; `make soak` runs 100,000.
"""

import http.client
import json
import os
import random
import time

import pytest
from sizes import size

BODIES = size(10_000, 100_000)
SEED = int(os.environ.get("FASTLLM_FUZZ_SEED", "20261124"))
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
         "/tokenize", "/detokenize")  # fmt: skip
GENERATING = PATHS[:2] + PATHS[3:5]
SEEDS = {
    "/v1/completions": [
        {"prompt": "The os module", "max_tokens": 3, "temperature": 0.5, "n": 2, "logprobs": 2, "stop": ["a"]},
        {"prompt": [1, 2, 3], "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
        {"prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logit_bias": {"5": -100}, "seed": 1, "min_p": 0.1},
    ],
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "logprobs": True, "top_logprobs": 2},
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
            ],
            "max_completion_tokens": 2,
            "stream": True,
            "stop_token_ids": [5],
            "frequency_penalty": 1,
        },
        {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 2,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "a",
                    "schema": {
                        "type": "object",
                        "properties": {"b": {"type": "string", "pattern": "^a{2,5}$"}, "c": {"enum": [1, "x"]}},
                        "required": ["b"],
                        "additionalProperties": {"type": ["integer", "null"]},
                    },
                },
            },
        },
        {
            "messages": [{"role": "user", "content": "hi"}],
            "structured_outputs": {"json": {"allOf": [{"type": "integer", "multipleOf": m} for m in (6, 35, 89)]}},
        },
        {"messages": [{"role": "user", "content": "hi"}], "structured_outputs": {"choice": ["a", "b"]}},
        {"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"self": 1, "enable_thinking": True}},
        {"messages": [{"role": "user", "content": "hi"}], "structured_outputs": {"regex": "(a|b){2,4}[^c]?"}},
        {"messages": [{"role": "user", "content": "hi"}], "structured_outputs": {"grammar": 'start: "a" /b+/ "c"'}},
    ],
    "/v1/responses": [
        {
            "input": [
                {"role": "user", "content": "hi"},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "h"}]},
                {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "5"},
            ],
            "instructions": "s",
            "max_output_tokens": 2,
        },
        {"input": "hi", "max_output_tokens": 2, "stream": True, "text": {"format": {"type": "json_object"}}},
    ],
    "/v1/messages": [
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "x"},
                        {"type": "tool_use", "id": "a", "name": "f", "input": {}},
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "5"}]},
            ],
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "max_tokens": 2,
            "stop_sequences": ["a"],
        },
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True, "top_k": 3},
    ],
    "/v1/embeddings": [
        {"input": "The os module", "dimensions": 4, "encoding_format": "base64", "pooling": "mean"},
        {"input": [[1, 2], [3]], "normalize": False, "user": "u"},
    ],
    "/tokenize": [{"prompt": "abc", "return_token_strs": True}, {"messages": [{"role": "user", "content": "x"}]}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}
ODD = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, "", "a", "\x00", "\U0001f999" * 50,
    "a" * 3000, [], {}, [[]], [None], [0] * 200, ["a"] * 70, {"a": {"b": {}}}, [[1, 2], [3]], {"role": "user"}, "user",
    {"5": 1}, {"type": "text"}, "\ud7ff", [1.5], [2**40], [-1], "true", {"include_usage": True},
]  # fmt: skip


def mutate(rng, value, depth=0):
    """A value with one thing in it changed."""
    if depth and rng.random() < 0.25:
        return rng.choice(ODD)
    if isinstance(value, dict) and value:
        value = dict(value)
        name = rng.choice(sorted(value))
        action = rng.random()
        if action < 0.7:
            value[name] = mutate(rng, value[name], depth + 1)
        elif action < 0.8:
            del value[name]
        elif action < 0.9:
            value[rng.choice(["n", "stream", "best_of", "prompt", "messages", "x", "", "\u00e9"])] = rng.choice(ODD)
        else:
            value[name + rng.choice(["_", "S", " "])] = value.pop(name)
        return value
    if isinstance(value, list) and value:
        i = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value * rng.choice([0, 2, 20])
        return [*value[:i], mutate(rng, value[i], depth + 1), *value[i + 1 :]]
    return rng.choice(ODD)


def damage(rng, data):
    """Bytes of a body with some of them changed, cut or doubled."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5)))
        elif kind == 1:
            del data[at : at + rng.randrange(1, 10)]
        elif kind == 2:
            data[at:at] = rng.choice([b"[", b"{", b'"', b"\\u", b"\\ud800", b"1e999", b"NaN", b"\xff\xfe", b"," * 9])
        else:
            data[at:at] = data[: rng.randrange(40)]
    return bytes(data)


@pytest.mark.timeout(1200)
def test_random_bodies(server):
    print(f"seed {SEED}, {BODIES} bodies")
    rng = random.Random(SEED)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    slowest, statuses = 0.0, {}
    for i in range(BODIES):
        path = rng.choice(PATHS)
        value = rng.choice(SEEDS[path])
        for _ in range(rng.randrange(3)):
            value = mutate(rng, value)
        limit = {"/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens"}.get(path, "max_tokens")
        if isinstance(value, dict) and limit not in value and rng.random() < 0.9 and path in GENERATING:
            value[limit] = 2
        data = json.dumps(value).encode()
        if rng.random() < 0.2:
            data = damage(rng, data)
        start = time.perf_counter()
        connection.request("POST", path, data, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        slowest = max(slowest, time.perf_counter() - start)
        statuses[response.status] = statuses.get(response.status, 0) + 1
        assert response.status in (200, 400, 404, 503), (i, response.status, data[:500], answer)
        if response.status != 200:
            assert json.loads(answer)["error"]["message"]
        elif response.headers["content-type"].startswith("text/event-stream"):
            end = {"/v1/responses": b"response.", "/v1/messages": b"event: message_stop"}.get(path, b"data: [DONE]")
            assert end in answer[-4000:] and answer.endswith(b"\n\n"), (i, data)
    connection.close()
    print(f"slowest {slowest:.3f} s, {statuses}")
    assert statuses[200] > BODIES / 20 and statuses[400] > BODIES / 20
    assert slowest < 10
    server.wait_until_idle()
    _, _, text = server.request("GET", "/metrics")
    gauges = ("fastllm:kv_blocks_used", "vllm:num_requests_running", "vllm:num_requests_waiting")
    for name in gauges:
        (line,) = [line for line in text.decode().splitlines() if line.startswith(name + "{")]
        assert float(line.rsplit(" ", 1)[1]) == 0, line
