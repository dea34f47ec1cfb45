"""API keys: who may do what, how much, and that nothing tells a key."""

import asyncio
import json
import logging
import time
import types

import pytest
from serving import Serving, wait_for

from fastllm.errors import InvalidRequestError
from fastllm.server.app import ROUTES
from fastllm.server.config import ApiKey, ServerConfig
from fastllm.server.errors import ApiError
from fastllm.server.guard import find_key
from fastllm.server.limits import Bucket, Limiter
from fastllm.server.settings import read_api_keys

SECRET, OTHER = "sk-secret-canary-1", "sk-other-canary-22"
PROMPT = "prompt-canary-33"
BODY = {"prompt": PROMPT, "max_tokens": 2}


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


@pytest.fixture(scope="module")
def server():
    keys = (
        ApiKey("team-a", SECRET),
        ApiKey("team-b", OTHER, requests_per_minute=3, cache_salt="b", priority=5),
        ApiKey("tokens", "sk-tokens-key", tokens_per_minute=20),
        ApiKey("single", "sk-single-key", max_concurrent=1),
        ApiKey("leaving", "sk-leaving-key", tokens_per_minute=400),
    )
    with Serving(ServerConfig(port=0, api_keys=keys)) as serving:
        yield serving
        serving.wait_until_idle()


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _ in ROUTES] + [("GET", "/nowhere")])
def test_every_route_but_health_needs_a_key(server, method, path):
    path = path.replace("{model:path}", "fastllm-demo")
    body = {} if method == "POST" else None
    wrong = [
        {},
        bearer(""),
        bearer("x" * len(SECRET)),
        bearer(SECRET[:-1]),
        bearer(SECRET + "x"),
        bearer(SECRET.upper()),
        {"authorization": SECRET},
        {"authorization": f"Basic {SECRET}"},
        {"x-api-key": "no"},
    ]
    for headers in wrong:
        status, got, data = server.request(method, path, body, headers)
        if path == "/health":
            assert status == 200
        else:
            error = json.loads(data)["error"]
            assert (status, error["type"]) == (401, "authentication_error")
            if not path.startswith("/v1/messages"):  # Anthropic's errors have no code
                assert error["code"] == "invalid_api_key"
            assert got["www-authenticate"] == "Bearer"
    for headers in (bearer(SECRET), bearer(OTHER) if method == "GET" else bearer(SECRET), {"x-api-key": SECRET}):
        assert server.request(method, path, body, headers)[0] not in (401, 403)


def test_requests_per_minute(server):
    found = [server.request("POST", "/v1/completions", BODY, bearer(OTHER)) for _ in range(5)]
    assert [status for status, _, _ in found] == [200, 200, 200, 429, 429]
    assert 1 <= int(found[-1][1]["retry-after"]) <= 20
    assert server.get("/v1/models", bearer(OTHER))[0] == 200
    assert server.post("/v1/completions", BODY, bearer(SECRET))[0] == 200


def test_tokens_per_minute(server):
    body = {"prompt": "The os module", "max_tokens": 30, "ignore_eos": True}
    assert server.post("/v1/completions", body, bearer("sk-tokens-key"))[0] == 200
    status, headers, _ = server.request("POST", "/v1/completions", body, bearer("sk-tokens-key"))
    assert status == 429 and 30 <= int(headers["retry-after"]) <= 60


def test_a_prompt_counts_also_when_its_client_leaves_before_the_first_token(server, monkeypatch):
    async def never(*_, **__):
        await asyncio.sleep(60)
        yield

    monkeypatch.setattr(server.llm, "generate", never)
    body = {"prompt": [5] * 500, "max_tokens": 1}
    with server.connect() as sock:
        data = json.dumps(body).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer sk-leaving-key\r\n"
        sock.sendall(head + b"content-length: %d\r\n\r\n" % len(data) + data)
        wait_for(lambda: server.server.server_state.tasks)
        time.sleep(0.2)
    wait_for(lambda: not server.server.server_state.tasks)
    monkeypatch.undo()
    assert server.post("/v1/completions", BODY, bearer("sk-leaving-key"))[0] == 429


def test_what_the_engine_refuses_costs_no_tokens():
    with Serving(ServerConfig(port=0, api_keys=(ApiKey("a", SECRET, tokens_per_minute=100),))) as server:
        for path, body in (("completions", {"prompt": [5] * 600}), ("embeddings", {"input": [5] * 600})):
            assert server.post(f"/v1/{path}", body, bearer(SECRET))[0] == 400
        assert server.post("/v1/completions", BODY, bearer(SECRET))[0] == 200


def test_a_client_cannot_go_before_its_key(server):
    for path, body in (("completions", BODY), ("embeddings", {"input": "x"})):
        status, answer = server.post(f"/v1/{path}", {**body, "priority": -1}, bearer(SECRET))
        assert (status, answer["error"]["param"]) == (400, "priority")
        assert server.post(f"/v1/{path}", {**body, "priority": 1}, bearer(SECRET))[0] == 200


def test_no_client_reaches_the_prefixes_of_another_key():
    keys = (ApiKey("b", SECRET, cache_salt="b"), ApiKey("none", OTHER), ApiKey("none-too", "sk-third-key"))
    with Serving(ServerConfig(port=0, log_requests=False, api_keys=keys)) as server:
        body = {"prompt": [7] * 200, "max_tokens": 1}

        def cached(secret, salt=None):
            _, answer = server.post("/v1/completions", {**body, "cache_salt": salt}, bearer(secret))
            return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert cached(SECRET) == 0 and cached(SECRET) > 0
        assert [cached(OTHER, salt) for salt in ("b", "b/", "/b", "b//")] == [0] * 4
        assert cached(SECRET, "x") == cached(OTHER, "b/x") == 0
        assert cached(OTHER) == 0 and cached("sk-third-key") > 0  # they have the same salt: none
    with pytest.raises(InvalidRequestError, match="slash"):
        ServerConfig(api_keys=(ApiKey("a", SECRET, cache_salt="a/"),))


def test_requests_at_a_time(server):
    sock = server.connect()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer sk-single-key\r\n"
    sock.sendall(head + b"content-length: 10\r\n\r\n{")  # takes its place before the body is there
    wait_for(lambda: server.app.state.num_requests == 1)
    status, headers, _ = server.request("POST", "/v1/completions", BODY, bearer("sk-single-key"))
    assert status == 429 and headers["retry-after"]
    sock.close()
    wait_for(lambda: server.post("/v1/completions", BODY, bearer("sk-single-key"))[0] == 200)


@pytest.mark.parametrize("per_minute", [1, 60, 1000, 250_000])
def test_a_bucket_gives_its_rate_within_two_percent(per_minute):
    now = [0.0]
    bucket = Bucket(per_minute, lambda: now[0])
    bucket.take(per_minute)  # the burst that it holds
    taken = 0
    while now[0] < 600:
        wait = bucket.wait_s(1)
        if wait == 0.0:
            bucket.take(1)
            taken += 1
        else:
            now[0] += max(wait, 1e-3)
    assert taken == pytest.approx(per_minute * 10, rel=0.02, abs=1)


@pytest.mark.parametrize(
    ("limits", "tokens_each", "of_requests", "of_tokens"),
    [
        ({"requests_per_minute": 120}, 10, 120, None),
        ({"tokens_per_minute": 60_000}, 37, None, 60_000),
        ({"requests_per_minute": 600, "tokens_per_minute": 6000}, 100, None, 6000),  # tokens bind
        ({"requests_per_minute": 30, "tokens_per_minute": 6000}, 100, 30, None),  # requests bind
    ],
    ids=str,
)
def test_a_key_gets_its_limit_within_two_percent(limits, tokens_each, of_requests, of_tokens):
    """Eight greedy clients of one key for an hour; what a request costs is known only when it has ended."""
    now = [0.0]
    limiter = Limiter([ApiKey("k", SECRET, **limits)], lambda: now[0])
    taken = {"requests": 0, "tokens": 0}

    async def client(seconds):
        context = types.SimpleNamespace(
            key=ApiKey("k", SECRET, **limits), num_prompt_tokens=tokens_each, num_generated_tokens=0
        )
        try:
            async with limiter.admit(context, "/v1/completions"):
                now[0] += seconds
        except ApiError as error:
            assert error.status == 429
            return float(error.headers["retry-after"])
        taken["requests"] += 1
        taken["tokens"] += tokens_each
        return 0.0

    async def hour(end):
        waits = [0.0] * 8
        while now[0] < end:
            for i, until in enumerate(waits):
                if until <= now[0]:
                    waits[i] = now[0] + await client(0.02)
            now[0] += 0.05

    asyncio.run(hour(120))  # the minute's worth that the bucket held
    taken.update(requests=0, tokens=0)
    start = now[0]
    asyncio.run(hour(start + 3600))
    minutes = (now[0] - start) / 60
    for name, limit in (("requests", of_requests), ("tokens", of_tokens)):
        if limit is not None:
            assert taken[name] / minutes == pytest.approx(limit, rel=0.02)


def test_logs_and_errors_hold_no_keys_and_no_prompts(server, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fastllm.server"), "propagate", True)  # the command turns it off for good
    with caplog.at_level(logging.DEBUG):
        for headers in (bearer(SECRET), bearer(OTHER), bearer("sk-wrong-canary")):
            server.request("POST", "/v1/completions", BODY, headers)
            _, _, data = server.request("POST", "/v1/completions", {**BODY, "temperature": PROMPT}, headers)
            assert b"canary" not in data
    assert "team-a" in str([record.__dict__.get("fields") for record in caplog.records])
    assert not [record for record in caplog.records if "canary" in str(record.__dict__)]
    assert "canary" not in repr(server.config)


def test_a_key_is_found_among_many():
    keys = [ApiKey(f"k{i}", f"secret-number-{i}") for i in range(20)]
    assert find_key(b"secret-number-7", keys) is keys[7]
    assert find_key(b"", keys) is find_key(b"secret-number-", keys) is find_key(b"\xff", keys) is None


def test_other_machines_only_with_a_key_or_on_demand():
    for host in ("0.0.0.0", "::", "192.168.1.5", "myhost"):
        with pytest.raises(InvalidRequestError, match="insecure"):
            ServerConfig(host=host)
        ServerConfig(host=host, insecure=True)
        ServerConfig(host=host, api_keys=(ApiKey("a", SECRET),))
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        ServerConfig(host=host)


def test_key_files(tmp_path):
    path = tmp_path / "keys"
    path.write_text("sk-first-key\nsk-second-key\n")
    assert [(key.name, key.secret) for key in read_api_keys(path)] == [
        ("key-1", "sk-first-key"),
        ("key-2", "sk-second-key"),
    ]
    path.write_text("- {name: a, secret: sk-first-key, requests_per_minute: 10, priority: -1}\n")
    assert read_api_keys(path) == (ApiKey("a", "sk-first-key", requests_per_minute=10, priority=-1),)
    wrong = [
        "",
        "[]",
        "- {name: a}",
        "- {name: a, secret: s-canary, rate: 1}",
        "- {name: a, secret: [s-canary]}",
        "- {name: a, secret: s-canary, max_concurrent: 0}",
        "{a: b",
        "!!python/object:os.system {}",
        "- s-canary",
    ]
    for text in wrong:
        path.write_text(text)
        with pytest.raises(InvalidRequestError) as caught:
            read_api_keys(path)
        assert "canary" not in str(caught.value)
