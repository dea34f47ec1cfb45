"""A histogram for one thread: counts by bucket, for Prometheus and for percentiles."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence


class Histogram:
    """``bounds`` are upper limits, inclusive, ascending; one more bucket holds what is above."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += count
        self.sum += value * count

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper limit, number at or below it), as Prometheus wants it."""
        found: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found

    def percentiles(self, shares: Iterable[float]) -> list[float | None]:
        """Estimates, straight between a bucket's limits; None without a value."""
        total = self.count
        return [None if total == 0 else self._quantile(share * total) for share in shares]

    def _quantile(self, rank: float) -> float:
        below = 0
        for i, count in enumerate(self.counts):
            if count and below + count >= rank:
                if i == len(self.bounds):
                    return self.bounds[-1]
                low = self.bounds[i - 1] if i else 0.0
                return low + (self.bounds[i] - low) * (rank - below) / count
            below += count
        return self.bounds[-1]
