"""The memory plan: every byte is counted before the engine starts, and what does not fit is refused with the plan."""

from __future__ import annotations

import dataclasses
import os
import re

from fastllm.errors import InvalidRequestError, OutOfMemoryError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(value: int | str) -> int:
    """``"4GiB"``, ``"500 MB"`` or a number of bytes, as a number of bytes.

    Raises:
        InvalidRequestError: not a positive size.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
        if match is None or match[2].upper() not in _UNITS:
            raise InvalidRequestError(f"memory size {value!r} is not understood; write for example '4GiB' or '500MB'")
        size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size <= 0:
        raise InvalidRequestError(f"memory size {value!r} must be positive")
    return size


def format_bytes(size: int) -> str:
    """A size for people: ``1536`` -> ``"1.5 KiB"``."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("unreachable")


def available_bytes() -> int:
    """Memory that this process may still take: the smaller of what the machine has free and what its cgroup allows."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    available = int(line.split()[1]) * 1024
        with open("/sys/fs/cgroup/memory.max") as limit_file, open("/sys/fs/cgroup/memory.current") as used_file:
            limit = limit_file.read().strip()
            if limit != "max":
                available = min(available, max(0, int(limit) - int(used_file.read())))
    except (OSError, ValueError):
        pass  # not Linux, or no cgroup v2: the figure so far is the best there is
    return available


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of an engine, by purpose. They add up to ``total_bytes``, which never exceeds ``budget_bytes``."""

    budget_bytes: int
    weight_bytes: int
    activation_bytes: int
    kv_bytes: int
    kv_tokens: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.kv_bytes

    def table(self) -> str:
        """The plan as text, one purpose a line."""
        rows = [
            ("weights", self.weight_bytes, ""),
            ("activations and scratch", self.activation_bytes, ""),
            ("KV cache", self.kv_bytes, f"{self.kv_tokens} tokens"),
            ("total", self.total_bytes, f"budget {format_bytes(self.budget_bytes)}"),
        ]
        return "\n".join(f"  {name:<24}{format_bytes(size):>12}  {note}".rstrip() for name, size, note in rows)


def plan_memory(
    *,
    weight_bytes: int,
    activation_bytes: int,
    page_bytes: int,
    page_size: int,
    max_model_len: int,
    max_num_seqs: int,
    memory_budget: int | str | None,
    kv_cache_tokens: int | None,
    device_free_bytes: int | None,
) -> MemoryPlan:
    """Divides the budget. ``None`` for the budget takes at most 80 % of the host's memory that is free now (90 % of
    ``device_free_bytes``, which is not ``None`` if the device has its own), and no more K/V than ``max_num_seqs``
    sequences of ``max_model_len`` tokens can use.

    Raises:
        OutOfMemoryError: the plan does not fit; the text shows it and what to change.
    """
    if memory_budget is not None:
        budget = parse_bytes(memory_budget)
    else:
        budget = int(available_bytes() * 0.8) if device_free_bytes is None else int(device_free_bytes * 0.9)
    fixed = weight_bytes + activation_bytes
    useful_pages = max_num_seqs * -(-max_model_len // page_size)
    if kv_cache_tokens is not None:
        pages = -(-kv_cache_tokens // page_size)
    else:
        pages = min(useful_pages, max(0, budget - fixed) // page_bytes)
    plan = MemoryPlan(budget, weight_bytes, activation_bytes, pages * page_bytes, pages * page_size)
    if plan.total_bytes > budget or pages == 0:
        least = fixed + page_bytes * -(-256 // page_size)
        raise OutOfMemoryError(
            f"the plan does not fit the memory budget of {format_bytes(budget)}:\n{plan.table()}\n"
            f"The least that works is about {format_bytes(least)} (256 tokens of KV cache). Raise memory_budget, or "
            "lower kv_cache_tokens, max_num_batched_tokens or max_num_seqs."
        )
    return plan
