"""OpenTelemetry: a span for each request, with phases and counts, in the caller's trace; no prompts unless asked."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest
from serving import Serving, wait_for

from fastllm.errors import InvalidRequestError
from fastllm.server.config import ApiKey, ServerConfig

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "sk-secret-canary-1"
AUTH = {"authorization": f"Bearer {SECRET}"}


class Traced:
    def __init__(self, **config):
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        config = ServerConfig(port=0, log_requests=False, tracer_provider=provider, **config)
        self.serving = Serving(config, max_model_len=1024, max_num_seqs=4)

    def spans(self, count):
        """All spans since the last call; a span comes after the last byte of its answer."""
        wait_for(lambda: len(self.exporter.get_finished_spans()) >= count)
        wait_for(lambda: not self.serving.server.server_state.tasks)
        found = self.exporter.get_finished_spans()
        self.exporter.clear()
        assert len(found) == count, [span.name for span in found]
        return found


@pytest.fixture(scope="module")
def traced():
    found = Traced(api_keys=(ApiKey("team-a", SECRET),))
    with found.serving:
        yield found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "operation", "limit"),
    [
        ("/v1/completions", {"prompt": "canary one"}, "text_completion", "max_tokens"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "canary"}]}, "chat", "max_tokens"),
        ("/v1/responses", {"input": "canary"}, "chat", "max_output_tokens"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "canary"}]}, "chat", "max_tokens"),
    ],
)
def test_a_request_is_a_span_in_its_callers_trace(traced, path, body, operation, limit, stream):
    headers = {**AUTH, "traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "my-id"}
    body = {**body, limit: 9, "temperature": 0.25, "stream": stream}
    assert traced.serving.request("POST", path, body, headers)[0] == 200
    (span,) = traced.spans(1)
    assert span.name == f"{operation} fastllm-demo" and span.kind is SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == TRACE and f"{span.parent.span_id:016x}" == PARENT
    seen = span.attributes
    assert seen["gen_ai.operation.name"] == operation and seen["gen_ai.provider.name"] == "fastllm"
    assert seen["gen_ai.request.model"] == seen["gen_ai.response.model"] == "fastllm-demo"
    assert (seen["gen_ai.request.max_tokens"], seen["gen_ai.request.temperature"]) == (9, 0.25)
    assert 0 < seen["gen_ai.usage.output_tokens"] <= 9 and seen["gen_ai.usage.input_tokens"] > 0
    assert set(seen["gen_ai.response.finish_reasons"]) <= {"stop", "length"}
    assert (seen["http.route"], seen["http.response.status_code"]) == (path, 200)
    assert (seen["gen_ai.request.id"], seen["fastllm.key.name"]) == ("my-id", "team-a")
    assert span.status.status_code is StatusCode.UNSET and "error.type" not in seen
    phases = [seen[f"gen_ai.latency.time_in_{name}"] for name in ("queue", "model_prefill", "model_decode")]
    assert all(seconds >= 0 for seconds in phases)
    assert sum(phases) == pytest.approx(seen["gen_ai.latency.e2e"])
    assert seen["gen_ai.latency.e2e"] <= (span.end_time - span.start_time) / 1e9
    assert [event.name for event in span.events] == ["scheduled", "first_token"]
    times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert times == sorted(times)
    assert "canary" not in span.to_json()


def test_several_prompts_are_one_span_and_what_is_no_request_of_the_model_is_none(traced):
    body = {"prompt": ["a b", "c d", "e"], "n": 2, "max_tokens": 4, "ignore_eos": True}
    assert traced.serving.post("/v1/completions", body, AUTH)[0] == 200
    assert traced.serving.post("/v1/embeddings", {"input": ["a", "b"]}, AUTH)[0] == 200
    for path in ("/health", "/metrics", "/v1/models", "/nowhere"):
        traced.serving.request("GET", path, headers=AUTH)
    assert traced.serving.post("/v1/completions", body)[0] == 401  # refused before an endpoint has it
    completion, embedding = traced.spans(2)
    assert completion.attributes["gen_ai.request.choice.count"] == 2
    assert completion.attributes["gen_ai.response.finish_reasons"] == ("length",) * 6
    assert completion.attributes["gen_ai.usage.output_tokens"] == 24
    assert embedding.name == "embeddings fastllm-demo" and embedding.parent is None
    assert embedding.attributes["gen_ai.usage.input_tokens"] > 1


def test_what_goes_wrong_is_in_the_span(traced):
    long = {"prompt": "a", "max_tokens": 900, "ignore_eos": True, "n": 4}
    assert traced.serving.post("/v1/completions", {"prompt": "a", "telepathy": 1}, AUTH)[0] == 400
    assert traced.serving.post("/v1/completions", {**long, "request_timeout": 0.01}, AUTH)[0] == 504
    sock = traced.serving.send_head("/v1/completions", long, f"authorization: Bearer {SECRET}\r\n")
    sock.close()
    refused, late, left = traced.spans(3)
    assert refused.attributes["error.type"] == "unsupported_parameter"
    assert refused.status.status_code is StatusCode.UNSET  # the client's fault
    assert late.attributes["error.type"] == "request_timeout" and late.status.status_code is StatusCode.ERROR
    assert left.attributes["error.type"] == "disconnected" and left.status.status_code is StatusCode.UNSET
    traced.serving.wait_until_idle()


def test_a_span_that_is_not_sampled_is_not_recorded(traced):
    headers = {**AUTH, "traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert traced.serving.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, headers)[0] == 200
    traced.spans(0)


def test_prompts_and_answers_only_where_asked():
    traced = Traced(trace_content=True)
    with traced.serving as server:
        status, answer = server.post("/v1/completions", {"prompt": ["The os", "Ä"], "max_tokens": 5})
        assert status == 200
        (span,) = traced.spans(1)
    asked = json.loads(span.attributes["gen_ai.input.messages"])
    assert [message["parts"][0]["content"] for message in asked] == ["The os", "Ä"]
    texts = [message["parts"][0]["content"] for message in json.loads(span.attributes["gen_ai.output.messages"])]
    assert texts == [choice["text"] for choice in answer["choices"]]
    with pytest.raises(InvalidRequestError, match="otlp-traces-endpoint"):
        ServerConfig(trace_content=True)


def test_the_command_sends_its_traces_and_without_them_imports_nothing():
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    command = [sys.executable, "-m", "fastllm", "serve", "--port", "0", "--otlp-traces-endpoint", url]
    env = {**os.environ, "OTEL_SERVICE_NAME": "my-service"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            lines = iter(process.stderr.readline, "")
            address = next(match[1] for line in lines if (match := re.match(r"curl (http://\S+)/v1", line)))
            body = json.dumps({"prompt": "The os", "max_tokens": 2}).encode()
            headers = {"content-type": "application/json", "traceparent": f"00-{TRACE}-{PARENT}-01"}
            request = urllib.request.Request(f"{address}/v1/completions", body, headers)
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    collector.shutdown()
    collector.server_close()
    (path, data) = received[0]
    assert path == "/v1/traces" and bytes.fromhex(TRACE) in data and b"my-service" in data
    code = "import sys, fastllm.server.app, fastllm.cli.serve; print([m for m in sys.modules if 'opentelemetry' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
