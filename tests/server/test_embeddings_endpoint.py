"""/v1/embeddings: the official client, every way to write an input, usage, refusals; values are LLM.embed's."""

import base64

import numpy as np
import openai
import pytest

from fastllm import LLM

PATH = "/v1/embeddings"
TEXTS = ["The os module", "a", "def main():\n    pass", "\u00e9\u20ac\U0001f999"]


@pytest.fixture(scope="module")
def expected():
    with LLM(max_model_len=512, kv_cache_tokens=8192, num_threads=1) as llm:
        return {pooling: [o.embedding for o in llm.embed(TEXTS, pooling=pooling)] for pooling in ("last", "mean")}


@pytest.fixture(scope="module")
def client(shared_server):
    with openai.OpenAI(base_url=f"{shared_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_client_gets_what_the_engine_gives(client, server, expected):
    # The client asks for base64 unless told otherwise.
    found = client.embeddings.create(model="fastllm-demo", input=TEXTS)
    assert [item.index for item in found.data] == [0, 1, 2, 3]
    for item, wanted in zip(found.data, expected["last"], strict=True):
        assert np.array_equal(np.asarray(item.embedding, np.float32), wanted)
    plain = client.embeddings.create(
        model="fastllm-demo", input=TEXTS, encoding_format="float", extra_body={"pooling": "mean"}
    )
    for item, wanted in zip(plain.data, expected["mean"], strict=True):
        assert np.array_equal(np.asarray(item.embedding, np.float32), wanted)
    tokens = sum(len(server.post("/tokenize", {"prompt": text})[1]["tokens"]) for text in TEXTS)
    assert found.usage.prompt_tokens == found.usage.total_tokens == tokens
    assert found.model == "fastllm-demo" and found.object == "list"


def test_inputs_are_texts_or_token_ids_one_or_many(server, expected):
    ids = server.post("/tokenize", {"prompt": TEXTS[0]})[1]["tokens"]
    for value in (TEXTS[0], [TEXTS[0]], ids, [ids]):
        status, answer = server.post(PATH, {"input": value, "encoding_format": "base64"})
        assert status == 200 and len(answer["data"]) == 1
        raw = base64.b64decode(answer["data"][0]["embedding"])
        assert np.array_equal(np.frombuffer(raw, "<f4"), expected["last"][0])
    status, answer = server.post(PATH, {"input": [ids] * 100})
    assert status == 200 and len(answer["data"]) == 100


def test_dimensions_and_cost(server, expected):
    status, answer = server.post(PATH, {"input": TEXTS[0], "dimensions": 12, "include_cost": True})
    assert status == 200
    short = expected["last"][0][:12].astype(np.float64)
    assert np.allclose(answer["data"][0]["embedding"], short / np.linalg.norm(short), atol=1e-6)
    assert answer["usage"]["cost"]["device_seconds"] > 0
    _, answer = server.post(PATH, {"input": TEXTS[0], "normalize": False})
    assert abs(np.linalg.norm(answer["data"][0]["embedding"]) - 1) > 1e-3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [1] * 513}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 10**6}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "pooling": "cls"}, "pooling"),
        ({"input": "a", "user": "u" * 257}, "user"),
        ({"input": "a", "cache_salt": "s" * 257}, "cache_salt"),
        ({"input": "a", "stream": True}, "stream"),
        ({"input": "a", "temperature": 1}, "temperature"),
    ],
    ids=str,
)
def test_wrong_requests_are_refused_by_name(server, body, param):
    status, answer = server.post(PATH, body)
    assert status == 400 and answer["error"]["param"].split("[")[0] == param, answer
