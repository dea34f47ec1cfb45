"""Text of the user for calibration and evaluation: plain text, JSONL, or token ids.

.jsonl   one JSON object a line with "text" or "token_ids", or a string, or a list of ids
.json    a list of token ids, or a list of such lists
others   one document of UTF-8 text
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastllm.errors import InvalidRequestError
from fastllm.text.tokenizer import Tokenizer

MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Document:
    token_ids: list[int]
    num_bytes: int | None  # of its UTF-8; None where only ids are known and there is no tokenizer


def read_corpus(path: Path, tokenizer: Tokenizer | None, vocab_size: int) -> list[Document]:
    """The documents of a file, each with at least two tokens.

    Raises:
        InvalidRequestError: the file cannot be read, a line is not understood, an id is not in [0, vocab_size), or
            nothing is left.
    """
    documents = [
        document
        for where, item in _items(path)
        if len((document := _document(item, tokenizer, vocab_size, where)).token_ids) > 1
    ]
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


def _document(item: Any, tokenizer: Tokenizer | None, vocab_size: int, where: str) -> Document:
    if isinstance(item, dict):
        item = item.get("text", item.get("token_ids"))
    if isinstance(item, str):
        if tokenizer is None:
            raise InvalidRequestError(f"{where}: is text, and the model has no tokenizer; give token ids")
        ids = tokenizer.encode(item)
        return Document(check_ids(ids, vocab_size, where), len(item.encode("utf-8", "replace")))
    if not isinstance(item, list):
        raise InvalidRequestError(f'{where}: expected text or token ids, or an object with "text" or "token_ids"')
    ids = check_ids(item, vocab_size, where)
    return Document(ids, None if tokenizer is None else num_bytes(ids, tokenizer))


def check_ids(ids: Sequence[Any], vocab_size: int, where: str) -> list[int]:
    for i, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise InvalidRequestError(f"{where}: token {i} is {str(token)[:40]}, expected an id in [0, {vocab_size})")
    return list(ids)


def num_bytes(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    return len(tokenizer.decode(ids, skip_special_tokens=False).encode("utf-8", "replace"))


def windows(documents: Sequence[Document], length: int, most: int | None = None) -> list[list[int]]:
    """Pieces of up to length + 1 tokens that overlap by one, so each token but a document's first is predicted once.

    `most`: predicted tokens altogether.
    """
    pieces: list[list[int]] = []
    left = most
    for document in documents:
        ids = document.token_ids
        for begin in range(0, len(ids) - 1, length):
            count = min(length, len(ids) - 1 - begin, length if left is None else left)
            if count <= 0:
                return pieces
            pieces.append(ids[begin : begin + count + 1])
            left = None if left is None else left - count
    return pieces
