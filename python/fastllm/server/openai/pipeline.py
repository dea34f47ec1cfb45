"""From the raw text of an answer to its parts: reasoning, content, calls."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

from fastllm.server.openai.reasoning import ReasoningParser
from fastllm.server.openai.tools import Call, Style, ToolParser


@dataclasses.dataclass(slots=True)
class Parts:
    """What a piece of text has brought."""

    reasoning: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Pipeline:
    """One answer. Without a style and without reasoning, text is content as it comes."""

    def __init__(
        self, style: Style | None, *, reasons: bool, starts_inside: bool = False, one_call: bool = False
    ) -> None:
        self._reasoning = ReasoningParser(starts_inside=starts_inside) if reasons else None
        self._tools = ToolParser(style) if style is not None else None
        self._one_call = one_call
        self.num_calls = 0

    def feed(self, text: str, *, is_last: bool) -> Parts:
        """The parts that ``text`` completes."""
        parts = Parts()
        answer = text
        if self._reasoning is not None:
            parts.reasoning, answer = self._reasoning.feed(text)
            if is_last:
                more_reasoning, more_answer = self._reasoning.finish()
                parts.reasoning += more_reasoning
                answer += more_answer
        if self._tools is None:
            parts.content = answer
            return parts
        parts.content, calls = self._tools.feed(answer)
        if is_last:
            more, more_calls = self._tools.finish()
            parts.content += more
            calls = [*calls, *more_calls]
        for call in calls:
            if self._one_call and self.num_calls:
                break
            parts.calls.append(_tool_call(self.num_calls, call))
            self.num_calls += 1
        if self.num_calls and not parts.content.strip():
            parts.content = ""  # the line breaks around calls
        return parts

    def finish_reason(self, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and self.num_calls else reason


def _tool_call(index: int, call: Call) -> dict[str, Any]:
    return {
        "index": index,
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
