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
        self._held = ""  # what may be the beginning of a tag
        self._space: list[str] = []  # white space that a tag which follows takes along
        self._at_start = True
        self._strip = True

    def feed(self, text: str) -> tuple[str, str]:
        return self._advance(text, is_last=False)

    def finish(self) -> tuple[str, str]:
        return self._advance("", is_last=True)

    def _advance(self, text: str, *, is_last: bool) -> tuple[str, str]:
        text, self._held = self._held + text, ""
        if self._at_start and not self._inside:
            stripped = text.lstrip()
            self._space.append(text[: len(text) - len(stripped)])
            if not is_last and len(stripped) < len(BEGIN) and BEGIN.startswith(stripped):
                self._held = stripped
                return "", ""
            self._at_start = False
            self._inside = self._strip = stripped.startswith(BEGIN)
            text = stripped[len(BEGIN) :] if self._inside else "".join(self._space) + stripped
            self._space.clear()
        thought = ""
        if self._inside:
            at = text.find(END)
            if at >= 0:
                thought = self._stripped(self._with_space(text[:at]))
                text = text[at + len(END) :]
                self._inside, self._at_start, self._strip = False, False, True
            else:
                size = len(text) if is_last else len(text) - overlap(text, END)
                text, self._held = text[:size], text[size:]
                thought = self._with_space(text)
                if is_last:
                    thought += "".join(self._space)
                return self._stripped(thought), ""
        return thought, self._stripped(text)

    def _with_space(self, text: str) -> str:
        """The text behind the white space that was held; white space at its end is held instead."""
        stripped = text.rstrip()
        if stripped:
            before, self._space = "".join(self._space), []
            stripped, text = before + stripped, before + text
        self._space.append(text[len(stripped) :])
        return stripped

    def _stripped(self, text: str) -> str:
        """Leaves out white space that follows a tag."""
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        return text
