"""Next-token distributions of two models over the same text: perplexity, KL divergence, agreement.

KL(p || q) = sum_i p_i (a_i - b_i) - lse(a) + lse(b) for logits a of the original and b of the model under test, with
sums in float64: exactly 0 for equal logits, and about 1e-6 of rounding otherwise, which is cut off at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class RowSource(Protocol):
    """What ScoredModel is here."""

    def rows(self, token_ids: Sequence[int], first_row: int = 0) -> Iterator[F32]: ...


@dataclass(frozen=True, slots=True)
class Softmax:
    """Of rows of logits."""

    logits: F32
    shifted: F32  # exp(logits - largest)
    largest: F32
    total: F64

    @classmethod
    def of(cls, logits: F32) -> Softmax:
        largest = logits.max(-1, keepdims=True)
        shifted = np.exp(logits - largest)
        return cls(logits, shifted, largest, shifted.sum(-1, dtype=np.float64, keepdims=True))

    @property
    def lse(self) -> F64:
        found: F64 = self.largest.astype(np.float64) + np.log(self.total)
        return found[:, 0]

    def logprobs(self, tokens: Sequence[int]) -> F64:
        """Of one token per row."""
        found: F64 = self.logits[np.arange(len(tokens)), list(tokens)] - self.lse
        return found

    def kl_to(self, other: Softmax) -> F64:
        weighted = np.einsum("rv,rv->r", self.shifted, self.logits - other.logits, dtype=np.float64)
        found: F64 = weighted / self.total[:, 0] - self.lse + other.lse
        return np.maximum(found, 0.0)


@dataclass(slots=True)
class Divergence:
    """Per predicted token, in the order of the text. Without an original only `logprobs` and `positions` are filled."""

    positions: list[int] = field(default_factory=list)  # of the predicted token in its window
    logprobs: list[float] = field(default_factory=list)
    reference_logprobs: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agrees: list[bool] = field(default_factory=list)  # same most likely token

    @property
    def perplexity(self) -> float:
        return _perplexity(self.logprobs)

    @property
    def reference_perplexity(self) -> float | None:
        return _perplexity(self.reference_logprobs) if self.reference_logprobs else None

    def summary(self) -> dict[str, Any]:
        """The figures that the gate knows, and the original's."""
        found: dict[str, Any] = {"tokens": len(self.logprobs), "ppl": self.perplexity}
        if self.kl:
            found |= {
                "ppl_original": self.reference_perplexity,
                "kl": float(np.mean(self.kl)),
                "kl_p99": float(np.quantile(self.kl, 0.99)),
                "top1": float(np.mean(self.agrees)),
            }
        return found

    def by_position(self, bins: int = 16) -> list[dict[str, float]]:
        """Means over bins of equal width of the position in the window."""
        if not self.positions:
            return []
        where = np.asarray(self.positions)
        width = max(1, -(-int(where.max()) // bins))
        rows = []
        for begin in range(1, int(where.max()) + 1, width):
            inside = (where >= begin) & (where < begin + width)
            if not inside.any():
                continue
            row = {"position": float(begin), "nll": -float(np.asarray(self.logprobs)[inside].mean())}
            if self.kl:
                row["nll_original"] = -float(np.asarray(self.reference_logprobs)[inside].mean())
                row["kl"] = float(np.asarray(self.kl)[inside].mean())
                row["top1"] = float(np.asarray(self.agrees)[inside].mean())
            rows.append(row)
        return rows


def _perplexity(logprobs: Sequence[float]) -> float:
    with np.errstate(over="ignore"):  # a ruined model may have an infinite one
        return float(np.exp(-np.mean(logprobs)))


def compare(
    model: RowSource, original: RowSource | None, windows: Iterable[Sequence[int]],
    progress: Callable[[int], None] | None = None,
) -> Divergence:  # fmt: skip
    """Runs both over every window, chunk by chunk. `progress` is told how many tokens were done."""
    found = Divergence()
    for window in windows:
        row = 0
        references = original.rows(window[:-1]) if original is not None else None
        for logits in model.rows(window[:-1]):
            targets = window[row + 1 : row + 1 + len(logits)]
            softmax = Softmax.of(logits)
            found.positions.extend(range(row + 1, row + 1 + len(logits)))
            found.logprobs.extend(softmax.logprobs(targets).tolist())
            if references is not None:
                reference = Softmax.of(next(references))
                found.reference_logprobs.extend(reference.logprobs(targets).tolist())
                found.kl.extend(np.nan_to_num(reference.kl_to(softmax), nan=np.inf).tolist())
                found.agrees.extend((logits.argmax(-1) == reference.logits.argmax(-1)).tolist())
            row += len(logits)
            if progress is not None:
                progress(len(logits))
    return found
