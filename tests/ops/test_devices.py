"""Names of devices: what is not there is refused in words that say what to do."""

import numpy as np
import pytest

import fastllm
from fastllm import ops


def test_cuda_without_its_library_or_a_driver_says_what_to_do():
    try:
        device = ops.Device("cuda")
    except fastllm.DeviceError as error:
        assert any(way_out in str(error) for way_out in ("FASTLLM_CUDA=ON", "install one", "update the driver", "hide"))
    else:
        assert device.name == "cuda:0"


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cuda:1 ", "gpu", "cpu:avx9"])
def test_unknown_names_are_refused(name):
    with pytest.raises(fastllm.FastLLMError, match=r"is not known|avx9"):
        ops.Device(name)


def test_auto_opens_something():
    assert ops.softcap(np.ones((1, 1), np.float32), 2.0, device=ops.Device("auto")).shape == (1, 1)
