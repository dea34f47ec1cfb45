"""Models that think aloud: the text between their think tags becomes ``reasoning_content``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastllm.server.openai.tools import overlap

BEGIN, END = "<think>", "</think>"


class ThoughtCounter:
    """How many tokens there are up to the end of the thought: by their bytes, so it does not matter how they come."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._tail = b""
        self._has_ended = False
        self.num_tokens = 0

    def add(self, token_ids: Sequence[int]) -> None:
        end = END.encode()
        for token in token_ids:
            if self._has_ended:
                return
            self.num_tokens += 1
            window = self._tail + self._token_bytes(token)
            self._has_ended = end in window
            self._tail = window[1 - len(end) :]


class ReasoningParser:
    """Splits a growing text into (reasoning, answer). ``starts_inside``: the prompt has already opened the tag.

    White space around the tags belongs to neither.
    """

    def __init__(self, *, starts_inside: bool) -> None:
        self._inside = starts_inside
        self._held = ""
        self._at_start = True
        self._strip = True

    def feed(self, text: str) -> tuple[str, str]:
        self._held += text
        return self._advance(is_last=False)

    def finish(self) -> tuple[str, str]:
        return self._advance(is_last=True)

    def _advance(self, *, is_last: bool) -> tuple[str, str]:
        reasoning = answer = ""
        if self._at_start and not self._inside:
            stripped = self._held.lstrip()
            if stripped.startswith(BEGIN):
                self._held = stripped[len(BEGIN) :]
                self._inside, self._at_start, self._strip = True, False, True
            elif not is_last and BEGIN.startswith(stripped):
                return "", ""
            else:
                self._at_start = self._strip = False
        if self._inside:
            at = self._held.find(END)
            if at < 0:
                # Also white space at the end is held back: it may stand before the tag.
                keep = 0 if is_last else max(overlap(self._held, END), len(self._held) - len(self._held.rstrip()))
                keep = keep if keep == 0 else len(self._held) - len(self._held[: len(self._held) - keep].rstrip())
                return self._stripped(self._take(len(self._held) - keep)), ""
            reasoning = self._stripped(self._take(at).rstrip())
            self._held = self._held[len(END) :]
            self._inside, self._at_start, self._strip = False, False, True
        answer = self._stripped(self._take(len(self._held)))
        return reasoning, answer

    def _take(self, size: int) -> str:
        piece, self._held = self._held[:size], self._held[size:]
        return piece

    def _stripped(self, text: str) -> str:
        """Leaves out white space that follows a tag."""
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        return text
