import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("starlette", reason="the extra [server] is not installed")

from scripted import ScriptedLLM
from serving import Serving
from toolable import ToolableLLM

from fastllm.server.config import ServerConfig


@pytest.fixture(scope="session")
def shared_server():
    with Serving() as serving:
        yield serving


@pytest.fixture
def server(shared_server):
    """The shared server; afterwards nothing may be left of the test."""
    yield shared_server
    shared_server.wait_until_idle()
    assert shared_server.get("/health")[0] == 200


@pytest.fixture(scope="module")
def scripted():
    """A server whose model says what the test tells it to, as Qwen writes reasoning and calls."""
    config = ServerConfig(port=0, log_requests=False, tool_call_parser="hermes", reasoning_parser="think")
    with Serving(config, llm=ScriptedLLM()) as serving:
        yield serving


@pytest.fixture(scope="module")
def toolable():
    """The demo model as one with tools."""
    config = ServerConfig(port=0, log_requests=False, tool_call_parser="hermes")
    with Serving(config, llm=ToolableLLM()) as serving:
        yield serving
