"""Names of the weights of a mixture of experts, in the forms in which transformers 4 and 5 save them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fastllm.models import common
from fastllm.models.fills import Fill, stacked


def expert_fills(
    to: str, source: str, names: Collection[str], num_experts: int, ffn_dim: int, hidden: int, *,
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Iterator[Fill]:  # fmt: skip
    """One tensor per expert and projection, or all experts stacked as [X, 2F, E] and [X, E, F]."""
    slots = f"{to}experts.gate_up", f"{to}experts.down"
    if f"{source}experts.gate_up_proj" in names:
        yield from stacked(slots[0], f"{source}experts.gate_up_proj", num_experts, 2 * ffn_dim, hidden)
        yield from stacked(slots[1], f"{source}experts.down_proj", num_experts, hidden, ffn_dim)
        return
    for expert in range(num_experts):
        prefix = f"{source}experts.{expert}."
        yield from common.gated_fills(slots, prefix, ffn_dim, hidden, expert=expert, names=projections)
