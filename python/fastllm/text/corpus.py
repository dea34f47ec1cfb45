"""Text of the user for calibration and evaluation: plain text, JSONL, or token ids.

.jsonl   one JSON object a line with "text" or "token_ids", or a string, or a list of ids
.json    a list of token ids, or a list of such lists
others   one document of UTF-8 text
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastllm.errors import InvalidRequestError
from fastllm.text.tokenizer import Tokenizer

MAX_FILE_BYTES = 1 << 30


def read_corpus(path: Path, tokenizer: Tokenizer | None, vocab_size: int) -> list[list[int]]:
    """The token ids of the documents of a file, at least two of each.

    Raises:
        InvalidRequestError: the file cannot be read, a line is not understood, an id is not in [0, vocab_size), or
            nothing is left.
    """
    found = (_document(item, tokenizer, vocab_size, where) for where, item in _items(path))
    documents = [ids for ids in found if len(ids) > 1]
    if not documents:
        raise InvalidRequestError(f"{path}: holds no document of at least two tokens")
    return documents


def _items(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES or not path.is_file():
            raise InvalidRequestError(f"{path}: is not a file of at most {MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    if path.suffix not in (".json", ".jsonl"):
        return [(str(path), text)]
    try:
        if path.suffix == ".json":
            ids = json.loads(text)
            lists = ids if isinstance(ids, list) and ids and isinstance(ids[0], list) else [ids]
            return [(f"{path}[{i}]", one) for i, one in enumerate(lists)]
        lines = enumerate(text.splitlines(), start=1)
        return [(f"{path}:{number}", json.loads(line)) for number, line in lines if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path}: is not valid JSON: {str(error)[:200]}") from None


def _document(item: Any, tokenizer: Tokenizer | None, vocab_size: int, where: str) -> list[int]:
    if isinstance(item, dict):
        item = item.get("text", item.get("token_ids"))
    if isinstance(item, str):
        if tokenizer is None:
            raise InvalidRequestError(f"{where}: is text, and the model has no tokenizer; give token ids")
        return check_ids(tokenizer.encode(item), vocab_size, where)
    if not isinstance(item, list):
        raise InvalidRequestError(f'{where}: expected text or token ids, or an object with "text" or "token_ids"')
    return check_ids(item, vocab_size, where)


def check_ids(ids: Sequence[Any], vocab_size: int, where: str) -> list[int]:
    for i, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise InvalidRequestError(f"{where}: token {i} is {str(token)[:40]}, expected an id in [0, {vocab_size})")
    return list(ids)


def num_bytes(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Of the text that the tokens are a part of: a character that is cut counts where its bytes are."""
    return sum(len(tokenizer.byte_table.bytes(token)) for token in ids)


def windows(documents: Sequence[list[int]], length: int, most: int | None = None) -> list[list[int]]:
    """Pieces of up to length + 1 tokens that overlap by one, so each token but a document's first is predicted once.

    `most`: predicted tokens altogether.
    """
    pieces: list[list[int]] = []
    left = most
    for ids in documents:
        for begin in range(0, len(ids) - 1, length):
            count = min(length, len(ids) - 1 - begin, length if left is None else left)
            if count <= 0:
                return pieces
            pieces.append(ids[begin : begin + count + 1])
            left = None if left is None else left - count
    return pieces
