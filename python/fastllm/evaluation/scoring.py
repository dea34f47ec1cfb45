"""A model on the engine's own kernels and weights, for whole rows of logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastllm.errors import InvalidRequestError
from fastllm.runtime import EngineOptions, Runtime
from fastllm.text.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]
CHUNK = 64  # rows of logits at once: 40 MB of them with a vocabulary of 152k


class ScoredModel:
    """Logits after each token of a text. The memory is planned: weights, K/V of one window, `CHUNK` rows of logits.

    Args:
        model: checkpoint folder or hub id; None and ``"demo"`` are the demo model.
        window: tokens of a sequence at most; None: what the model allows, up to 512.
        engine: options of ``LLM``: device, dtype, quantization, activation_mode, kv_cache_dtype, num_threads, ...
    """

    def __init__(self, model: str | Path | None, *, window: int | None = None, **engine: Any) -> None:
        options = EngineOptions(
            **engine, max_num_seqs=CHUNK, max_num_batched_tokens=CHUNK, kv_cache_tokens=window or 512,
            enable_prefix_caching=False,
        )  # fmt: skip
        self._runtime = Runtime(model, options)
        try:
            longest = self._runtime.max_model_len
            if window is not None and window > longest:
                raise InvalidRequestError(f"window = {window} exceeds the longest context of the model, {longest}")
            self.window = min(window or 512, longest)
            self._scorer = self._runtime.scorer()
        except BaseException:
            self._runtime.close()
            raise
        self.vocab_size: int = self._scorer.vocab_size
        self.folder = self._runtime.folder
        self._rows: F32 = np.empty((CHUNK, self.vocab_size), np.float32)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._runtime.tokenizer

    def rows(self, token_ids: Sequence[int], first_row: int = 0) -> Iterator[F32]:
        """Logits [up to CHUNK, V] of what follows token_ids[first_row], token_ids[first_row + 1], ...

        The array is overwritten by the next one.
        """
        self._scorer.clear()
        for begin in range(0, len(token_ids), CHUNK):
            ids = list(token_ids[begin : begin + CHUNK])
            rows = self._rows[: min(len(ids), max(0, begin + len(ids) - first_row))]
            self._scorer.append(ids, rows)
            if len(rows) > 0:
                yield rows

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The most likely continuation; equal logits go to the lower id, as in the engine."""
        (row,) = self.rows(prompt, len(prompt) - 1)
        tokens = [int(row[0].argmax())]
        while len(tokens) < count:
            self._scorer.append(tokens[-1:], self._rows[:1])
            tokens.append(int(self._rows[0].argmax()))
        return tokens

    def close(self) -> None:
        del self._scorer
        self._runtime.close()

    def __enter__(self) -> ScoredModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
