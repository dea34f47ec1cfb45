"""`make soak`: a server in its own process under mixed clients for minutes; then memory, descriptors and pages are as
they were. Skipped unless FASTLLM_SOAK_SECONDS says for how long."""

import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time

import openai
import psutil
import pytest

from fastllm.bench_serve.client import Target, complete, fetch
from fastllm.bench_serve.workloads import Planned

SECONDS = float(os.environ.get("FASTLLM_SOAK_SECONDS", "0"))
SEED = int(os.environ.get("FASTLLM_SOAK_SEED", "20261128"))
RAW_CLIENTS, OPENAI_CLIENTS = 48, 16
SHARE_THAT_LEAVES = 0.2
MAX_GROWTH_BYTES = 20 << 20
MODEL = "fastllm-demo"


class Server:
    """`fastllm serve` on the demo model."""

    def __enter__(self):
        # The pages of the KV cache become resident when they are first used: with few of them that is over quickly.
        options = ["--port=0", "--max-model-len=512", "--kv-cache-tokens=8192", "--disable-log-requests"]
        options += ["--tool-call-parser=hermes", "--reasoning-parser=think"]
        command = [sys.executable, "-m", "fastllm", "serve", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if match := re.search(r"^curl (http://\S+)/v1", line):
                self.url = match[1]
                break
        self.watched = psutil.Process(self.process.pid)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(60) == 0

    def figures(self):
        watched = self.watched
        return {"uss": watched.memory_full_info().uss, "fds": watched.num_fds(), "threads": watched.num_threads()}


class Tally:
    def __init__(self):
        self.outcomes = {}
        self.inter_token_s = []  # (when, seconds)

    def count(self, what):
        self.outcomes[what] = self.outcomes.get(what, 0) + 1


async def raw_client(target, rng, end, tally):
    """Streams; one in five leaves in the middle."""
    while time.monotonic() < end:
        prompt = [rng.randint(40, 250) for _ in range(rng.choice((4, 30, 200)))]
        max_tokens = rng.choice((2, 20, 120))
        leave_after = rng.randint(1, max_tokens) if rng.random() < SHARE_THAT_LEAVES else None
        record = await complete(target, Planned(prompt, max_tokens, leave_after=leave_after), 120)
        tally.count(record.outcome)
        now = time.monotonic()
        tally.inter_token_s += [(now, seconds) for seconds in record.inter_token_s()]


MESSAGES = [{"role": "user", "content": "What does the os module do?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["name"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA, "strict": True}}]


def numbered(schema, rng):
    """One of more schemas than are kept compiled."""
    return {**schema, "title": str(rng.randrange(400))}


async def logprobs(client, rng):
    await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=30, n=2, logprobs=True, top_logprobs=3
    )


async def stream(client, rng):
    got = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=60, stream=True, stop=["."], temperature=0.7
    )
    async for _ in got:
        if rng.random() < 0.01:
            await got.close()
            break


async def embeddings(client, rng):
    await client.embeddings.create(model=MODEL, input=["The os module"] * rng.randint(1, 20))


async def echo(client, rng):
    await client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=20, echo=True, seed=1)


async def mistake(client, rng):
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model=MODEL, prompt="a", max_tokens=-1)


async def structured(client, rng):
    schema = {"name": "a", "schema": numbered(SCHEMA, rng)}
    got = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=80, stream=True, n=2,
        response_format={"type": "json_schema", "json_schema": schema},
    )  # fmt: skip
    async for _ in got:
        if rng.random() < 0.01:
            await got.close()
            break


async def refused_grammar(client, rng):
    with pytest.raises(openai.BadRequestError):
        schema = {**numbered(SCHEMA, rng), "uniqueItems": True}
        body = {"structured_outputs": {"json": {"allOf": [schema, {"type": "strin"}]}}}
        await client.completions.create(model=MODEL, prompt="a", extra_body=body)


async def tools(client, rng):
    await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=80, tools=TOOLS, tool_choice=rng.choice(("auto", "required"))
    )


async def responses(client, rng):
    wanted = {"format": {"type": "json_schema", "name": "a", "schema": numbered(SCHEMA, rng)}}
    got = await client.responses.create(
        model=MODEL, input="What does the os module do?", max_output_tokens=60, stream=True,
        text=wanted if rng.random() < 0.5 else openai.omit,
    )  # fmt: skip
    async for _ in got:
        pass


async def messages(client, rng):
    tool = {"name": "look", "input_schema": SCHEMA}
    body = {
        "messages": MESSAGES,
        "max_tokens": 60,
        "tools": [tool],
        "tool_choice": {"type": rng.choice(("auto", "any"))},
    }
    await client.post("/messages", body=body, cast_to=object)


KINDS = (logprobs, stream, embeddings, echo, mistake, structured, refused_grammar, tools, responses, messages)


async def openai_client(client, rng, end, tally):
    """Everything else that a client does, mistakes included; one in ten leaves at once or in the middle."""
    while time.monotonic() < end:
        kind, leaves = rng.choice(KINDS), rng.random() < 0.1
        try:
            await asyncio.wait_for(kind(client, rng), rng.random() if leaves else 120)
            tally.count(f"{kind.__name__} ok")
        except asyncio.TimeoutError:
            tally.count(f"{kind.__name__} left" if leaves else f"error: {kind.__name__} takes too long")
        except openai.OpenAIError as error:
            tally.count(f"error: {kind.__name__}: {type(error).__name__}")


async def watch(server, end, samples):
    while time.monotonic() < end:
        samples.append((time.monotonic(), server.figures()))
        await asyncio.sleep(1)


def slope(points):
    """Least squares, units of y per second."""
    mean_x, mean_y = statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def p99(values):
    return sorted(values)[int(0.99 * len(values))] if values else None


@pytest.mark.skipif(SECONDS <= 0, reason="FASTLLM_SOAK_SECONDS is not set (make soak)")
@pytest.mark.timeout(SECONDS + 300)
def test_nothing_grows():
    print(f"seed {SEED}, {SECONDS:g} s")
    tally, samples = Tally(), []

    async def main(server):
        target = Target(server.url)
        begin = time.monotonic()
        end = begin + SECONDS
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            await asyncio.gather(
                watch(server, end, samples),
                *(raw_client(target, random.Random(SEED + i), end, tally) for i in range(RAW_CLIENTS)),
                *(openai_client(client, random.Random(SEED - 1 - i), end, tally) for i in range(OPENAI_CLIENTS)),
            )
        await asyncio.sleep(2)
        text = (await fetch(target, "/metrics")).decode()
        return begin, text

    with Server() as server:
        before = server.figures()
        begin, text = asyncio.run(main(server))
        after = server.figures()
    # Until then caches of the allocator, of code paths and of the tokenizer fill.
    steady = [(at, figures["uss"]) for at, figures in samples if at > begin + SECONDS / 4]
    quarter = len(steady) // 4
    sizes = [uss for _, uss in steady]
    growth = statistics.median(sizes[-quarter:]) - statistics.median(sizes[:quarter])
    first = [s for at, s in tally.inter_token_s if at < begin + SECONDS / 6]
    last = [s for at, s in tally.inter_token_s if at > begin + SECONDS * 5 / 6]
    summary = {
        "seconds": SECONDS,
        "outcomes": dict(sorted(tally.outcomes.items())),
        "uss_mib": [round(size / 2**20, 1) for size in (before["uss"], sizes[0], sizes[-1])],
        "growth_mib": round(growth / 2**20, 2),
        "slope_kib_per_minute": round(slope(steady) * 60 / 1024, 1),
        "fds": [before["fds"], after["fds"]],
        "threads": [before["threads"], after["threads"]],
        "p99_inter_token_ms": [round(1e3 * p99(values), 1) for values in (first, last) if values],
    }
    print(json.dumps(summary, indent=1))
    assert not [name for name in tally.outcomes if name.startswith("error") or name == "refused"], summary
    assert min(tally.outcomes.get(name, 0) for name in ("ok", "left", *(f"{kind.__name__} ok" for kind in KINDS))) > 0
    assert any(name.endswith(" left") for name in tally.outcomes), summary
    assert growth <= MAX_GROWTH_BYTES, summary
    assert slope(steady) * (steady[-1][0] - steady[0][0]) <= MAX_GROWTH_BYTES, summary
    assert after["fds"] <= before["fds"] + 2, summary
    for name in (
        "fastllm:kv_blocks_used",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "fastllm:grammars",
    ):
        (line,) = [line for line in text.splitlines() if line.startswith(name + "{")]
        assert float(line.rsplit(" ", 1)[1]) == 0, line
