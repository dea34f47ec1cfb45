"""examples/fastapi_app.py as a process: the model and the rest of the app share a loop, and it stops when told to."""

import concurrent.futures
import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from serving import wait_for

pytest.importorskip("fastapi", reason="fastapi, which the example embeds the engine in, is not installed")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def call(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def answers(port):
    try:
        return call(port, "GET", "/llm/ready")[0] == 200
    except ConnectionError:
        return False


@pytest.fixture
def app():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, cwd=EXAMPLES, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: process.poll() is not None or answers(port), 60)
            assert process.poll() is None, process.stderr.read()
            yield process, port
        finally:
            process.kill()


def running(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/llm/metrics")
        text = connection.getresponse().read().decode()
    return float(re.search(r"^vllm:num_requests_running\{.*\} (.*)$", text, re.M)[1])


def test_a_fastapi_app_serves_the_model_next_to_its_other_work(app):
    process, port = app
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/llm/v1", api_key="none", max_retries=0) as client:
        # Seconds of work for the model, during which the rest of the app answers, and so do requests of either kind.
        long = client.completions.create(
            model="fastllm-demo", prompt="The os module", n=24, max_tokens=900, extra_body={"ignore_eos": True},
            stream=True,
        )  # fmt: skip
        next(iter(long))
        wait_for(lambda: running(port) > 0)
        for _ in range(3):
            status, answer = call(port, "GET", "/time")
            assert status == 200 and answer["time"]
        assert running(port) > 0
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            texts = [{"text": f"The os module {i % 4}"} for i in range(8)]
            summaries = list(pool.map(lambda text: call(port, "POST", "/summary", text), texts))
        assert all(status == 200 and isinstance(answer["summary"], str) for status, answer in summaries)
        assert summaries[:4] == summaries[4:]  # whatever they shared a batch with
        long.close()
        wait_for(lambda: running(port) == 0)
        messages = [{"role": "user", "content": "Hi"}]
        chat = client.chat.completions.create(model="fastllm-demo", messages=messages, max_tokens=30, stream=True)
        assert [chunk.choices[0].finish_reason for chunk in chat][-1] in ("stop", "length")
    assert call(port, "POST", "/summary", {})[0] == 422
    assert call(port, "POST", "/llm/v1/completions", {"prompt": "a", "telepathy": 1})[0] == 400
    process.send_signal(signal.SIGTERM)
    log = process.stderr.read()
    assert process.wait(30) in (0, -signal.SIGTERM) and "Traceback" not in log, log
