import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("starlette", reason="the extra [server] is not installed")

from serving import Serving


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
