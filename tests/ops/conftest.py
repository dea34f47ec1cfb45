"""The devices of the operation tests: the reference, the CPU backend at every level of this machine, and the CUDA
kernels in the emulator and, where there is one, on a GPU."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/tolerances.py, tests/devices.py

import oracle

from fastllm import ops


def pytest_collection_modifyitems(config, items):
    """Processors refuse fp8 K/V (test_processors_refuse_fp8_pages): no tests of it there."""

    def is_refused(item):
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return params.get("dtype") == "fp8" and str(params.get("device", "")).startswith("cpu")

    config.hook.pytest_deselected(items=[item for item in items if is_refused(item)])
    items[:] = [item for item in items if not is_refused(item)]


@pytest.fixture(params=oracle.device_names(), scope="session")
def device(request):
    return ops.Device(request.param, num_threads=2 if request.param.startswith("cpu") else 1)
