"""The latencies of a run as an SVG: for each workload the share of requests (tokens) that took at most so long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from fastllm.bench_serve.client import Record

_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")
_WIDTH, _HEIGHT, _LEFT, _TOP, _STEP = 260, 180, 46, 30, 330


def svg(runs: Sequence[tuple[str, Sequence[Record]]]) -> str:
    """``runs``: name and records of each workload."""
    panels = {
        "time to first token": [[r.ttft_s for r in records if r.ttft_s is not None] for _, records in runs],
        "between tokens": [[gap for r in records for gap in r.inter_token_s()] for _, records in runs],
        "whole request": [[r.ended - r.sent for r in records if r.outcome == "ok"] for _, records in runs],
    }
    parts = []
    for i, (title, series) in enumerate(panels.items()):
        parts.append(f'<g transform="translate({_LEFT + i * _STEP},{_TOP})">{_panel(title, series)}</g>')
    for i, (name, _) in enumerate(runs):
        x, y = _LEFT + i * 110, _TOP + _HEIGHT + 52
        parts.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{_COLORS[i % len(_COLORS)]}"/>')
        parts.append(f'<text x="{x + 15}" y="{y}">{escape(name)}</text>')
    width, height = _LEFT + 3 * _STEP, _TOP + _HEIGHT + 66
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    return f'{head} font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'


def _panel(title: str, series: Sequence[Sequence[float]]) -> str:
    values = [value for one in series for value in one if value > 0]
    parts = [f'<text x="0" y="-10" font-weight="bold">{title}</text>']
    parts.append(f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888"/>')
    if not values:
        return "".join(parts)
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def x(value: float) -> float:
        return _WIDTH * (math.log10(max(value, 10.0**low)) - low) / (high - low)

    for exponent in range(low, high + 1):
        at = x(10.0**exponent)
        parts.append(f'<path d="M{at:.1f} 0V{_HEIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT + 14}" text-anchor="middle">{_seconds(10.0**exponent)}</text>')
    for share in (0, 50, 90, 100):
        y = _HEIGHT * (1 - share / 100)
        parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{share} %</text>')
    for i, one in enumerate(series):
        ordered = sorted(one)
        if not ordered:
            continue
        step = max(1, len(ordered) // 300)
        points = [(ordered[j], (j + 1) / len(ordered)) for j in [*range(0, len(ordered), step), len(ordered) - 1]]
        path = " ".join(f"{x(value):.1f},{_HEIGHT * (1 - share):.1f}" for value, share in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_COLORS[i % len(_COLORS)]}" stroke-width="1.5"/>')
    return "".join(parts)


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:g} s"
    return f"{value * 1e3:g} ms" if value >= 1e-3 else f"{value * 1e6:g} µs"
