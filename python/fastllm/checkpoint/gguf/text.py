"""The tokenizer and chat template inside a GGUF file, in the form of the files that a Hugging Face folder has.

tokenizer.ggml.model "gpt2" is a byte-level BPE: tokens, merges, and in tokenizer.ggml.pre the name of the pattern that
splits text first. "llama" is a SentencePiece BPE: tokens with scores, bytes for what has no token; its merges follow
from the scores, two tokens merge where their union has one, best score first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fastllm.checkpoint.config import Config
from fastllm.checkpoint.gguf import model, reader
from fastllm.checkpoint.gguf.reader import GgufFile
from fastllm.errors import CheckpointError, UnsupportedModelError

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_WORDS = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"""
    r"""\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_LLAMA3, _QWEN2 = _WORDS.format(digits="{1,3}"), _WORDS.format(digits="")
PATTERNS = {"default": _GPT2, "gpt-2": _GPT2, "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3,
            "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2}  # fmt: skip
_SPACE = "\u2581"


class _Vocabulary:
    def __init__(self, file: GgufFile) -> None:
        self.meta = Config(file.metadata, f"{file.path}: metadata")
        self.tokens: list[str] = self._list("tokens", None)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise self.meta.wrong("tokenizer.ggml.tokens", "has the same token twice")
        types = file.metadata.get("tokenizer.ggml.token_type")
        self.types = [_NORMAL] * len(self.tokens) if types is None else self._numbers("token_type")
        self.merges: list[str] = self._list("merges", []) if "tokenizer.ggml.merges" in file.metadata else []

    def _list(self, key: str, default: list[str] | None) -> list[str]:
        value = self.meta.values.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.meta.wrong(f"tokenizer.ggml.{key}", "must be an array of strings")
        return value

    def _numbers(self, key: str) -> list[Any]:
        value = self.meta.values.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, np.ndarray) or len(value) != len(self.tokens) or not np.isfinite(value).all():
            raise self.meta.wrong(f"tokenizer.ggml.{key}", f"must be an array of {len(self.tokens)} finite numbers")
        return list(value.tolist())

    def scores(self) -> list[float]:
        return self._numbers("scores")

    def special(self, key: str) -> int | None:
        found = self.meta.int(f"tokenizer.ggml.{key}_token_id", default=None)
        if found is not None and found >= len(self.tokens):
            raise self.meta.wrong(f"tokenizer.ggml.{key}_token_id", f"is {found}, there are {len(self.tokens)} tokens")
        return None if found is None else int(found)

    def added(self) -> list[dict[str, Any]]:
        return [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": kind == _CONTROL}
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        ]  # fmt: skip


def _byte_level(v: _Vocabulary) -> dict[str, Any]:
    name = v.meta.str("tokenizer.ggml.pre", default="default")
    if name not in PATTERNS:
        raise v.meta.unsupported("tokenizer.ggml.pre", f"is {name[:40]!r}; supported are {', '.join(PATTERNS)}")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated", "invert": False}
    merges = [merge.split(" ") for merge in v.merges]
    if any(len(merge) != 2 for merge in merges):
        raise v.meta.wrong("tokenizer.ggml.merges", "must be pairs of tokens with a space between them")
    return {
        "normalizer": {"type": "NFC"} if PATTERNS[name] is _QWEN2 else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": v.ids, "merges": merges, "ignore_merges": PATTERNS[name] is _LLAMA3},
    }  # fmt: skip


def _sentencepiece(v: _Vocabulary) -> dict[str, Any]:
    scores = v.scores()
    pieces = {token: i for token, i in v.ids.items() if v.types[i] == _NORMAL}
    found = [
        (scores[i], left, right)
        for token, i in pieces.items()
        for left, right in ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if left in pieces and right in pieces
    ]
    # Of the ways to make one token the longer left part first; they differ in order only.
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    prefixed = v.meta.bool("tokenizer.ggml.add_space_prefix", default=True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders: list[dict[str, Any]] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefixed:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = v.special("unknown")
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]} if prefixed else replace,
        "pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": v.ids, "merges": [[left, right] for _, left, right in found],
            "unk_token": None if unknown is None else v.tokens[unknown], "fuse_unk": True, "byte_fallback": True,
        },
    }  # fmt: skip


_MODELS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _bos(token: str, i: int) -> dict[str, Any]:
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "type": "TemplateProcessing", "single": [first, text], "pair": [first, text, second],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }  # fmt: skip


def files_of(file: GgufFile) -> dict[str, dict[str, Any]]:
    """tokenizer.json, tokenizer_config.json and generation_config.json; none where the file has no tokenizer."""
    if "tokenizer.ggml.tokens" not in file.metadata:
        return {}
    v = _Vocabulary(file)
    kind = v.meta.str("tokenizer.ggml.model")
    if kind not in _MODELS:
        raise UnsupportedModelError(
            f"{v.meta.where}: tokenizer.ggml.model is {kind[:40]!r}; supported are {', '.join(_MODELS)}"
        )
    bos, eos, eot = (v.special(key) for key in ("bos", "eos", "eot"))
    adds_bos = v.meta.bool("tokenizer.ggml.add_bos_token", default=kind == "llama" or _is_llama3(v)) and bos is not None
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": v.added(),
        "post_processor": _bos(v.tokens[bos], bos) if adds_bos and bos is not None else None, **_MODELS[kind](v),
    }  # fmt: skip
    names = {"bos_token": bos, "eos_token": eos}
    config: dict[str, Any] = {name: v.tokens[i] for name, i in names.items() if i is not None}
    if v.meta.has("tokenizer.chat_template"):
        config["chat_template"] = v.meta.str("tokenizer.chat_template")
    ends = [i for i in (eos, eot) if i is not None]
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": config,
        "generation_config.json": {"eos_token_id": ends},
    }


def _is_llama3(v: _Vocabulary) -> bool:
    return PATTERNS.get(v.meta.str("tokenizer.ggml.pre", default="default")) is _LLAMA3


@contextmanager
def text_folder(folder: Path) -> Iterator[Path]:
    """Where the files of tokenizer and template lie: the folder itself, or for GGUF a temporary one."""
    path = model.find(folder)
    if path is None:
        yield folder
        return
    with TemporaryDirectory(prefix="fastllm-") as name:
        for file, content in files_of(reader.read(path)).items():
            (Path(name) / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        try:
            yield Path(name)
        except CheckpointError as e:
            raise CheckpointError(f"{path}: its tokenizer: {e}") from e
