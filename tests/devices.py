"""Which devices the machine of the tests has."""

import fastllm
from fastllm import ops


def has_cuda() -> bool:
    try:
        ops.Device("cuda")
    except fastllm.DeviceError:
        return False
    return True
