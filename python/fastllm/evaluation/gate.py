"""The gate: bounds on the figures of an evaluation, as ``kl<=0.02,top1>=0.97,ppl<=+1%``.

kl, kl_p99   mean and 99th percentile of KL(original || model) per token, in nats
top1         share of tokens where both have the same most likely one
ppl          perplexity; ``+1%`` is against the original's
acc          mean accuracy over the tasks; ``-0.5%`` is against the original's
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastllm.errors import InvalidRequestError

DEFAULT = "kl<=0.02,top1>=0.97,ppl<=+1%"
METRICS = {"kl": "<=", "kl_p99": "<=", "top1": ">=", "ppl": "<=", "acc": ">="}
RELATIVE = ("ppl", "acc")
COMPARED = ("kl", "kl_p99", "top1")
_TERM = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([+-]?)(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)(%?)\s*")


@dataclass(frozen=True, slots=True)
class Term:
    text: str
    metric: str
    bound: float
    is_relative: bool  # bound is a fraction of the original's figure, added to it


@dataclass(frozen=True, slots=True)
class Verdict:
    """One term applied: `excess` says by how much it failed, in the unit of the bound; 0 if it passed."""

    term: str
    value: float
    limit: float
    passed: bool
    excess: float


def parse_gate(text: str) -> list[Term]:
    """Raises InvalidRequestError naming the term that is not understood."""
    terms = []
    for part in text.split(","):
        match = _TERM.fullmatch(part)
        if match is None or match[1] not in METRICS:
            raise InvalidRequestError(
                f"gate term {part.strip()[:60]!r} is not understood; write for example {DEFAULT!r}, with "
                f"{', '.join(METRICS)}"
            )
        name, operator, sign, number, percent = match.groups()
        if operator != METRICS[name]:
            raise InvalidRequestError(f"gate term {part.strip()!r}: {name} has {METRICS[name]}")
        is_relative = bool(sign)
        if is_relative and (not percent or name not in RELATIVE):
            raise InvalidRequestError(
                f"gate term {part.strip()!r}: a bound against the original is a percentage of {' or '.join(RELATIVE)}"
            )
        bound = float(number) * (0.01 if percent else 1.0) * (-1.0 if sign == "-" else 1.0)
        terms.append(Term(part.strip(), name, bound, is_relative))
    return terms


def check_is_measured(terms: Sequence[Term], *, has_data: bool, has_tasks: bool, has_original: bool) -> None:
    """Raises InvalidRequestError naming a term whose figure such an evaluation does not have, and what is missing."""
    for term in terms:
        missing = []
        if term.metric == "acc" and not has_tasks:
            missing.append("tasks")
        if term.metric != "acc" and not has_data:
            missing.append("data")
        if (term.is_relative or term.metric in COMPARED) and not has_original:
            missing.append("the original to compare with")
        if missing:
            raise InvalidRequestError(f"gate term {term.text!r} needs evaluation {' and '.join(missing)}")


def judge(terms: Sequence[Term], figures: Mapping[str, Any]) -> list[Verdict]:
    """`figures`: of evaluate(), with those of the terms. One that is not finite fails."""
    verdicts = []
    for term in terms:
        value, limit = figures[term.metric], term.bound
        if term.is_relative:
            limit = float(figures[f"{term.metric}_original"]) * (1.0 + term.bound)
        distance = (value - limit) * (1.0 if METRICS[term.metric] == "<=" else -1.0)
        passed = math.isfinite(value) and distance <= 0.0  # NaN fails
        verdicts.append(Verdict(term.text, float(value), limit, passed, 0.0 if passed else float(distance)))
    return verdicts
