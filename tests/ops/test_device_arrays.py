"""Arrays in the memory of a device: the emulator's through DeviceArray, a GPU's as torch tensors where there is one."""

import ctypes
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from devices import has_cuda

import fastllm
from fastllm import ops

CUDA = 2  # DLPack's number


class Emulated:
    def __init__(self):
        self.device = ops.Device("cuda:emulated")

    def put(self, array):
        return ops.DeviceArray.of(self.device, array)

    def get(self, array):
        assert isinstance(array, ops.DeviceArray)
        return array.numpy()


class Gpu:
    def __init__(self):
        self.device = ops.Device("cuda")

    def put(self, array):
        return torch.from_numpy(array).cuda()

    def get(self, array):
        assert isinstance(array, torch.Tensor) and array.is_cuda
        return array.cpu().numpy()


@pytest.fixture(scope="module", params=[Emulated, *([Gpu] if has_cuda() else [])], ids=lambda place: place.__name__)
def place(request):
    return request.param()


def weights(device, rng):
    return ops.PackedWeight(oracle.normal(rng, 24, 16), device=device)


def experts_of(device, rng):
    gate_up = ops.PackedWeight(oracle.normal(rng, 3, 16, 16), device=device)
    return gate_up, ops.PackedWeight(oracle.normal(rng, 3, 16, 8), device=device)


def attend(device, q, k, v, cos, sin, indices):
    """Writes the cache, then reads it: what one call leaves there, the next must see."""
    kv = ops.KvCache(4, 2, 16, device=device)
    q, k = ops.rope_and_store(q, k, v, cos=cos, sin=sin, slots=indices(np.arange(5)), kv=kv)
    step = {"query_start": indices(np.array([0, 5])), "context_len": indices(np.array([5]))}
    return q, k, ops.paged_attention(q, kv, **step, block_table=indices(np.array([[0]])), scale=0.25)


# Each takes the device, a maker of random float arrays, and what happens to index arrays.
CASES = {
    "embed": lambda d, x, i: ops.embed(i(np.array([3, 0, 23])), weights(d, np.random.default_rng(1)), scale=2.0),
    "rms_norm": lambda d, x, i: ops.rms_norm(x(5, 16), x(16), device=d),
    "rms_norm of a sum": lambda d, x, i: ops.rms_norm(x(5, 16), x(16), residual=x(5, 16), device=d),
    "rms_norm of rows": lambda d, x, i: ops.rms_norm(x(5, 16), x(16), row_ids=i(np.array([4, 1])), device=d),
    "linear": lambda d, x, i: ops.linear(x(5, 16), weights(d, np.random.default_rng(1)), bias=x(24)),
    "rope_table": lambda d, x, i: ops.rope_table(i(np.array([0, 7, 3])), x(4), device=d),
    "attention": lambda d, x, i: attend(d, x(5, 4, 16), x(5, 2, 16), x(5, 2, 16), x(5, 8), x(5, 8), i),
    "gated_activation": lambda d, x, i: ops.gated_activation(x(5, 16), device=d),
    "moe_route": lambda d, x, i: ops.moe_route(x(5, 6), top_k=2, device=d),
    "moe_ffn": lambda d, x, i: ops.moe_ffn(
        x(2, 16),
        i(np.array([[0, 2], [1, 0]], np.int32)),
        x(2, 2),
        **dict(zip(("gate_up", "down"), experts_of(d, np.random.default_rng(1)), strict=True)),
    ),
    "add": lambda d, x, i: ops.add(x(5, 16), x(5, 16), gate=x(5, 1), device=d),
    "softcap": lambda d, x, i: ops.softcap(x(5, 16), 3.0, device=d),
}


@pytest.mark.parametrize("where", ["indices on the device", "indices with the host"])
@pytest.mark.parametrize("case", CASES)
def test_results_of_arrays_on_the_device_are_those_of_host_arrays_and_lie_there(place, case, where):
    def run(put, put_index):
        rng = np.random.default_rng(60)
        found = CASES[case](place.device, lambda *shape: put(oracle.normal(rng, *shape)), put_index)
        return found if isinstance(found, tuple) else (found,)

    wanted = run(lambda a: a, lambda a: a)
    on_device = where == "indices on the device" or case == "embed"  # the result lies where the indices do
    got = run(place.put, place.put if on_device else lambda a: a)
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(place.get(g), w)


def test_a_result_is_written_into_the_array_that_was_given(place):
    x, w = oracle.normal(np.random.default_rng(61), 5, 16), np.ones(16, np.float32)
    out = place.put(np.zeros((5, 16), np.float32))
    assert ops.rms_norm(place.put(x), place.put(w), device=place.device, out=out) is out
    np.testing.assert_array_equal(place.get(out), ops.rms_norm(x, w, device=place.device))


def test_inputs_on_the_device_are_not_written(place):
    x = oracle.normal(np.random.default_rng(62), 5, 16)
    there = place.put(x)
    ops.softcap(there, 3.0, device=place.device)
    ops.rms_norm(there, place.put(np.ones(16, np.float32)), residual=there, device=place.device)
    ops.sample(there, ops.SampleParams(bias={3: 100.0}), device=place.device)
    np.testing.assert_array_equal(place.get(there), x)


def test_tokens_of_logits_on_the_device_are_those_of_host_logits(place):
    logits = oracle.normal(np.random.default_rng(63), 4, 300)
    p = ops.SampleParams(top_k=9, wants_logprob=True, num_top=3)
    assert ops.sample(place.put(logits), p, device=place.device) == ops.sample(logits, p, device=place.device)


def test_what_no_operation_takes_is_refused_with_the_reason(place):
    def refuses(words, *arrays):
        with pytest.raises(fastllm.InvalidRequestError, match=words):
            ops.add(*arrays, device=place.device)

    x = oracle.normal(np.random.default_rng(64), 4, 8)
    refuses("x is on the host and add: residual on cuda", place.put(x), x)
    refuses("float32", place.put(x), place.put(x.astype(np.int32)))
    refuses(r"x is \[4, 4\], expected \[4, 8\]", place.put(x), place.put(x[:, :4]))
    with pytest.raises(fastllm.InvalidRequestError, match="PackedWeight: the array is on a device"):
        ops.PackedWeight(place.put(x), device=place.device)


class Producer:
    """An array on CUDA device 0 that says what it was asked for. Nothing may touch its memory."""

    def __init__(self, rows, cols, *, dtype=(2, 32), strides=None):
        self.shape = (rows, cols)
        self.streams = []
        self._dtype, self._strides = dtype, strides

    def __dlpack_device__(self):
        return CUDA, 0

    def __dlpack__(self, *, stream=None, **_):
        self.streams.append(stream)
        int64_pair = ctypes.c_int64 * 2
        self._shape = int64_pair(*self.shape)
        strides = self._strides and int64_pair(*self._strides)

        class Managed(ctypes.Structure):  # DLManagedTensor
            _fields_ = (
                ("data", ctypes.c_void_p),
                ("device_type", ctypes.c_int32),
                ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8),
                ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)),
                ("byte_offset", ctypes.c_uint64),
                ("manager", ctypes.c_void_p),
                ("deleter", ctypes.c_void_p),
            )

        code, bits = self._dtype
        self._managed = Managed(1 << 40, CUDA, 0, 2, code, bits, 1, self._shape, strides, 0, None, None)
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self._managed), b"dltensor", None)


@pytest.mark.parametrize("name", ["cpu", "reference", "cuda:emulated"])
def test_an_array_of_another_device_is_refused_before_it_is_touched(name):
    x = Producer(4, 8)
    where = "cuda:emulated" if name == "cuda:emulated" else "the host"
    with pytest.raises(fastllm.InvalidRequestError, match=f"gate_up is on cuda:0, and the operation runs on {where}"):
        ops.gated_activation(x, device=name, out=Producer(4, 4))
    assert x.streams == [1], "without torch, work is in the default stream, which DLPack numbers 1"


def test_layouts_and_types_are_refused_before_devices_are_asked():
    with pytest.raises(fastllm.InvalidRequestError, match="gate_up is not contiguous within a row"):
        ops.gated_activation(Producer(4, 8, strides=(1, 4)), out=Producer(4, 4))
    with pytest.raises(fastllm.InvalidRequestError, match="element type that is not supported"):
        ops.gated_activation(Producer(4, 8, dtype=(2, 64)), out=Producer(4, 4))


class FakeTensor(torch.Tensor):
    """A tensor that says it lies on CUDA device 0."""

    device = property(lambda self: torch.device("cuda", 0))

    def __dlpack_device__(self):
        return CUDA, 0

    def __dlpack__(self, *, stream=None, **_):
        self.producer = Producer(*self.shape)
        return self.producer.__dlpack__(stream=stream)


@pytest.mark.parametrize(("current", "passed"), [(0x7F00, 0x7F00), (0, 1)])
def test_work_goes_into_the_current_stream_of_torch(monkeypatch, current, passed):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=current))
    x, out = (torch.Tensor._make_subclass(FakeTensor, torch.zeros(4, n)) for n in (8, 4))
    with pytest.raises(fastllm.InvalidRequestError, match="runs on the host"):
        ops.gated_activation(x, out=out)
    assert x.producer.streams == out.producer.streams == [passed]


@pytest.mark.skipif(not has_cuda(), reason="no CUDA device")
def test_work_follows_what_the_stream_already_has_and_precedes_what_comes():
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.zeros(512, 4096, device="cuda")
        torch.cuda._sleep(100_000_000)
        x += 1
        y = ops.softcap(x, 1e6, device="cuda")
        y *= 2
    stream.synchronize()
    torch.testing.assert_close(y, torch.full_like(y, 2.0))
