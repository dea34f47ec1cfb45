"""A server on a real socket in a thread of this process, and plain ways to talk to it."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time

import uvicorn

from fastllm import AsyncLLM
from fastllm.server.app import create_app
from fastllm.server.config import ServerConfig
from fastllm.server.protocol import guarded_protocol

ENGINE = {"max_model_len": 512, "max_num_seqs": 16, "kv_cache_tokens": 8192, "num_threads": 2}


def wait_for(condition, seconds=5):
    """Fails unless `condition()` becomes true soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.005)


class Serving:
    """One engine and one app. Use as a context manager."""

    def __init__(self, config=None, llm=None, **engine):
        self.config = config or ServerConfig(port=0, log_requests=False)
        self.llm = llm or AsyncLLM(**{**ENGINE, **engine})
        self.app = create_app(self.llm, self.config)
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                host="127.0.0.1",
                port=0,
                http=guarded_protocol(self.config),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        end = time.monotonic() + 20
        while not self.server.started:
            assert time.monotonic() < end and self._thread.is_alive(), "the server does not start"
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self._thread.join(20)
        self.llm.close()
        assert not self._thread.is_alive(), "the server does not stop"

    def stats(self):
        return self.llm.stats()

    def wait_until_idle(self, seconds=2.0):
        """Fails unless all pages are given back soon."""
        end = time.monotonic() + seconds
        while True:
            stats = self.llm.stats()
            left = {name: stats[name] for name in ("num_running", "num_waiting", "num_pages_referenced")}
            if not any(left.values()):
                return
            assert time.monotonic() < end, f"not given back: {left}"
            time.sleep(0.01)

    def request(self, method, path, body=None, headers=None, timeout=20):
        """(status, headers, body) of one request; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            sent = {"content-type": "application/json"} if data is not None else {}
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def post(self, path, body, headers=None):
        """(status, JSON)."""
        status, _, data = self.request("POST", path, body, headers)
        return status, json.loads(data)

    def get(self, path, headers=None):
        status, _, data = self.request("GET", path, headers=headers)
        return status, json.loads(data)

    def events(self, path, body, headers=None):
        """The JSON objects of a stream, which must end with [DONE]."""
        status, got, data = self.request("POST", path, {**body, "stream": True}, headers)
        assert status == 200, data
        assert got["content-type"].startswith("text/event-stream")
        frames = data.decode().split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""], frames[-3:]
        return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def send_head(self, path, body, extra=""):
        """A socket on which one POST was sent and nothing read."""
        data = json.dumps(body).encode()
        sock = self.connect()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{extra}"
        sock.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)
        return sock
