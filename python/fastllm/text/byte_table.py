"""Token id -> bytes, from what a tokenizer says of its vocabulary. The native core streams text from this table."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from fastllm import _core
from fastllm.errors import UnsupportedModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # SentencePiece writes a space so


def _gpt2_bytes() -> dict[str, int]:
    """The 256 printable characters that byte-level BPE writes instead of bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return table


GPT2_BYTES = _gpt2_bytes()


# The same for str.translate: its characters become Latin-1, and what of Latin-1 is none of them becomes no Latin-1.
_TO_LATIN = {i: "\u2581" for i in range(256)} | {ord(c): chr(byte) for c, byte in GPT2_BYTES.items()}


def byte_level(token: str) -> bytes:
    """Bytes of a token of a byte-level BPE; a token with other characters stands for itself."""
    try:
        return token.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def sentencepiece(token: str) -> bytes:
    """Bytes of a SentencePiece token: `<0x0A>` is a byte, U+2581 a space."""
    match = _BYTE_TOKEN.fullmatch(token)
    if match is not None:
        return bytes([int(match[1], 16)])
    return token.replace(_SPACE, " ").encode()


def decoder_kinds(decoder: Any) -> set[str]:
    """Names of the decoders in a tokenizer.json."""
    if not isinstance(decoder, Mapping):
        return set()
    kinds = {str(decoder.get("type"))}
    for part in decoder.get("decoders", ()):
        kinds |= decoder_kinds(part)
    return kinds


def strips_first_space(decoder: Any) -> bool:
    """Whether decoding a whole text drops the space that encoding put in front of it."""
    if not isinstance(decoder, Mapping):
        return False
    if decoder.get("type") == "Strip":
        return bool(decoder.get("content") == " " and decoder.get("start") == 1)
    if decoder.get("type") == "Metaspace":
        return bool(decoder.get("prepend_scheme", "always") != "never")
    return any(strips_first_space(part) for part in decoder.get("decoders", ()))


def from_tokenizer_json(decoder: Any, tokenizer: Any, special: Collection[str]) -> _core.ByteTable:
    """Table of a `tokenizers.Tokenizer`.

    decoder: that of its JSON form. special: tokens that are special whatever the file says of them (bos, eos, ...).
    """
    kinds = decoder_kinds(decoder)
    is_byte_level = "ByteLevel" in kinds
    if is_byte_level:
        to_bytes = byte_level
    elif kinds & {"ByteFallback", "Metaspace", "Replace", "Fuse"}:
        to_bytes = sentencepiece
    else:
        raise UnsupportedModelError(
            f"tokenizer.json: decoder {sorted(kinds) or 'none'} is not supported; "
            "ByteLevel, ByteFallback and Metaspace are"
        )
    added = tokenizer.get_added_tokens_decoder()
    size = max(tokenizer.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)
    tokens, flags = [b""] * size, [0] * size
    for token, i in tokenizer.get_vocab(with_added_tokens=False).items():
        if i < size:  # as the tokenizer itself: an id beyond its size is none
            tokens[i] = to_bytes(token)
    for i, token in added.items():
        # SentencePiece vocabularies list runs of U+2581 as added tokens: spaces all the same. In a byte-level
        # vocabulary an added token stands for itself: read as GPT-2 bytes, one with "é" would be damaged.
        tokens[i] = token.content.encode() if is_byte_level else sentencepiece(token.content)
        flags[i] = int(token.special or token.content in special)
    return _core.ByteTable(tokens, flags)


def from_sentencepiece(processor: Any, added: Mapping[int, str]) -> _core.ByteTable:
    """Table of a `sentencepiece.SentencePieceProcessor` and the tokens added to it."""
    size = max(processor.get_piece_size(), max(added, default=-1) + 1)
    tokens, special = [], []
    for i in range(size):
        if i in added:
            tokens.append(added[i].encode())
            special.append(1)
        elif i >= processor.get_piece_size():
            tokens.append(b"")
            special.append(0)
        else:
            is_control = processor.is_control(i) or processor.is_unknown(i)
            tokens.append(sentencepiece(processor.id_to_piece(i)))
            special.append(int(is_control))
    return _core.ByteTable(tokens, special)
