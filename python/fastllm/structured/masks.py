"""The thread that makes masks: it takes the engine's tasks, advances matchers, and gives masks back.

It keeps one matcher per sequence, from its first token until the engine says that the request has ended. The engine
does not wait for this thread (``csrc/engine/mask_exchange.h``); what goes wrong here ends the sequences of the tasks at
hand and nothing else.
"""

from __future__ import annotations

import itertools
import logging
import threading
from typing import Any

from fastllm.structured.compiler import Grammar, lower_priority

_logger = logging.getLogger("fastllm")
_FOREVER_S = 1e6
_Task = tuple[int, int, int, int]  # key, request id, index, token
_Reply = tuple[int, int, bytes | None, str]


class MaskWorker:
    """Serves one engine until it closes. Keeps the native engine alive, nothing else."""

    def __init__(self, engine: Any, vocab_size: int) -> None:
        self._engine = engine
        self._num_mask_bytes = (vocab_size + 31) // 32 * 4
        self._keys = itertools.count(1)
        self._grammars: dict[int, Grammar] = {}
        self._matchers: dict[int, dict[int, Any]] = {}  # of a key, by the sequence's index
        threading.Thread(target=self._serve, name="fastllm-masks", daemon=True).start()

    def register(self, grammar: Grammar) -> int:
        """A key for a request that is about to be submitted."""
        key = next(self._keys)
        self._grammars[key] = grammar
        return key

    def forget(self, key: int) -> None:
        """The request was refused, or has ended."""
        self._grammars.pop(key, None)
        self._matchers.pop(key, None)

    @property
    def num_grammars(self) -> int:
        """Requests that are not known to have ended."""
        return len(self._grammars)

    def _serve(self) -> None:
        lower_priority()
        while not self._engine.is_closed:
            tasks = self._engine.poll_mask_tasks(_FOREVER_S)
            replies = [reply for task in tasks if (reply := self._answer(task)) is not None]
            if replies:
                self._engine.reply_masks(replies)

    def _answer(self, task: _Task) -> _Reply | None:
        key, request_id, index, token = task
        if token < 0:
            self.forget(key)
            return None
        try:
            mask, error = self.next_mask(key, index, token)
        except BaseException as failure:  # also the panics of llguidance, which are no Exception
            _logger.exception("making a mask failed")
            mask, error = None, f"structured_outputs: making a mask failed ({type(failure).__name__})"
        return request_id, index, mask, error

    def next_mask(self, key: int, index: int, token: int) -> tuple[bytes | None, str]:
        """The mask after `token`; None at the end of the grammar, or with an error."""
        matchers = self._matchers.setdefault(key, {})
        matcher = matchers.get(index)
        if matcher is None:
            matcher = matchers[index] = self._grammars[key].matcher.deep_copy()
        matcher.consume_token(token)
        mask: bytes | None = None
        if not matcher.is_stopped():
            # The state may turn out to be the end only now. The GIL is released meanwhile.
            mask = matcher.compute_bitmask()[: self._num_mask_bytes]
        if matcher.is_error():
            line = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
            return None, f"structured_outputs: the grammar cannot go on: {line[:200]}"
        return (None if matcher.is_stopped() else mask), ""
