"""The answer of one sequence as pieces in order: thought, text, calls. Dialects put them into blocks or items."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from fastllm.server.generation import Delta
from fastllm.server.openai.pipeline import Pipeline

Kind = Literal["thought", "text", "call"]


@dataclasses.dataclass(slots=True)
class Block:
    """Pieces of one kind that follow each other; each call is a block of its own.

    Attributes:
        text: of a thought or a text; of a call its arguments, as JSON.
    """

    kind: Kind
    text: str = ""
    name: str = ""
    call_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """``text`` was added to ``block``, which is new or not."""

    block: Block
    text: str
    is_new: bool


class Splitter:
    """Grows the blocks of an answer."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.blocks: list[Block] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.num_thought_tokens = 0

    def feed(self, delta: Delta) -> list[Piece]:
        """What a delta brings."""
        parts = self._pipeline.feed(delta.text, is_last=delta.finish_reason is not None)
        found = []
        if parts.reasoning:
            self.num_thought_tokens += len(delta.token_ids)
            found.append(self._add("thought", parts.reasoning))
        if parts.content and (self.blocks or parts.content.strip() or not parts.calls):
            found.append(self._add("text", parts.content))
        found += [self._call(call) for call in parts.calls]
        if delta.finish_reason is not None:
            self.finish_reason = self._pipeline.finish_reason(delta.finish_reason)
            self.stop_reason = delta.stop_reason
        return found

    def feed_all(self, deltas: Sequence[Delta]) -> list[Piece]:
        return [piece for delta in deltas for piece in self.feed(delta)]

    def _add(self, kind: Kind, text: str) -> Piece:
        is_new = not self.blocks or self.blocks[-1].kind != kind
        if is_new:
            self.blocks.append(Block(kind))
        self.blocks[-1].text += text
        return Piece(self.blocks[-1], text, is_new)

    def _call(self, call: dict[str, Any]) -> Piece:
        function = call["function"]
        block = Block("call", function["arguments"], function["name"], call["id"])
        self.blocks.append(block)
        return Piece(block, block.text, True)
