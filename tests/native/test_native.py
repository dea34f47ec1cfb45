"""The C++ tests: what Python cannot reach (fault points, thread pool, scheduler simulation, page cache).

Built once into build/native-* with the fault points compiled in, then each program runs as one test. A failure prints
the arguments that repeat it, for example `build/native-ninja/tests/native/engine_simulation --schedules 1 --seed 17`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(re.findall(r"^fastllm_native_test\((\w+)", (ROOT / "tests/native/CMakeLists.txt").read_text(), re.M))
SEEDS = sorted((ROOT / "tests" / "seeds").glob("*.txt"))


def find_tool(name):
    """A build tool of the environment that runs the tests, else of the machine."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def run(*command, timeout):
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout[-8000:]}\n{result.stderr[-8000:]}"
    return result.stdout


@pytest.fixture(scope="session")
def programs():
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    assert cmake, "cmake is needed: pip install cmake"
    build = ROOT / "build" / ("native-ninja" if ninja else "native-make")
    # A compiler newer than ours may warn of more; continuous integration says that warnings are errors.
    werror = os.environ.get("FASTLLM_WERROR", "OFF")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DFASTLLM_NATIVE_TESTS=ON", "-DFASTLLM_PYTHON=OFF"]
    options.append(f"-DFASTLLM_WERROR={werror}")
    if shutil.which("ccache"):
        options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    if ninja:
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run(cmake, "-S", ROOT, "-B", build, *options, timeout=300)
    run(cmake, "--build", build, "-j", str(len(os.sched_getaffinity(0))), timeout=1200)
    return build / "tests" / "native"


@pytest.mark.timeout(1500)  # the first one builds
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(programs, name):
    output = run(programs / name, timeout=300)
    assert "ok " in output


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["bench_paged_attention", "bench_int4_gemm", "bench_moe", "bench_step"])
def test_a_benchmark_of_the_cuda_backend_runs_in_the_emulator(programs, name, tmp_path):
    benches = programs.parents[1] / "benches" / "cuda"
    run(benches / "bench_ceilings_emulated", "--json", tmp_path / "ceilings.json", timeout=100)
    options = ["--device", "cuda:emulated", "--smoke", "--ceilings", tmp_path / "ceilings.json"]
    output = run(benches / name, *options, "--json", tmp_path / "out.json", timeout=300)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["is_smoke"] and all(row["name"] in output and row["seconds"] > 0 for row in report["rows"])
    assert len(report["rows"]) >= 4


@pytest.mark.timeout(1500)
def test_seeds_that_once_failed(programs):
    """One seed a line; the file's name is that of the program."""
    for path in SEEDS:
        for line in path.read_text().splitlines():
            seed = line.partition("#")[0].strip()
            if seed:
                run(programs / path.stem, "--schedules", "1", "--seed", seed, timeout=60)
