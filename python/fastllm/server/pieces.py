"""The answer of one sequence as pieces in order: thought, text, calls. Dialects put them into blocks or items."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fastllm.server.generation import Delta
from fastllm.server.openai.pipeline import Kind, Part, Pipeline


class Block:
    """Pieces of one kind that follow each other; each call is a block of its own."""

    __slots__ = ("_pieces", "call_id", "kind", "name")

    def __init__(self, kind: Kind, text: str = "", name: str = "", call_id: str = "") -> None:
        self.kind = kind
        self.name = name
        self.call_id = call_id
        self._pieces = [text]

    def add(self, text: str) -> None:
        self._pieces.append(text)

    @property
    def text(self) -> str:
        """Of a thought or a text; of a call its arguments, as JSON."""
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]


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

    @property
    def num_thought_tokens(self) -> int:
        return self._pipeline.num_thought_tokens

    def feed(self, delta: Delta) -> list[Piece]:
        """What a delta brings."""
        self._pipeline.count(delta.token_ids)
        parts = self._pipeline.feed(delta.text, is_last=delta.finish_reason is not None)
        found = [self._add(part) for part in parts]
        if delta.finish_reason is not None:
            self.finish_reason = self._pipeline.finish_reason(delta.finish_reason)
            self.stop_reason = delta.stop_reason
        return found

    def feed_all(self, deltas: Sequence[Delta]) -> list[Piece]:
        return [piece for delta in deltas for piece in self.feed(delta)]

    def _add(self, part: Part) -> Piece:
        if part.call is not None:
            block = Block("call", part.text, part.call["function"]["name"], part.call["id"])
        elif self.blocks and self.blocks[-1].kind == part.kind:
            self.blocks[-1].add(part.text)
            return Piece(self.blocks[-1], part.text, False)
        else:
            text = part.text.lstrip() if self.blocks and self.blocks[-1].kind == "call" else part.text
            block = Block(part.kind, text)
        self.blocks.append(block)
        return Piece(block, block.text, True)
