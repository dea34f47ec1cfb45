"""TLS by file, and CORS for the origins that were named and no others."""

import json
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request

import pytest
from serving import Serving
from test_command import Command

from fastllm.server.config import ServerConfig

PAGE, OTHER = "https://page.example", "https://other.example"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls_by_file(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
            "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out",
            str(certificate)]  # fmt: skip
    subprocess.run(make, check=True, capture_output=True)
    options = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    with Command(*options).wait_until_listening() as command:
        url = f"https://127.0.0.1:{command.port}/v1/completions"
        body = json.dumps({"prompt": "The os module", "max_tokens": 3, "stream": True}).encode()
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        trusted = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(request, timeout=20, context=trusted) as answer:
            assert answer.status == 200 and answer.read().endswith(b"data: [DONE]\n\n")
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(request, timeout=20)
        with pytest.raises(OSError):  # no plain HTTP on that port
            urllib.request.urlopen(url.replace("https", "http"), timeout=20)


@pytest.fixture(scope="module")
def server():
    with Serving(ServerConfig(port=0, log_requests=False, allowed_origins=(PAGE,))) as serving:
        yield serving


def test_a_named_origin_may_call_and_read(server):
    asks = {"origin": PAGE, "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type"}  # fmt: skip
    status, headers, _ = server.request("OPTIONS", "/v1/completions", headers=asks)
    assert status == 200 and headers["access-control-allow-origin"] == PAGE
    assert "authorization" in headers["access-control-allow-headers"]
    body = {"prompt": "a", "max_tokens": 1}
    for stream in (False, True):
        status, headers, _ = server.request("POST", "/v1/completions", {**body, "stream": stream}, {"origin": PAGE})
        assert status == 200 and headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in headers


def test_another_origin_may_not(server):
    asks = {"origin": OTHER, "access-control-request-method": "POST"}
    status, headers, _ = server.request("OPTIONS", "/v1/completions", headers=asks)
    assert status == 400 and "access-control-allow-origin" not in headers
    _, headers, _ = server.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, {"origin": OTHER})
    assert "access-control-allow-origin" not in headers
