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


def judge(terms: Sequence[Term], figures: Mapping[str, Any]) -> list[Verdict]:
    """`figures`: of evaluate(). A figure that is not finite fails; one that was not measured is refused."""
    verdicts = []
    for term in terms:
        value, original = figures.get(term.metric), figures.get(f"{term.metric}_original")
        if value is None or (term.is_relative and original is None):
            missing = "tasks" if term.metric == "acc" else "the original to compare with"
            raise InvalidRequestError(f"gate term {term.text!r} needs {missing}")
        limit = float(original) * (1.0 + term.bound) if term.is_relative and original is not None else term.bound
        distance = (value - limit) * (1.0 if METRICS[term.metric] == "<=" else -1.0)
        passed = math.isfinite(value) and distance <= 0.0  # NaN fails
        verdicts.append(Verdict(term.text, float(value), limit, passed, 0.0 if passed else float(distance)))
    return verdicts
