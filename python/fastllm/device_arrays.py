"""Arrays in the memory of a device, for :mod:`fastllm.ops`: which stream their work is in, how they go through DLPack,
and what results lie in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import fastllm._core as _core

if TYPE_CHECKING:
    from fastllm.ops import Device

_CPU = 1  # DLPack's number
_DEFAULT_STREAM = 1  # of a CUDA device, as DLPack numbers streams


class DeviceArray:
    """An array in the memory of a :class:`fastllm.ops.Device`, for results where torch is not. It speaks DLPack."""

    def __init__(self, device: Device, shape: Sequence[int], dtype: str = "float32") -> None:
        self.device = device
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._native: Any = device._native.empty(list(shape), dtype)

    @classmethod
    def of(cls, device: Device, array: Any) -> DeviceArray:
        """A copy of an array of the host."""
        source = np.ascontiguousarray(array)
        self = cls(device, source.shape, source.dtype.name)
        device._native.copy(_core.OpsCallArrays(_DEFAULT_STREAM), source, self._native)
        return self

    def numpy(self) -> NDArray[Any]:
        """A copy with the host. Waits for the work that writes this array."""
        host: NDArray[Any] = to_host(self.device, self)
        return host

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        return self._native.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self._native.__dlpack_device__()
        return int(kind), int(index)


def is_on_device(x: Any) -> bool:
    """Whether x says that it does not lie with the host."""
    where = getattr(x, "__dlpack_device__", None)
    return where is not None and int(where()[0]) != _CPU


def _is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def stream_of(x: Any) -> int:
    """The stream of the caller's work on an array: torch's current one, else the device's default stream."""
    if not _is_torch(x) or x.device.type != "cuda":
        return _DEFAULT_STREAM
    return int(sys.modules["torch"].cuda.current_stream(x.device).cuda_stream) or _DEFAULT_STREAM


def call(operation: Callable[..., Any], device: Device, *args: Any) -> Any:
    """operation(backend, arrays, *args) with what lies on a device handed over in the stream of the caller's work."""
    first = next((x for x in args if is_on_device(x)), None)
    if first is None:
        return operation(device._native, _core.OpsCallArrays(0), *args)
    stream = stream_of(first)
    handed = [x.__dlpack__(stream=stream) if is_on_device(x) else x for x in args]
    return operation(device._native, _core.OpsCallArrays(stream), *handed)


def to_host(device: Device, x: Any) -> Any:
    """x, or a copy of it with the host if it lies on the device."""
    if not is_on_device(x):
        return x
    if _is_torch(x):
        return x.detach().cpu()
    dtype = x.dtype if isinstance(x, DeviceArray) else np.dtype(str(x.dtype))
    out = np.empty(tuple(x.shape), dtype)
    call(lambda native, arrays, *pair: native.copy(arrays, *pair), device, x, out)
    return out


def empty(device: Device, like: Any, shape: Sequence[int], dtype: str = "float32") -> Any:
    """A new array where `like` lies: a tensor for a tensor on a device, a NumPy array for an array of the host."""
    if not is_on_device(like):
        return np.empty(tuple(shape), dtype)
    if _is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=like.device)
    return DeviceArray(device, shape, dtype)


def copy(device: Device, x: Any) -> Any:
    """A contiguous float32 copy of x where it lies."""
    if not is_on_device(x):
        source = x.detach().numpy() if _is_torch(x) else x  # NumPy warns of tensors
        return np.array(source, dtype=np.float32, order="C")
    if _is_torch(x):
        return x.detach().clone(memory_format=sys.modules["torch"].contiguous_format)
    return DeviceArray.of(device, to_host(device, x))
