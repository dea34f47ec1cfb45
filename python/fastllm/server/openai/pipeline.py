"""From the raw text of an answer to its parts in order: thought, text, calls."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from fastllm.server.openai.reasoning import ReasoningParser, ThoughtCounter
from fastllm.server.openai.tools import Call, Style, ToolParser

Kind = Literal["thought", "text", "call"]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What a piece of text has brought.

    Attributes:
        text: of a call its arguments, as JSON.
        call: as OpenAI writes it.
    """

    kind: Kind
    text: str
    call: dict[str, Any] | None = None


class Pipeline:
    """One answer. Without a style and without reasoning, text is content as it comes.

    Args:
        names: of the functions that may be called.
        token_bytes: what a token stands for.
    """

    def __init__(
        self,
        style: Style | None,
        *,
        reasons: bool,
        names: Collection[str] = (),
        starts_inside: bool = False,
        one_call: bool = False,
        token_bytes: Callable[[int], bytes] = lambda _: b"",
    ) -> None:
        self._reasoning = ReasoningParser(starts_inside=starts_inside) if reasons else None
        self._counter = ThoughtCounter(token_bytes)
        self._tools = ToolParser(style, names) if style is not None else None
        self._one_call = one_call
        self._has_thought = False
        self.num_calls = 0

    def feed(self, text: str, *, is_last: bool) -> list[Part]:
        """The parts that ``text`` completes."""
        thought, answer = "", text
        if self._reasoning is not None:
            thought, answer = self._reasoning.feed(text)
            if is_last:
                more_thought, more_answer = self._reasoning.finish()
                thought, answer = thought + more_thought, answer + more_answer
        parts = [Part("thought", thought)] if thought else []
        self._has_thought = self._has_thought or bool(thought)
        if self._tools is None:
            return [*parts, Part("text", answer)] if answer else parts
        for piece in self._tools.feed(answer) + (self._tools.finish() if is_last else []):
            if isinstance(piece, str):
                parts.append(Part("text", piece))
            elif not (self._one_call and self.num_calls):
                parts.append(Part("call", piece.arguments, _tool_call(self.num_calls, piece)))
                self.num_calls += 1
        return parts

    def count(self, token_ids: Sequence[int]) -> None:
        """Looks at the tokens of the answer, all in order: ``num_thought_tokens`` is of those."""
        if self._reasoning is not None:
            self._counter.add(token_ids)

    @property
    def num_thought_tokens(self) -> int:
        """The marker of the end included."""
        return self._counter.num_tokens if self._has_thought else 0

    def finish_reason(self, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and self.num_calls else reason


def _tool_call(index: int, call: Call) -> dict[str, Any]:
    return {
        "index": index,
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
