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


def byte_level(token: str) -> bytes:
    """Bytes of a token of a byte-level BPE."""
    if all(c in GPT2_BYTES for c in token):
        return bytes(GPT2_BYTES[c] for c in token)
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


def from_tokenizer_json(description: Mapping[str, Any], tokenizer: Any, special: Collection[str]) -> _core.ByteTable:
    """Table of a `tokenizers.Tokenizer` and its JSON form.

    special: tokens that are special whatever the file says of them (bos, eos, ...).
    """
    kinds = decoder_kinds(description.get("decoder"))
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
    added = {token["id"]: token for token in description.get("added_tokens", ())}
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if added:
        size = max(size, max(added) + 1)
    tokens, flags = [], []
    for i in range(size):
        if i in added:
            text = added[i]["content"]
            # SentencePiece vocabularies list runs of U+2581 as added tokens: spaces all the same. In a byte-level
            # vocabulary an added token stands for itself: read as GPT-2 bytes, one with "é" would be damaged.
            tokens.append(text.encode() if is_byte_level else sentencepiece(text))
            flags.append(int(bool(added[i]["special"]) or text in special))
        else:
            token = tokenizer.id_to_token(i)
            tokens.append(b"" if token is None else to_bytes(token))
            flags.append(0)
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
