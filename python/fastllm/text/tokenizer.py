"""A checkpoint's tokenizer: `tokenizer.json` through tokenizers, or `tokenizer.model` through sentencepiece."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastllm import _core
from fastllm.errors import CheckpointError, InvalidRequestError
from fastllm.text import byte_table

MAX_FILE_BYTES = 200 << 20
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small regular file; {} if there is none. Raises CheckpointError."""
    if not path.exists():
        return {}
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: is not a regular file of at most {MAX_FILE_BYTES >> 20} MiB")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}, expected an object")
    return value


class Tokenizer:
    """Text <-> token ids. Thread-safe.

    Special tokens written in a plain text are read as such, as Hugging Face tokenizers do: `"<|im_end|>"` in a prompt
    is one id. Who puts text of others into a prompt and minds that, encodes the parts and joins the ids.
    Whether bos and eos are added: `tokenizer.json` says it in its post-processor (add_bos_token in
    `tokenizer_config.json` is not read then, as in transformers); beside a `tokenizer.model` add_bos_token and
    add_eos_token say it, true and false if absent.
    """

    def __init__(self, backend: _Backend, config: dict[str, Any]) -> None:
        self._backend = backend
        self.byte_table = backend.byte_table
        self.eos_token = token_text(config.get("eos_token"))
        self.eos_token_id = backend.token_id(self.eos_token) if self.eos_token else None

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Reads the tokenizer of a model folder. Raises CheckpointError."""
        config = read_json(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").exists():
            return Tokenizer(_JsonBackend(folder / "tokenizer.json", config), config)
        if (folder / "tokenizer.model").exists():
            return Tokenizer(_SentencePieceBackend(folder, config), config)
        raise CheckpointError(f"{folder}: no tokenizer here; expected tokenizer.json or tokenizer.model")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with the special tokens that the tokenizer itself adds (bos, eos)."""
        if not isinstance(text, str):
            raise InvalidRequestError(f"a text must be str, not {type(text).__name__}")
        # Lone surrogates have no bytes; they become what a file with that damage would show.
        clean = text.encode("utf-8", "replace").decode() if not text.isascii() else text
        return self._backend.encode(clean, add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, is_continuation: bool = False) -> str:
        """Text of token ids.

        As a whole text, `decode(encode(x)) == x` where the tokenizer loses nothing: the space that a SentencePiece
        tokenizer puts in front of a text is left out. As a continuation of another text the space stays, as in what
        the engine streams. Ids without a token have no text.
        """
        strips = self._backend.strips_first_space and not is_continuation
        return self.byte_table.decode(_ids_of_table(ids), skip_special=skip_special_tokens, strip_first_space=strips)


def _ids_of_table(ids: Sequence[int]) -> list[int]:
    found = []
    for i in ids:
        if isinstance(i, bool) or not hasattr(i, "__index__"):
            raise InvalidRequestError(f"token ids must be integers, not {type(i).__name__}")
        value = i.__index__()
        if not 0 <= value < 2**31:
            raise InvalidRequestError(f"{value} is not a token id")
        found.append(value)
    return found


class _Backend:
    byte_table: _core.ByteTable
    strips_first_space: bool

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        raise NotImplementedError

    def token_id(self, token: str) -> int | None:
        raise NotImplementedError


class _JsonBackend(_Backend):
    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        import tokenizers

        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: is not a regular file of at most {MAX_FILE_BYTES >> 20} MiB")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # the library raises plain Exception; its panics are BaseException
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise CheckpointError(f"{path}: {error}") from error
            raise
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        special = _special_tokens(config)
        self._add_special(special)
        # The JSON of the decoder alone: that of the whole takes as long as reading the file.
        decoder = self._tokenizer.decoder
        description = None if decoder is None else json.loads(decoder.__getstate__())
        self.byte_table = byte_table.from_tokenizer_json(description, self._tokenizer, special)
        self.strips_first_space = byte_table.strips_first_space(description)

    def _add_special(self, special: Sequence[str]) -> None:
        """Tokens that only tokenizer_config.json calls special. Ones without an id are left out: the model has none."""
        import tokenizers

        known = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        for text in special:
            if text not in known and self._tokenizer.token_to_id(text) is not None:
                self._tokenizer.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False)])

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def token_id(self, token: str) -> int | None:
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)


# Protocol buffers merge messages that are joined: ModelProto.normalizer_spec (3) .add_dummy_prefix (3) = false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class _SentencePieceBackend(_Backend):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise CheckpointError(
                f"{folder}: tokenizer.model needs sentencepiece: pip install 'fastllm-runtime[sentencepiece]'"
            ) from error
        path = folder / "tokenizer.model"
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: is not a regular file of at most {MAX_FILE_BYTES >> 20} MiB")
        model = path.read_bytes()
        # What follows a special token gets no space in front, unless the old ("legacy") way is asked for.
        rest = model if config.get("legacy") is True else model + _NO_DUMMY_PREFIX
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._rest = sentencepiece.SentencePieceProcessor(model_proto=rest)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path}: is not a SentencePiece model: {error}") from error
        self.strips_first_space = self._processor.id_to_piece(self._processor.encode("a")[0]).startswith("\u2581")
        self._added = _added_tokens(folder, config, self._processor)
        by_length = sorted(self._added.values(), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, by_length)) + ")") if by_length else None
        self._ids = {text: i for i, text in self._added.items()}
        self._adds_bos = bool(config.get("add_bos_token", True)) and self._processor.bos_id() >= 0
        self._adds_eos = bool(config.get("add_eos_token", False)) and self._processor.eos_id() >= 0
        self.byte_table = byte_table.from_sentencepiece(self._processor, self._added)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._split.split(text) if self._split else [text]):
            if part in self._ids:
                ids.append(self._ids[part])
            elif part:
                ids.extend((self._rest if i else self._processor).encode(part))
        if add_special_tokens:
            ids = [self._processor.bos_id()] * self._adds_bos + ids + [self._processor.eos_id()] * self._adds_eos
        return ids

    def token_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        found = self._processor.piece_to_id(token)
        return None if found == self._processor.unk_id() else int(found)


def _added_tokens(folder: Path, config: dict[str, Any], processor: Any) -> dict[int, str]:
    """Tokens beside the model: control pieces, added_tokens.json, added_tokens_decoder of tokenizer_config.json."""
    added = {i: processor.id_to_piece(i) for i in range(processor.get_piece_size()) if processor.is_control(i)}
    for text, i in read_json(folder / "added_tokens.json").items():
        added[_added_id(folder / "added_tokens.json", i)] = text
    decoder = config.get("added_tokens_decoder", {})
    for i, entry in decoder.items() if isinstance(decoder, dict) else ():
        if content := token_text(entry):
            added[_added_id(folder / "tokenizer_config.json", i)] = content
    return {i: text for i, text in added.items() if text}


def _added_id(path: Path, value: Any) -> int:
    try:
        i = int(value)
    except (TypeError, ValueError):
        i = -1
    if not 0 <= i < 2**24:
        raise CheckpointError(f"{path}: {value!r} is not a token id")
    return i


def _special_tokens(config: dict[str, Any]) -> list[str]:
    """Texts that tokenizer_config.json names as special tokens."""
    values = [config.get(name) for name in SPECIAL_NAMES]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name)
        values += more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
    return [text for value in values if (text := token_text(value))]


def token_text(value: Any) -> str | None:
    """A token is written as a string or as an object with its text in "content"."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
