"""Sequences of equal length that show a model what its inputs look like."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastllm.demo import CALIBRATION_TEXT, DEMO_MODEL
from fastllm.errors import InvalidRequestError
from fastllm.text.corpus import read_corpus
from fastllm.text.tokenizer import Tokenizer

_log = logging.getLogger("fastllm")
Ids = npt.NDArray[np.int64]


def default_data(model: Path) -> Path:
    """The text in the package, which is like that of the demo model; a warning for every other."""
    if model.resolve() != DEMO_MODEL.resolve():
        _log.warning(
            "calibrating %s with the small text of the package (documentation of Python): for a model that is to be "
            "used, give data like that which it will see",
            model,
        )
    return CALIBRATION_TEXT


def sequences(path: Path, tokenizer: Tokenizer | None, vocab_size: int, count: int, length: int) -> Ids:
    """[S, L]: up to `count` pieces of `length` tokens, spread evenly over the data; one shorter piece if there is less.

    Raises:
        InvalidRequestError: less than 8 tokens.
    """
    ids: Ids = np.concatenate([np.asarray(document, np.int64) for document in read_corpus(path, tokenizer, vocab_size)])
    if len(ids) < 8:
        raise InvalidRequestError(f"{path}: has {len(ids)} tokens; calibration needs more")
    length = min(length, len(ids))
    pieces = ids[: len(ids) // length * length].reshape(-1, length)
    return np.ascontiguousarray(pieces[np.linspace(0, len(pieces) - 1, min(count, len(pieces))).astype(int)])
