"""GGUF files: blocks decode to what the gguf package says, the tokenizer is the same, damage is refused by name."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_gguf
import tokenizers

import fastllm
from fastllm.checkpoint.gguf import blocks, reader, text
from fastllm.checkpoint.loader import load
from fastllm.errors import CheckpointError, UnsupportedModelError

LIMIT_BLOCKS = [kind for kind in reader.TYPES.values() if kind.name in blocks.FORMATS]
# Where the float16 scales of a block lie: random bits there would be NaN now and then.
HALVES = {"Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208], "MXFP4": [], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2],
          "Q5_K": [0, 2]}  # fmt: skip


def _random_blocks(kind: reader.BlockType, num_rows: int, per_row: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (num_rows * per_row, kind.num_bytes)).astype(np.uint8)
    for at in HALVES.get(kind.name, [0]):
        data[:, at : at + 2] = rng.standard_normal((len(data), 1)).astype(np.float16).view(np.uint8)
    if kind.name == "MXFP4":
        data[:, 0] %= 200
    return data.reshape(num_rows, -1)


@pytest.mark.parametrize("kind", LIMIT_BLOCKS, ids=lambda kind: kind.name)
def test_blocks_decode_bit_for_bit(kind: reader.BlockType) -> None:
    data = _random_blocks(kind, 20, 3)
    rows = blocks.rows_of(kind.name, data, 20, kind.num_bytes)
    out = np.empty(rows.codes.shape, np.float32)
    rows.dequantize(out)
    assert np.array_equal(out, gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.name]))


@pytest.mark.parametrize("kind", [k for k in LIMIT_BLOCKS if k.name != "MXFP4"], ids=lambda kind: kind.name)
def test_scales_that_are_not_finite_are_refused(kind: reader.BlockType) -> None:
    for at in HALVES.get(kind.name, [0]):
        data = _random_blocks(kind, 1, 3)
        data[0, at : at + 2] = np.array([0, 0x7C], np.uint8)  # infinity
        with pytest.raises(CheckpointError, match="not a finite number"):
            blocks.rows_of(kind.name, data, 1, kind.num_bytes)


# The tokenizer.

TEXTS = [
    "Hello world",
    " two  spaces ",
    "naïve café 東京 🙂",
    "x=1234567\n\n\ty'all don't",
    "<|end|>a<|end|>",
    "",
    "a\u0301 ﬁ",
]


def _with_vocabulary(path: Path, write: Callable[[Any], None]) -> reader.GgufFile:
    w = gguf.GGUFWriter(path, "llama")
    write(w)
    w.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return reader.read(path)


def _ours(file: reader.GgufFile) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    files = text.files_of(file)
    return tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"])), files


CORPUS = (Path(__file__).parents[1] / "data" / "heldout.txt").read_text()[:60_000]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_tokenizer_is_that_of_the_file(pre: str, tmp_path: Path) -> None:
    original = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=pre == "llama-bpe"))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(text.PATTERNS[pre]), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    original.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    if pre == "qwen2":
        original.normalizer = tokenizers.normalizers.NFC()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|begin|>", "<|end|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    original.train_from_iterator([CORPUS], trainer)
    state = json.loads(original.to_str())
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)

    def write(w: Any) -> None:
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre(pre)
        w.add_token_list(tokens)
        w.add_token_types([3 if t.startswith("<|") else 1 for t in tokens])
        w.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
        w.add_bos_token_id(0)
        w.add_eos_token_id(1)
        w.add_add_bos_token(True)
        w.add_chat_template("{{ messages[0]['content'] }}")

    ours, files = _ours(_with_vocabulary(tmp_path / "a.gguf", write))
    for sample in [*TEXTS, CORPUS[:3000]]:
        assert ours.encode(sample, add_special_tokens=False).ids == original.encode(sample).ids, sample
        assert ours.encode(sample).ids[:1] == [0]
    assert files["tokenizer_config.json"] == {
        "bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": "{{ messages[0]['content'] }}",
    }  # fmt: skip
    assert files["generation_config.json"] == {"eos_token_id": [1]}


def test_sentencepiece_tokenizer_is_that_of_the_file(tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "corpus.txt").write_text(CORPUS)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spm"), vocab_size=600, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    size = original.get_piece_size()

    def kind(i: int) -> int:
        if original.is_unknown(i):
            return 2
        return 3 if original.is_control(i) else 6 if original.is_byte(i) else 1

    def write(w: Any) -> None:
        w.add_tokenizer_model("llama")
        w.add_token_list([original.id_to_piece(i) for i in range(size)])
        w.add_token_scores([original.get_score(i) for i in range(size)])
        w.add_token_types([kind(i) for i in range(size)])
        w.add_bos_token_id(original.bos_id())
        w.add_eos_token_id(original.eos_id())
        w.add_unk_token_id(original.unk_id())

    ours, _ = _ours(_with_vocabulary(tmp_path / "a.gguf", write))
    for sample in [*TEXTS, CORPUS[:3000]]:
        if sample:
            assert ours.encode(sample, add_special_tokens=False).ids == original.encode(sample), sample
            assert ours.decode(ours.encode(sample).ids) == sample


# Damage.


def test_good_file_generates_text(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path)
    with fastllm.LLM(str(path), num_threads=1, max_num_seqs=2, kv_cache_tokens=256) as llm:
        assert llm.encode("cab") == [2, 15]
        assert (
            len(llm.generate("cab", fastllm.SamplingParams(max_tokens=5, ignore_eos=True))[0].outputs[0].token_ids) == 5
        )
        info = llm.info()
    assert info["eos_token_ids"] == [14] and info["quantization"]["method"] == "gguf"


def _replace(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return edit


def _at(position: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + new + data[position + len(new) :]


def _after(key: str, skip: int, new: bytes) -> Callable[[bytes], bytes]:
    """Overwrites what lies `skip` bytes after a name."""
    return lambda data: _at(data.index(key.encode()) + len(key) + skip, new)(data)


U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
Q = "blk.0.attn_q.weight"  # then: u32 dimensions, 2 x u64, u32 type, u64 offset
BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "magic needs 4 bytes"),
    "magic": (_at(0, b"GGML"), "begins with b'GGML'"),
    "safetensors": (lambda d: U64(2) + b"{}", "begins with"),
    "version 1": (_at(4, U32(1)), "GGUF version 1"),
    "version 4": (_at(4, U32(4)), "GGUF version 4"),
    "big-endian": (_at(4, struct.pack(">I", 3)), "GGUF version"),
    "2^63 tensors": (_at(8, U64(2**63)), "says it has 9223372036854775808 tensors"),
    "one tensor more": (_at(8, U64(12)), "tensor"),
    "one tensor less": (_at(8, U64(10)), "is missing"),
    "2^40 keys": (_at(16, U64(2**40)), "says it has 1099511627776 keys"),
    "one key less": (lambda d: _at(16, U64(struct.unpack("<Q", d[16:24])[0] - 1))(d), "model.gguf"),
    "key of 2^62 bytes": (_at(24, U64(2**62)), "key 0 needs"),
    "unknown value type": (_after("llama.context_length", 0, U32(99)), "llama.context_length: value type 99"),
    "key twice": (_replace(b"llama.block_count", b"llama.head_counts"), "model.gguf"),
    "string of 2^60": (_after("general.architecture", 4, U64(2**60)), "general.architecture needs"),
    "unknown architecture": (_replace(b"llama", b"xlama"), "general.architecture is 'xlama'"),
    "2^60 tokens": (_after("tokenizer.ggml.tokens", 8, U64(2**60)), "tokenizer.ggml.tokens: an array of"),
    "2^60 token types": (_after("tokenizer.ggml.token_type", 8, U64(2**60)), "tokenizer.ggml.token_type needs"),
    "array of unknown type": (_after("tokenizer.ggml.tokens", 4, U32(77)), "tokenizer.ggml.tokens: value type 77"),
    "arrays in arrays": (_after("tokenizer.ggml.tokens", 4, (U32(9) + U64(1)) * 9), "nested more than"),
    "hidden size 0": (_after("llama.embedding_length", 4, U32(0)), "llama.embedding_length is 0"),
    "hidden size 2^32 - 1": (_after("llama.embedding_length", 4, U32(2**32 - 1)), "llama.embedding_length is"),
    "hidden size as float": (_after("llama.embedding_length", 0, U32(6)), "llama.embedding_length is"),
    "eps NaN": (_after("llama.attention.layer_norm_rms_epsilon", 4, struct.pack("<f", float("nan"))), "epsilon is nan"),
    "2^31 layers": (_after("llama.block_count", 4, U32(2**31)), "llama.block_count is"),
    "100 layers": (_after("llama.block_count", 4, U32(100)), "blk|layers.1.* is missing"),
    "no heads": (_after("llama.attention.head_count", 4, U32(0)), "head_count is 0"),
    "eos beyond the tokens": (_after("tokenizer.ggml.eos_token_id", 4, U32(999)), "eos_token_id is 999"),
    "dimensions 0": (_after(Q, 0, U32(0)), "attn_q.weight: has 0 dimensions"),
    "dimensions 2^31": (_after(Q, 0, U32(2**31)), "attn_q.weight: has 2147483648 dimensions"),
    "size 0": (_after(Q, 4, U64(0)), r"attn_q.weight: shape is \[32, 0\]"),
    "size 2^63": (_after(Q, 4, U64(2**63)), "attn_q.weight: shape is"),
    "size 2^40": (_after(Q, 4, U64(2**40)), "attn_q.weight: .*is it truncated"),
    "product that wraps": (_after(Q, 4, U64(2**33) * 2), "attn_q.weight: .*is it truncated"),
    "another shape": (_after(Q, 4, U64(16) + U64(64)), "attn_q.weight: shape is"),
    "unknown tensor type": (_after(Q, 20, U32(31)), "attn_q.weight: type 31 is not supported"),
    "type of larger elements": (_after(Q, 20, U32(28)), "attn_q.weight: type 28"),
    "rows that are no blocks": (_after(Q, 20, U32(12)), "attn_q.weight: shape is .* multiple of 256"),
    "offset not aligned": (_after(Q, 24, U64(33)), "attn_q.weight: offset 33"),
    "offset 2^63": (_after(Q, 24, U64(2**63)), "attn_q.weight: .*is it truncated"),
    "overlap": (_after(Q, 24, U64(32)), "overlaps the tensor before it"),
    "tensor twice": (_replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), "attn_q.weight: is given twice"),
    "merge without a token": (_replace(b"a b", b"b b"), "tokenizer"),
    "tensor without a place": (_replace(b"blk.0.attn_k.weight", b"blk.0.attn_x.weight"), "attn_k|k_proj|attn_x"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    edit, pattern = BAD[name]
    path = tiny_gguf.write(tmp_path)
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises((CheckpointError, UnsupportedModelError)) as info:
        load(path)
        fastllm.LLM(str(path), num_threads=1, max_num_seqs=2, kv_cache_tokens=256).close()
    assert re.search(pattern, str(info.value)) and "model.gguf" in str(info.value), info.value


def test_every_truncation_of_a_gguf_file_is_refused(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path)
    size = path.stat().st_size
    for cut in sorted({size * i // 500 for i in range(500)} | set(range(0, 200)) | {size - 1}, reverse=True):
        with open(path, "r+b") as file:
            file.truncate(cut)
        with pytest.raises(CheckpointError, match=r"model\.gguf"):
            load(path)


def test_several_gguf_files_must_be_told_apart(tmp_path: Path) -> None:
    (tiny_gguf.write(tmp_path).parent / "other.gguf").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="2 GGUF files"):
        load(tmp_path)
