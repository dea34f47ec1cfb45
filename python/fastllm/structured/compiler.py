"""Grammars compiled beside everything else: on one thread of low priority, with limits of size and time, and cached."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fastllm.errors import FastLLMError, InvalidRequestError, QueueFullError
from fastllm.params import StructuredOutputsParams
from fastllm.structured.grammar import grammar_text
from fastllm.text.tokenizer import Tokenizer

MAX_COMPILE_S = 1.0
MAX_CACHED = 256
MAX_CACHED_BYTES = 8 << 20  # of grammar texts; what is compiled of them is mostly some times as large
MAX_PENDING = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar: a matcher at its beginning, to be copied, and the mask of the first token."""

    matcher: Any
    first_mask: bytes


class GrammarCompiler:
    """Compiles for one model. Thread-safe.

    Args:
        vocab_size: of the model; ids that the tokenizer does not have are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: list[int]) -> None:
        if importlib.util.find_spec("llguidance") is None:
            raise InvalidRequestError("structured_outputs: needs llguidance: pip install 'fastllm-runtime[structured]'")
        # Made on the thread: a large vocabulary takes a second.
        self._make_tokenizer = functools.cache(lambda: _ll_tokenizer(tokenizer, vocab_size, eos_token_ids))
        self._num_mask_bytes = (vocab_size + 31) // 32 * 4
        self._thread = ThreadPoolExecutor(1, "fastllm-grammar", initializer=lower_priority)
        self._lock = threading.Lock()
        # By text, least recently used first. Refusals too: what took a second is not tried again.
        self._cache: collections.OrderedDict[str, Grammar | InvalidRequestError] = collections.OrderedDict()
        self._cached_bytes = 0
        self._num_pending = 0

    def submit(self, params: StructuredOutputsParams) -> Future[Grammar]:
        """The grammar, or InvalidRequestError that says why there is none. Raises QueueFullError."""
        with self._lock:
            if self._num_pending >= MAX_PENDING:
                raise QueueFullError(f"{self._num_pending} grammars wait to be compiled; try again later")
            self._num_pending += 1
        future = self._thread.submit(self._compile, params)
        future.add_done_callback(self._done)
        return future

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _done(self, _: Future[Grammar]) -> None:
        with self._lock:
            self._num_pending -= 1

    def _compile(self, params: StructuredOutputsParams) -> Grammar:
        text = grammar_text(params)
        found = self._cache.get(text)
        if found is None:
            found = self._make(text)
            self._remember(text, found)
        self._cache.move_to_end(text)
        if isinstance(found, FastLLMError):
            raise InvalidRequestError(str(found))
        return found

    def _make(self, text: str) -> Grammar | InvalidRequestError:
        import llguidance

        tokenizer = self._make_tokenizer()
        limits = llguidance.LLParserLimits(
            max_lexer_states=100_000, max_grammar_size=200_000, step_lexer_fuel=200_000, verbose_errors=False
        )
        begin = time.thread_time()  # what it costs, not how busy the machine is: the refusal is remembered
        matcher = llguidance.LLMatcher(tokenizer, text, log_level=0, limits=limits)
        mask = matcher.compute_bitmask()[: self._num_mask_bytes] if not matcher.is_error() else b""
        seconds = time.thread_time() - begin
        error = matcher.get_error()
        if error and not error.startswith("NoExtension"):
            return _refusal(error)
        if seconds > MAX_COMPILE_S:
            return _refusal(f"took {seconds:.1f} s to compile, {MAX_COMPILE_S:g} s are allowed")
        if matcher.is_stopped() or not any(mask):
            return _refusal("allows no text")
        return Grammar(matcher, mask)

    def _remember(self, text: str, found: Grammar | InvalidRequestError) -> None:
        self._cache[text] = found
        self._cached_bytes += len(text)
        while len(self._cache) > MAX_CACHED or (self._cached_bytes > MAX_CACHED_BYTES and len(self._cache) > 1):
            self._cached_bytes -= len(self._cache.popitem(last=False)[0])


def _refusal(why: str) -> InvalidRequestError:
    """llguidance's own text, in one short line: it may quote the grammar, which is the client's own."""
    line = " ".join(why.replace("<non-verbose/>", "").split())
    return InvalidRequestError(f"structured_outputs: {line[:300]}")


def lower_priority() -> None:
    """Of this thread: whoever computes tokens goes first."""
    with contextlib.suppress(OSError):  # where the system has no priorities of threads, nothing depends on it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _ll_tokenizer(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: list[int]) -> Any:
    """From the same table of bytes that makes the text: so the grammar sees what the user gets."""
    import llguidance

    table = tokenizer.byte_table
    known = min(len(table), vocab_size)
    eos = eos_token_ids or ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])

    class Wrapper:
        is_tokenizer_wrapper = True
        eos_token_id = eos[0] if eos else 0
        bos_token_id = None
        tokens = [table.bytes(i) for i in range(known)] + [b""] * (vocab_size - known)
        special_token_ids = [i for i in range(known) if table.is_special(i) or i in eos]  # noqa: RUF012

        def __call__(self, text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

    return llguidance.LLTokenizer(Wrapper(), n_vocab=vocab_size, eos_token=eos or None)  # type: ignore[arg-type]
