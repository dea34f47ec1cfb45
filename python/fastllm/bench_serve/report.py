"""From records to figures: percentiles, throughput, and goodput, the requests that met their objective."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastllm.bench_serve.client import Record
from fastllm.bench_serve.workloads import Workload

SHARES = (50, 90, 95, 99)


@dataclasses.dataclass(frozen=True, slots=True)
class Objective:
    """What a good request is: its first token and its mean time between tokens, in seconds."""

    ttft_s: float
    itl_s: float


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that ``share`` % of the values are not above; None without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)] if ordered else None


def is_good(record: Record, objective: Objective) -> bool:
    """Whole, and within the objective."""
    if record.outcome != "ok" or record.ttft_s is None:
        return False
    gaps = record.inter_token_s()
    return record.ttft_s <= objective.ttft_s and (not gaps or sum(gaps) / len(gaps) <= objective.itl_s)


def summarize(workload: Workload, records: Sequence[Record], objective: Objective) -> dict[str, Any]:
    """Plain data. Latencies are of requests that were answered; those that left count for time to first token only."""
    seconds = max(record.ended for record in records) - min(record.sent for record in records)
    good = sum(is_good(record, objective) for record in records)
    answered = [record for record in records if record.outcome == "ok"]
    groups = sorted({record.planned.group for record in records})
    return {
        "workload": workload.name,
        "text": workload.text,
        "seconds": seconds,
        "outcomes": dict(Counter(record.outcome for record in records)),
        "prompt_tokens": sum(len(record.planned.prompt) for record in records),
        "output_tokens": sum(record.num_tokens for record in records),
        "output_tokens_per_s": sum(record.num_tokens for record in records) / seconds,
        "requests_per_s": len(answered) / seconds,
        "objective": dataclasses.asdict(objective),
        "goodput_requests_per_s": good / seconds,
        # Who has left has not been disappointed.
        "good_share": good / max(1, sum(record.outcome != "left" for record in records)),
        "groups": {
            group: _latencies([record for record in records if record.planned.group == group]) for group in groups
        },
    }


def _latencies(records: Sequence[Record]) -> dict[str, dict[str, float | None]]:
    values: dict[str, list[float]] = {
        "ttft_s": [record.ttft_s for record in records if record.ttft_s is not None],
        "itl_s": [gap for record in records for gap in record.inter_token_s()],
        "e2e_s": [record.ended - record.sent for record in records if record.outcome == "ok"],
    }
    return {
        name: {**{f"p{share}": percentile(v, share) for share in SHARES}, "max": max(v, default=None)}
        for name, v in values.items()
    }
