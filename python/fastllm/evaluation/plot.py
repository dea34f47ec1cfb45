"""Curves as an SVG file, without a plotting library: figures by position in the window, and errors by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 420, 220, 70, 34, 120

Series = tuple[str, Sequence[tuple[float, float]]]  # name, points (x, y)


def svg(panels: Sequence[tuple[str, str, Sequence[Series]]]) -> str:
    """`panels`: title, name of the x axis, curves. Y axes begin at 0; points that are not finite are left out."""
    parts = [
        f'<g transform="translate({_LEFT + i * (_WIDTH + _GAP)},{_TOP})">{_panel(*panel)}</g>'
        for i, panel in enumerate(panels)
    ]
    legend = max((len(series) for _, _, series in panels), default=0)
    width, height = len(panels) * (_WIDTH + _GAP), _TOP + _HEIGHT + 44 + 15 * legend
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    return f'{head} font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'


def _panel(title: str, axis: str, series: Sequence[Series]) -> str:
    curves = [(name, [p for p in points if math.isfinite(p[1])]) for name, points in series]
    points = [point for _, curve in curves for point in curve]
    parts = [f'<text x="0" y="-10" font-weight="bold">{escape(title)}</text>']
    parts.append(f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888"/>')
    if not points:
        return "".join(parts)
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    top = max(p[1] for p in points) or 1.0
    span = (right - left) or 1.0

    def at(point: tuple[float, float]) -> str:
        return f"{_WIDTH * (point[0] - left) / span:.1f},{_HEIGHT * (1 - max(point[1], 0.0) / top):.1f}"

    for share in (0.0, 0.5, 1.0):
        y = _HEIGHT * (1 - share)
        parts.append(f'<path d="M0 {y:.1f}H{_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{share * top:.3g}</text>')
        parts.append(f'<text x="{_WIDTH * share:.1f}" y="{_HEIGHT + 14}" text-anchor="middle">')
        parts.append(f"{left + share * span:.4g}</text>")
    parts.append(f'<text x="{_WIDTH / 2:.1f}" y="{_HEIGHT + 28}" text-anchor="middle">{escape(axis)}</text>')
    for i, (name, curve) in enumerate(curves):
        color, y = _COLORS[i % len(_COLORS)], _HEIGHT + 44 + 15 * i
        path = " ".join(at(point) for point in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(f'<rect x="0" y="{y - 9}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="15" y="{y}">{escape(name)}</text>')
    return "".join(parts)
