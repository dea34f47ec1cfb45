"""Opening device="cuda" where something is missing: each case says what, and what to do."""

import ctypes
import shutil

import pytest
from building import run

pytestmark = pytest.mark.timeout(1500)  # the first one builds


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture
def loader(programs, tmp_path):
    """Runs the program beside the files that a case puts there."""

    class Loader:
        def put(self, built, name):
            shutil.copy(programs / f"{built}", tmp_path / name)
            return self

        def open(self, ordinal=0, **environment):
            settings = {name: str(value) for name, value in environment.items()}
            paths = {"LD_LIBRARY_PATH": str(tmp_path)}
            return run(tmp_path / "cuda_loader", str(ordinal), timeout=60, **paths, **settings)

    return Loader().put("cuda_loader", "cuda_loader")


@pytest.fixture
def complete(loader):
    return loader.put("libfake_cuda_plugin.so", "libfastllm_cuda.so").put("libfake_cuda_driver.so", "libcuda.so.1")


def test_a_device_opens_where_nothing_is_missing(complete):
    assert complete.open() == "auto: cuda\nopened: reference\n"


def test_a_build_without_kernels(loader):
    output = loader.put("libfake_cuda_driver.so", "libcuda.so.1").open()
    assert 'auto: cpu\nDeviceError: device "cuda": this build of fastllm has no CUDA kernels' in output
    assert "pip install . -C cmake.define.FASTLLM_CUDA=ON" in output


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
def test_no_driver(loader):
    output = loader.put("libfake_cuda_plugin.so", "libfastllm_cuda.so").open()
    assert "no NVIDIA driver was found (libcuda.so.1); install one" in output


def test_a_driver_that_is_too_old(complete):
    output = complete.open(FAKE_DRIVER=12040, FAKE_RUNTIME=13000)
    assert "the NVIDIA driver knows CUDA 12.4, fastllm was built with CUDA 13.0; update the driver" in output


def test_an_older_driver_of_the_same_major_version_will_do(complete):
    assert "opened" in complete.open(FAKE_DRIVER=13000, FAKE_RUNTIME=13020)


def test_a_library_of_another_version(complete):
    output = complete.open(FAKE_VERSION=99)
    assert "libfastllm_cuda.so is of another version of fastllm; install the two together" in output


def test_a_library_that_is_something_else(loader):
    loader.put("libfake_cuda_driver.so", "libcuda.so.1").put("libfake_cuda_driver.so", "libfastllm_cuda.so")
    assert "is of another version of fastllm" in loader.open()


def test_a_library_that_is_damaged(complete, tmp_path):
    (tmp_path / "libfastllm_cuda.so").write_bytes(100 * b"not a library")
    output = complete.open()
    assert (
        "auto: cpu" in output
        and "libfastllm_cuda.so cannot be loaded, install fastllm again" in output
        and "invalid ELF header" in output
    )


def test_no_device(complete):
    output = complete.open(FAKE_DEVICES=0, FAKE_ERROR="cudaErrorSystemNotReady, system not yet initialized")
    assert "the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES" in output
    assert ": cudaErrorSystemNotReady, system not yet initialized" in output


def test_a_device_that_does_not_exist(complete):
    assert 'device "cuda:2": there are 2 devices, numbered from 0' in complete.open(2, FAKE_DEVICES=2)


@pytest.mark.parametrize(
    ("archs", "chip", "opens"),
    [
        ("80-real, 89-real, 90a-real, 80-virtual", 80, True),
        ("80-real, 89-real, 90a-real, 80-virtual", 86, True),  # code for sm_80
        ("80-real, 89-real, 90a-real, 80-virtual", 120, True),  # PTX
        ("80-real, 89-real, 90a-real, 80-virtual", 75, False),
        ("90a-real", 90, True),
        ("90a-real", 100, False),
        ("90a-real", 89, False),
        ("80-real", 89, True),
        ("80-real", 90, False),
        ("89-real", 80, False),
        ("80", 100, True),
    ],
)
def test_a_chip_that_nothing_was_built_for(complete, archs, chip, opens):
    output = complete.open(FAKE_ARCHS=archs, FAKE_ARCH=chip)
    if opens:
        assert "opened" in output
        return
    assert f'auto: cpu\nDeviceError: device "cuda:0": device 0 is an sm_{chip}, ' in output
    what_to_do = "its kernels need sm_80 or later" if chip < 80 else f"FASTLLM_CUDA_ARCHS={chip}-real"
    assert f"libfastllm_cuda.so was built for {archs}; " in output and what_to_do in output
