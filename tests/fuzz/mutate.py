"""Seeded mutations of bytes: flips, cuts, copies, splices, and pieces that parsers trip over."""

from __future__ import annotations

import random

PIECES = [
    b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"null", b"true", b"false", b'""', b"[]", b"{}", b"[", b"]", b"{", b"}",
    b":", b",", b'"', b"9223372036854775807", b"18446744073709551616", b"4294967296", b"1e-320", b"\\ud800", b"\\u0000",
    b"\xff", b"\xe2\x96\x81", b"\x00", b"../", b"/dev/zero", b"9" * 400, b"[" * 200, b"\xff" * 8, b"\x00" * 8,
]  # fmt: skip


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        # Mostly at the head of the file, where the structure is.
        at = rng.randrange(min(len(data), 2048 if rng.random() < 0.8 else len(data)) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.choice((1, 2, 8, 64, 512))]
        elif kind == 3:
            data[at:at] = rng.choice(PIECES)
        elif kind == 4:
            piece = rng.choice(PIECES)
            data[at : at + len(piece)] = piece
        elif kind == 5:
            begin = rng.randrange(len(data) + 1)
            data[at:at] = data[begin : begin + rng.choice((1, 4, 16, 64))]
        else:
            # A number or a name in JSON becomes another one.
            begin = next((i for i in range(at, len(data)) if data[i : i + 1] in b":[,"), len(data)) + 1
            end = next((i for i in range(begin, len(data)) if data[i : i + 1] in b",]}"), len(data))
            data[begin:end] = rng.choice(PIECES)
    return bytes(data)
