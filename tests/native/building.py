"""Builds the C++ programs of the tests, once, into build/native-*, with the fault points compiled in.

As a program it builds, at a low priority: conftest.py starts it beside the tests that come before those of this folder.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find_tool(name):
    """A build tool of the environment that runs the tests, else of the machine."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def run(*command, timeout, **environment):
    result = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout[-8000:]}\n{result.stderr[-8000:]}"
    return result.stdout


def build_folder():
    return ROOT / "build" / ("native-ninja" if find_tool("ninja") else "native-make")


def build():
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    assert cmake, "cmake is needed: pip install cmake"
    folder = build_folder()
    # A compiler newer than ours may warn of more; continuous integration says that warnings are errors.
    werror = os.environ.get("FASTLLM_WERROR", "OFF")
    # As under sanitizers: half the compiler's time of -O3, which the wheel is built with. No bit depends on it.
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG"]
    options += ["-DFASTLLM_NATIVE_TESTS=ON", "-DFASTLLM_PYTHON=OFF"]
    options.append(f"-DFASTLLM_WERROR={werror}")
    if shutil.which("ccache"):
        options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    if ninja:
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "building.lock").open("w") as lock:  # each process of pytest-xdist asks for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(cmake, "-S", ROOT, "-B", folder, *options, timeout=300)
        run(cmake, "--build", folder, "-j", str(len(os.sched_getaffinity(0))), timeout=1200)


if __name__ == "__main__":
    os.nice(10)
    try:
        build()
    except AssertionError as error:
        sys.exit(str(error))
