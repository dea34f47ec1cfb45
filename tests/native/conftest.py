import os
import signal
import subprocess
import sys

import building
import pytest

BUILD = pytest.StashKey[subprocess.Popen]()


def pytest_collection_finish(session):
    """Compiling takes minutes of a processor that most tests leave idle: it begins with the first test."""
    is_needed = any("programs" in getattr(item, "fixturenames", ()) for item in session.items)
    if is_needed and not session.config.option.collectonly:
        session.config.stash[BUILD] = subprocess.Popen(
            [sys.executable, building.__file__],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def pytest_unconfigure(config):
    build = config.stash.get(BUILD, None)
    if build is not None and build.poll() is None:  # the tests ended before they came here
        os.killpg(build.pid, signal.SIGTERM)
        build.wait()


@pytest.fixture(scope="session")
def programs(request):
    output, _ = request.config.stash[BUILD].communicate()
    assert request.config.stash[BUILD].returncode == 0, output.decode()
    return building.build_folder() / "tests" / "native"
