"""How many of a kind: `make test` takes fewer than `make soak`, which sets FASTLLM_SOAK_SECONDS."""

import os


def size(test: int, soak: int) -> int:
    return soak if os.environ.get("FASTLLM_SOAK_SECONDS") else test
