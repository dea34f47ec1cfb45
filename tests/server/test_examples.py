"""examples/fastapi_app.py as a process: the model and the rest of the app share a loop, and it stops when told to."""

import concurrent.futures
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
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


def test_a_fastapi_app_serves_the_model_next_to_its_other_work(app):
    process, port = app
    done = threading.Event()

    def other_work():
        count = 0
        while not done.is_set():
            status, answer = call(port, "GET", "/time")
            assert status == 200 and answer["time"]
            count += 1
        return count

    with (
        concurrent.futures.ThreadPoolExecutor(9) as pool,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/llm/v1", api_key="none", max_retries=0) as client,
    ):
        try:
            counted = pool.submit(other_work)
            summaries = [pool.submit(call, port, "POST", "/summary", {"text": f"The os module {i}"}) for i in range(8)]
            stream = client.chat.completions.create(
                model="fastllm-demo", messages=[{"role": "user", "content": "Hi"}], max_tokens=30, stream=True
            )
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
            for summary in summaries:
                status, answer = summary.result()
                assert status == 200 and isinstance(answer["summary"], str)
        finally:
            done.set()
        # More often than there were answers of the model: it did not wait for them.
        print(f"{counted.result()} answers of the rest of the app")
        assert counted.result() > len(summaries)
    same = [call(port, "POST", "/summary", {"text": "The os module 0"}) for _ in range(2)]
    assert same[0] == same[1] == summaries[0].result()
    assert call(port, "POST", "/summary", {})[0] == 422
    assert call(port, "POST", "/llm/v1/completions", {"prompt": "a", "telepathy": 1})[0] == 400
    process.send_signal(signal.SIGTERM)
    log = process.stderr.read()
    assert process.wait(30) in (0, -signal.SIGTERM) and "Traceback" not in log, log
