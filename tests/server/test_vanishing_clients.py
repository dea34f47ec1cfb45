"""Clients that vanish at any point leave nothing behind: no sequence, no page, no descriptor, no thread."""

import concurrent.futures
import contextlib
import json
import os
import random
import socket
import struct
import threading

import pytest
from serving import Serving, wait_for
from sizes import size

from fastllm.server.config import ServerConfig

SEED, CLIENTS = 20261128, size(300, 1000)
BODIES = [
    {"prompt": "The os module", "max_tokens": 400, "ignore_eos": True},
    {"prompt": ["a", "b"], "n": 3, "max_tokens": 400, "ignore_eos": True},
    {"prompt": "x", "max_tokens": 400, "structured_outputs": {"regex": "(ab)*"}},
]


@pytest.fixture(scope="module")
def server():
    with Serving(ServerConfig(port=0, log_requests=False)) as serving:
        yield serving


def vanish(server, rng):
    """One client with a fate; returns how far it came."""
    data = json.dumps({**rng.choice(BODIES), "stream": rng.random() < 0.7}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(data)
    cuts = {"connect": 0, "head": rng.randrange(1, len(head)), "body": len(head) + rng.randrange(len(data)),
            "sent": len(head) + len(data), "answer": len(head) + len(data)}  # fmt: skip
    fate = rng.choice(sorted(cuts))
    with contextlib.closing(server.connect()) as sock:
        sock.sendall((head + data)[: cuts[fate]])
        if fate == "answer":
            for _ in range(rng.randrange(1, 5)):
                if not sock.recv(rng.randrange(1, 2000)):
                    break
        if rng.random() < 0.5:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
    return fate


def test_clients_that_vanish_leave_nothing_behind(server):
    print(f"seed {SEED}, {CLIENTS} clients")
    server.request("POST", "/v1/completions", {**BODIES[2], "max_tokens": 2})  # threads that are made once
    wait_for(lambda: not server.server.server_state.connections)
    server.wait_until_idle()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        fates = list(pool.map(lambda i: vanish(server, random.Random(SEED + i)), range(CLIENTS)))
    assert len(set(fates)) == 5
    wait_for(lambda: not server.server.server_state.connections, 30)
    server.wait_until_idle(30)
    tokens = server.stats()["num_generated_tokens"]
    # What is left is the loop's pool of threads, which is bounded.
    assert threading.active_count() <= threads + 6
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, 30)
    status, answer = server.post("/v1/completions", {"prompt": "The os module", "max_tokens": 2, "ignore_eos": True})
    assert status == 200 and answer["usage"]["completion_tokens"] == 2
    wait_for(lambda: server.stats()["num_generated_tokens"] == tokens + 2)
