"""The app inside somebody else's: mounted under a path, keys and limits hold as they do alone."""

import asyncio
import json

from fastllm import AsyncLLM
from fastllm.server.app import create_app
from fastllm.server.config import ApiKey, ServerConfig


async def call(app, method, path, root="", headers=(), body=b""):
    """(status, body) of one request without a socket."""
    sent, inbox = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if inbox:
            return inbox.pop()
        await asyncio.sleep(3600)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": root + path,
        "raw_path": (root + path).encode(),
        "root_path": root,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), *headers],
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_keys_and_limits_hold_under_a_mount():
    key = (b"authorization", b"Bearer sk-embedded-key")

    async def main():
        config = ServerConfig(api_keys=(ApiKey("a", "sk-embedded-key", requests_per_minute=2),))
        async with AsyncLLM(max_model_len=128, kv_cache_tokens=1024) as llm:
            for root in ("", "/llm"):
                app = create_app(llm, config)
                await app.state.warm_up()
                assert (await call(app, "GET", "/health", root))[0] == 200
                assert (await call(app, "GET", "/v1/models", root))[0] == 401
                assert (await call(app, "GET", "/v1/models", root, [key]))[0] == 200
                body = json.dumps({"prompt": "The", "max_tokens": 2}).encode()
                found = [await call(app, "POST", "/v1/completions", root, [key], body) for _ in range(3)]
                assert [status for status, _ in found] == [200, 200, 429]
                assert json.loads(found[0][1])["usage"]["completion_tokens"] == 2

    asyncio.run(main())
