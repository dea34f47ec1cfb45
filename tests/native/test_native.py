"""The C++ tests: what Python cannot reach (fault points, thread pool, scheduler simulation, page cache).

Built once into build/native-* with the fault points compiled in, then each program runs as one test. A failure prints
the arguments that repeat it, for example `build/native-ninja/tests/native/engine_simulation --schedules 1 --seed 17`.
"""

import json
import re

import pytest
from building import ROOT, run

PROGRAMS = sorted(re.findall(r"^fastllm_native_test\((\w+)", (ROOT / "tests/native/CMakeLists.txt").read_text(), re.M))
SEEDS = sorted((ROOT / "tests" / "seeds").glob("*.txt"))


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
