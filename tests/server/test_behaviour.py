"""Clients that leave, wait, read slowly or ask for too much: what they took is given back, others do not notice."""

import concurrent.futures
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import types

import pytest
from serving import Serving, wait_for
from sizes import size

from fastllm.server import sse
from fastllm.server.config import ServerConfig

LONG = {"prompt": "The os module", "max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def slow():
    """An engine that takes seconds for LONG."""
    config = ServerConfig(port=0, log_requests=False, max_body_bytes=10_000, head_timeout_s=1, body_timeout_s=1)
    with Serving(config, device="reference", max_model_len=1024, max_num_seqs=4, max_queue=4) as serving:
        yield serving


@pytest.fixture
def server(slow):
    yield slow
    slow.wait_until_idle()
    assert slow.get("/health")[0] == 200


@contextlib.contextmanager
def fill(server, count):
    """So many requests in the engine, one after the other: a request counts as queued until a step has seen it, so a
    burst may find the queue full although there is room in the batch."""
    with contextlib.ExitStack() as stack:
        for i in range(count):
            stack.enter_context(contextlib.closing(server.send_head("/v1/completions", LONG)))
            running, waiting = min(i + 1, 4), max(i - 3, 0)
            wait_for(
                lambda want=(running, waiting): (server.stats()["num_running"], server.stats()["num_waiting"]) == want
            )
        yield


def read_some(sock, needle=b"data:"):
    data = b""
    while needle not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    return data


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("kind", ["streamed", "whole", "many"])
def test_a_client_that_leaves_frees_its_pages(server, kind, how):
    body = {**LONG, "stream": kind == "streamed"}
    if kind == "many":
        body["prompt"] = ["The os module", "A list"]
    sock = server.send_head("/v1/completions", body)
    wait_for(lambda: server.stats()["num_running"] > 0)
    if kind == "streamed":
        read_some(sock)
    if how == "rst":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    server.wait_until_idle(seconds=2)
    tokens = server.stats()["num_generated_tokens"]
    time.sleep(0.1)
    assert server.stats()["num_generated_tokens"] == tokens


CLIENT = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
connection.request("POST", "/v1/completions", sys.argv[2], {"content-type": "application/json"})
response = connection.getresponse()
print(response.read(5), flush=True)
response.read()
"""


def test_killed_clients_leave_nothing_behind(server):
    """kill -9 in the middle of a stream: the kernel closes the connection, nobody says goodbye."""
    body = json.dumps({**LONG, "stream": True})
    command = [sys.executable, "-c", CLIENT, str(server.port), body]
    clients = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        # All ask at the same time, however long it takes to start them.
        assert all(client.stdout.readline() == b"ready\n" for client in clients)
        for client in clients:
            client.stdin.write(b"go\n")
            client.stdin.flush()
        assert all(client.stdout.readline() == b"b'data:'\n" for client in clients)
        wait_for(lambda: server.stats()["num_running"] == 4)  # a step's figures come after its tokens
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    server.wait_until_idle(seconds=2)
    tokens = server.stats()["num_generated_tokens"]
    time.sleep(0.1)
    assert server.stats()["num_generated_tokens"] == tokens


def test_clients_that_leave_anywhere(server):
    """Also in the middle of head and body, and while they wait in the queue."""
    data = json.dumps(LONG).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(data)
    whole = head + data
    for cut in range(0, len(whole), 7):
        with server.connect() as sock:
            sock.sendall(whole[:cut])
    with fill(server, 6):
        wait_for(lambda: server.stats()["num_waiting"] == 2)


def test_a_deadline_ends_a_request(server):
    status, answer = server.post("/v1/completions", {**LONG, "request_timeout": 0.3})
    assert (status, answer["error"]["code"]) == (504, "request_timeout")
    with contextlib.closing(
        server.send_head("/v1/completions", {**LONG, "stream": True, "request_timeout": 1})
    ) as sock:
        data = read_some(sock, b'"code":"request_timeout"')
    assert b"[DONE]" not in data
    server.wait_until_idle(0.5)


def test_a_full_queue_refuses_quickly_and_says_when_to_come_back(server):
    with fill(server, 8):
        wait_for(lambda: server.stats()["num_waiting"] == 4)
        status, headers, data = server.request("POST", "/v1/completions", {**LONG, "stream": True})
        # At once: those who came before still run and wait.
        assert (server.stats()["num_running"], server.stats()["num_waiting"]) == (4, 4)
        assert status == 503 and int(headers["retry-after"]) >= 1
        assert json.loads(data)["error"]["code"] == "overloaded"
        assert server.get("/health")[0] == 200
    server.wait_until_idle()
    assert server.post("/v1/completions", {"prompt": "The", "max_tokens": 1})[0] == 200


def test_a_large_body_is_refused(server):
    status, answer = server.post("/v1/completions", {"prompt": "x" * 20_000})
    assert status == 413 and "10000" in answer["error"]["message"]
    # Without a length it is found out on the way.
    with server.connect() as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(10):
                sock.sendall(b"7d0\r\n" + b"x" * 2000 + b"\r\n")
        assert b" 413 " in sock.recv(65536)


def test_slow_senders_are_closed_and_hold_nobody_up(server):
    socks = [server.connect() for _ in range(size(100, 1000))]
    for i, sock in enumerate(socks):
        sock.sendall(
            b"POST /v1/comp"
            if i % 2
            else b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
        )
    start = time.monotonic()
    assert server.post("/v1/completions", {"prompt": "The", "max_tokens": 1})[0] == 200
    assert time.monotonic() - start < 3
    for sock in socks:
        answer = b""
        with contextlib.closing(sock):
            while piece := sock.recv(65536):
                answer += piece
        assert b" 408 " in answer.split(b"\r\n", 1)[0]
    assert time.monotonic() - start < 15


def read_to_the_end(sock):
    """Fails unless the server closes within some seconds."""
    sock.settimeout(8)
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


UNREAD = b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\n"  # answered before the body is there


@pytest.mark.parametrize("first", [
    b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    UNREAD + b"content-length: 100\r\n\r\n{",
    UNREAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{",
])  # fmt: skip
@pytest.mark.parametrize("later", [b"\r\n", b"{"])
def test_a_connection_does_not_outlive_its_answer_for_long(server, first, later):
    with server.connect() as sock:
        sock.sendall(first)
        read_some(sock, b"}")
        sock.sendall(later)
        assert b"HTTP/1.1 200" not in read_to_the_end(sock)
    wait_for(lambda: not server.server.server_state.connections)


def test_the_rest_of_a_body_may_come_after_the_answer(server):
    with server.connect() as sock:
        sock.sendall(UNREAD + b"content-length: 200000\r\n\r\n")
        read_some(sock, b"}}")
        sock.sendall(b"x" * 200_000 + b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"HTTP/1.1 200" in read_some(sock, b"}")


@pytest.mark.parametrize("endless", [b"a: b\r\n", b"a", b"1;x\r\n{\r\n", b"\r\n"])
def test_what_frames_a_body_is_limited(server, endless):
    """Trailers, a trailer's name, chunks of one byte, empty lines."""
    begin = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    if endless != b"\r\n":
        begin = UNREAD + b"transfer-encoding: chunked\r\n\r\n" + (b"" if endless.startswith(b"1") else b"0\r\n")
    with server.connect() as sock:
        sock.sendall(begin)
        read_some(sock, b"}")
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 5:
                sock.sendall(endless * 1000)
                for connection in list(server.server.server_state.connections):
                    assert len(connection.headers or ()) < 100
        read_to_the_end(sock)
    wait_for(lambda: not server.server.server_state.connections)


def test_a_whole_answer_that_nobody_reads_is_dropped():
    config = ServerConfig(port=0, log_requests=False, send_timeout_s=1, max_body_bytes=4 << 20)
    with Serving(config) as server:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        with contextlib.closing(sock):
            data = json.dumps({"prompt": "\u00e9" * 400_000, "return_token_strs": True}).encode()
            sock.sendall(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
            wait_for(lambda: server.server.server_state.total_requests == 1, 30)
            assert server.server.server_state.connections
            wait_for(lambda: not server.server.server_state.connections, 10)


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 1_000_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nhost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost.evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: 10.0.0.1:8000\r\n\r\n",
        b"\x00\xff" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}X\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1e3\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: +5\r\n\r\n{}   ",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length : 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2, 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\na\x00b: c\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\na: b\x00c\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n: empty name\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET http://evil.example/health HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"G\xc3\xa9T /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b",
    ],
    ids=lambda data: f"{data[:60]!r}",
)
def test_malformed_http_is_refused(server, data):
    with server.connect() as sock:
        answer = b""
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(65536):
                answer += piece
                if b"}}" in answer:
                    break
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:200]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8000", "LOCALHOST:1"])
def test_names_of_this_machine_are_taken(server, host):
    assert server.get("/health", {"host": host})[0] == 200


def test_request_ids_are_honoured_when_plain(server):
    for sent, kept in (("abc-1.2_X", True), ("a b", False), ("x" * 200, False)):
        _, headers, _ = server.request("GET", "/health", headers={"x-request-id": sent})
        assert (headers["x-request-id"] == sent) is kept
        assert headers["x-request-id"]
    _, headers, data = server.request(
        "POST", "/v1/completions", {"prompt": "The", "max_tokens": 1}, {"x-request-id": "my-id"}
    )
    assert json.loads(data)["id"] == "cmpl-my-id" and headers["x-request-id"] == "my-id"


def test_there_is_no_cors_by_default(server):
    _, headers, _ = server.request("GET", "/health", headers={"origin": "https://page.example"})
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_a_reader_that_stops_is_cut_off(monkeypatch):
    """The engine goes on until the connection's buffers are full; then the stream waits, and its client's time runs.

    That time is the test's, so that it does not matter how long the buffers take to fill.
    """
    now = [1.0]
    monkeypatch.setattr(sse, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    config = ServerConfig(port=0, log_requests=False, send_timeout_s=1)
    # Room in the batch for others beside the 64 sequences of the one that does not read.
    with Serving(config, max_model_len=1024, max_num_seqs=66, kv_cache_tokens=70_000) as server:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        body = {**LONG, "n": 64, "stream": True, "logprobs": 20}
        data = json.dumps(body).encode()
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(data) + data
        )

        def is_stuck():
            return any(connection.flow.write_paused for connection in list(server.server.server_state.connections))

        wait_for(is_stuck, 60)
        for _ in range(5):  # others are served meanwhile
            assert server.post("/v1/completions", {"prompt": "The", "max_tokens": 2})[0] == 200
        assert is_stuck()
        now[0] += 2
        wait_for(lambda: not server.server.server_state.tasks, 60)
        server.wait_until_idle()
        with contextlib.closing(sock), contextlib.suppress(ConnectionError):
            received = 0
            while piece := sock.recv(1 << 20):
                received += len(piece)
                assert b"[DONE]" not in piece
            assert received < 40_000_000


def test_many_streams_at_once_are_all_whole():
    """Several engines' worth of batch: every stream ends with [DONE] and is what it is alone."""
    num_clients, rounds = size(200, 256), size(1, 3)
    with Serving(ServerConfig(port=0, log_requests=False)) as server:
        threads_before = threading.active_count()
        descriptors_before = len(os.listdir("/proc/self/fd"))

        def one(i):
            body = {"prompt": f"Item {i % 20}", "max_tokens": 8 + i % 20, "seed": i % 20, "ignore_eos": True}
            events = server.events("/v1/completions", {**body, "stream_options": {"include_usage": True}})
            assert events[-1]["usage"]["completion_tokens"] == 8 + i % 20
            return i % 20, "".join(event["choices"][0]["text"] for event in events[:-1])

        with concurrent.futures.ThreadPoolExecutor(num_clients) as pool:
            texts = {}
            for i, text in pool.map(one, range(rounds * num_clients)):
                texts.setdefault(i, set()).add(text)
        assert all(len(found) == 1 for found in texts.values())
        server.wait_until_idle()
        assert threading.active_count() <= threads_before + 40
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= descriptors_before)


def test_health_says_so_when_the_engine_stands_still(slow, monkeypatch):
    state = slow.app.state
    stats = {**slow.stats(), "num_running": 1}
    monkeypatch.setattr(slow.llm, "stats", lambda: stats)
    state.look()
    assert state.trouble() is None
    monkeypatch.setattr(state, "still_since", time.monotonic() - 60)
    monkeypatch.setattr(state, "longest_step_s", 0.1)
    assert slow.request("GET", "/health")[0] == slow.request("GET", "/ready")[0] == 503
    stats["num_steps"] += 1
    assert slow.request("GET", "/health")[0] == 200
    stats["num_failed_steps_in_a_row"] = 3
    status, headers, _ = slow.request("GET", "/health")
    assert status == 503 and headers["retry-after"]


def test_after_the_engine_has_ended_requests_get_503():
    with Serving(ServerConfig(port=0, log_requests=False)) as server:
        server.llm.close()
        assert server.post("/v1/completions", {"prompt": "The"})[0] == 503
        assert server.get("/health")[0] == 503
