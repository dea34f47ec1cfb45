"""Content filters: what must not come in as a prompt, and must not go out as an answer.

On a stream, text that may still become a match is held back, so nothing of a match leaves, however it is cut into
pieces. A filter of one's own is a class with `matches` and `stream` (see ContentFilter), named as ``module:name``.
"""

from __future__ import annotations

import importlib
import re
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from fastllm.errors import InvalidRequestError

MAX_WORDS = 100_000


class StreamFilter(Protocol):
    """One growing text."""

    def feed(self, text: str) -> tuple[str, bool]:
        """(text that may leave now, whether a match was found). After a match nothing more is fed."""
        ...

    def finish(self) -> tuple[str, bool]:
        """The same for what was held back; the text has ended."""
        ...


class ContentFilter(Protocol):
    """Made once; used by many requests."""

    def matches(self, text: str) -> bool:
        """Whether a whole text holds what is forbidden."""
        ...

    def stream(self) -> StreamFilter:
        """For one answer."""
        ...


class WordFilter:
    """Words, wherever they stand and whatever their case: an Aho-Corasick automaton, one step per character."""

    def __init__(self, words: Iterable[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.is_match = [False]
        for word in words:
            state = 0
            for c in _lower(word):
                if c not in self.next[state]:
                    self.next[state][c] = len(self.next)
                    self.next.append({})
                    self.depth.append(self.depth[state] + 1)
                    self.is_match.append(False)
                state = self.next[state][c]
            if state == 0:
                raise InvalidRequestError("content filter: an empty word matches everything")
            self.is_match[state] = True
        self.fail = [0] * len(self.next)
        queue = deque(self.next[0].values())
        while queue:
            state = queue.popleft()
            self.is_match[state] = self.is_match[state] or self.is_match[self.fail[state]]
            for c, child in self.next[state].items():
                self.fail[child] = self.step(self.fail[state], c)
                queue.append(child)

    def step(self, state: int, c: str) -> int:
        while state and c not in self.next[state]:
            state = self.fail[state]
        return self.next[state].get(c, 0)

    def matches(self, text: str) -> bool:
        state = 0
        for c in _lower(text):
            state = self.step(state, c)
            if self.is_match[state]:
                return True
        return False

    def stream(self) -> StreamFilter:
        return _WordStream(self)


class _WordStream:
    def __init__(self, words: WordFilter) -> None:
        self._words = words
        self._state = 0
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        words, state = self._words, self._state
        self._held += text
        start = len(self._held) - len(text)
        for i, c in enumerate(_lower(text), start=start + 1):
            state = words.step(state, c)
            if words.is_match[state]:
                return self._held[: i - words.depth[state]], True
        self._state = state
        safe = len(self._held) - words.depth[state]
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown, False

    def finish(self) -> tuple[str, bool]:
        shown, self._held = self._held, ""
        return shown, False


class RegexFilter:
    """A regular expression whose matches have at most ``longest`` characters; so many are held back on a stream.

    The operator's own pattern: it must not backtrack badly.
    """

    def __init__(self, pattern: str, longest: int = 64) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise InvalidRequestError(f"content filter: {pattern!r} is no regular expression: {error}") from None
        if self.pattern.search(""):
            raise InvalidRequestError(f"content filter: {pattern!r} matches the empty text")
        self.longest = longest

    def matches(self, text: str) -> bool:
        return self.pattern.search(text) is not None

    def stream(self) -> StreamFilter:
        return _RegexStream(self)


class _RegexStream:
    def __init__(self, regex: RegexFilter) -> None:
        self._regex = regex
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        self._held += text
        return self._scan(len(self._held) - self._regex.longest + 1)

    def finish(self) -> tuple[str, bool]:
        return self._scan(len(self._held))

    def _scan(self, safe: int) -> tuple[str, bool]:
        found = self._regex.pattern.search(self._held)
        if found:
            return self._held[: found.start()], True
        safe = max(0, safe)
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown, False


class FilterChain:
    """Several filters, one after the other: the next sees what the one before lets through."""

    def __init__(self, filters: Sequence[ContentFilter]) -> None:
        self.filters = tuple(filters)

    def matches(self, text: str) -> bool:
        return any(one.matches(text) for one in self.filters)

    def stream(self) -> StreamFilter:
        return _ChainStream([one.stream() for one in self.filters])


class _ChainStream:
    def __init__(self, streams: Sequence[StreamFilter]) -> None:
        self._streams = streams

    def feed(self, text: str) -> tuple[str, bool]:
        matched = False
        for i, stream in enumerate(self._streams):
            text, found = stream.feed(text)
            if found:
                matched = True
                return self._rest(i + 1, text), matched
        return text, matched

    def _rest(self, first: int, text: str) -> str:
        """The end of a text through the filters from ``first`` on."""
        for stream in self._streams[first:]:
            shown, found = stream.feed(text)
            if not found:
                more, found = stream.finish()
                shown += more
            text = shown
        return text

    def finish(self) -> tuple[str, bool]:
        text, matched = "", False
        for stream in self._streams:
            shown, found = stream.feed(text)
            if not found:
                more, found = stream.finish()
                shown += more
            text, matched = shown, matched or found
        return text, matched


def _lower(text: str) -> str:
    """Lower case, one character for one."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def load_filters(
    *, word_file: Path | None = None, patterns: Sequence[str] = (), names: Sequence[str] = ()
) -> FilterChain | None:
    """The chain that a server was told of, or None. Raises InvalidRequestError."""
    filters: list[ContentFilter] = []
    if word_file is not None:
        try:
            words = word_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise InvalidRequestError(f"{word_file}: cannot be read as UTF-8") from None
        found = [word.strip() for word in words if word.strip()]
        if not 1 <= len(found) <= MAX_WORDS:
            raise InvalidRequestError(f"{word_file}: {len(found)} words, 1 to {MAX_WORDS} are allowed")
        filters.append(WordFilter(found))
    filters += [RegexFilter(pattern) for pattern in patterns]
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            filters.append(getattr(importlib.import_module(module), attribute)())
        except (ImportError, AttributeError, TypeError) as error:
            raise InvalidRequestError(f"content filter {name!r}: {error}; expected module:Class") from None
    return FilterChain(filters) if filters else None
