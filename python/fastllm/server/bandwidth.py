"""The share of the memory bandwidth that the engine's steps reach: bytes that they had to read, by the time of their
forward passes, by what the device reads per second.

Low while steps prefill, whose limit is arithmetic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

WINDOW_S = 10.0


class BandwidthShare:
    """Of the last ten seconds. ``limit`` is in bytes per second."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._seen: deque[tuple[float, int, float]] = deque()  # time, bytes and seconds so far

    def add(self, now: float, stats: Mapping[str, Any]) -> None:
        """The engine's counters now; kept once a second, however often they come."""
        if self._seen and now - self._seen[-1][0] < 0.9:
            return
        self._seen.append((now, stats["read_bytes"], stats["forward_s"]))
        while self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()

    def share(self, stats: Mapping[str, Any]) -> float:
        """From the oldest counters to these; 0 without a step between them."""
        _, read_bytes, seconds = self._seen[0] if self._seen else (0.0, 0, 0.0)
        seconds = stats["forward_s"] - seconds
        return float((stats["read_bytes"] - read_bytes) / seconds / self.limit) if seconds > 0 else 0.0
