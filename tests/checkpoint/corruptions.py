"""The table of damaged model folders: what is put wrong, and what the message must name. Run by test_corruptions.py.

Run as a program it opens every one of them with LLM in one process, and prints what it saw as JSON.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

Json = dict[str, Any]
SPACE = {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]}
TOKENIZER: Json = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    "added_tokens": [{"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True}],
    "model": SPACE,
}  # fmt: skip
TEXT_FILES: dict[str, Json] = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {"bos_token": "<s>", "chat_template": "{{ messages[0]['content'] }}"},
    "generation_config.json": {"eos_token_id": 2},
}
NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Corruption:
    name: str
    apply: Callable[[Path], None]
    words: tuple[str, ...]  # all of them stand in the message


def write_good(folder: Path) -> Path:
    tiny.write(folder)
    for name, content in TEXT_FILES.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _rewrite_json(name: str, edit: Callable[[Json], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        result = edit(value)
        (folder / name).write_text(json.dumps(value if result is None else result))

    return apply


def _rewrite_header(edit: Callable[[Json], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        arrays = tiny.tensors()
        header = copy.deepcopy(tiny.header_of(arrays))
        edit(header)
        (folder / "model.safetensors").write_bytes(tiny.encode(header, tiny.data_of(arrays)))

    return apply


def _set(name: str, key: str, value: Any) -> Callable[[Json], None]:
    return lambda header: header[name].update({key: value})


def headers() -> Iterator[Corruption]:
    bad: dict[str, list[Any]] = {
        "dtype": ["F33", "f32", "", None, 32, ["F32"], "F16", "F64", "BF16", "I8", "F4"],
        "shape": [None, "8", 8, [-1], [-8, -8], [1.0], ["8"], [True], [NAN], [2**63], [2**64, 2**64], [2**32] * 3,
                  [], [0], [1] * 9, [[8]]],
        "data_offsets": [None, [], [0], [0, 1, 2], [-1, 0], [0.0, 1.0], ["0", "1"], [0, 2**63], [2**64, 2**65],
                         [8, 0], [10**9, 10**9 + 4], {"begin": 0}],
    }  # fmt: skip
    for tensor in list(tiny.SHAPES)[::2]:
        for key, values in bad.items():
            for value in values:
                edit = _set(tensor, key, value)
                yield Corruption(
                    f"header: {tensor} {key} {str(value)[:30]}",
                    _rewrite_header(edit),
                    ("model.safetensors", f"tensor {tensor}"),
                )
        for key in bad:
            yield Corruption(
                f"header: {tensor} without {key}",
                _rewrite_header(lambda h, t=tensor, k=key: h[t].pop(k)),
                ("model.safetensors", f"tensor {tensor}"),
            )


def _edit_tensors(edit: Callable[[Json], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        arrays = tiny.tensors()
        edit(arrays)
        (folder / "model.safetensors").write_bytes(tiny.file_bytes(arrays))

    return apply


def tensors() -> Iterator[Corruption]:
    edits: dict[str, Callable[[Json, str], Any]] = {
        "missing": lambda a, n: a.pop(n),
        "renamed": lambda a, n: a.update({n + "x": a.pop(n)}),
        "with one more row": lambda a, n: a.update({n: a[n].repeat(2, axis=0)}),
        "with one row less": lambda a, n: a.update({n: a[n][:-1].copy()}),
        "with one more dimension": lambda a, n: a.update({n: a[n][None]}),
        "flat": lambda a, n: a.update({n: a[n].reshape(1, 1, -1)}),
        "empty": lambda a, n: a.update({n: a[n][:0].copy()}),
    }
    for tensor in tiny.SHAPES:
        for name, edit in edits.items():
            yield Corruption(
                f"tensor: {tensor} {name}",
                _edit_tensors(lambda a, e=edit, n=tensor: e(a, n)),
                ("safetensors", tensor),
            )
    for tensor, shape in tiny.SHAPES.items():
        if len(shape) == 2 and shape[0] != shape[1]:
            yield Corruption(
                f"tensor: {tensor} transposed",
                _edit_tensors(lambda a, n=tensor: a.update({n: a[n].T.copy()})),
                ("model.safetensors", tensor, "shape"),
            )
    for dtype in ("I32", "U32", "F8_E4M3", "F64"):
        size = {"F8_E4M3": 1, "F64": 8}.get(dtype, 4)

        def apply(folder: Path, dtype: str = dtype, size: int = size) -> None:
            arrays = tiny.tensors()
            name = list(arrays)[-1]
            header = tiny.header_of(arrays)
            begin = header[name]["data_offsets"][0]
            num_bytes = arrays[name].size * size
            header[name] |= {"dtype": dtype, "data_offsets": [begin, begin + num_bytes]}
            data = tiny.data_of(arrays)[:begin] + bytes(num_bytes)
            (folder / "model.safetensors").write_bytes(tiny.encode(header, data))

        yield Corruption(f"tensor: dtype {dtype}", apply, ("model.safetensors", list(tiny.SHAPES)[-1], dtype))


def configs() -> Iterator[Corruption]:
    sizes = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "vocab_size", "max_position_embeddings", "head_dim"]  # fmt: skip
    for key in sizes:
        for value in (0, -1, -(2**63), 2**31, 2**63, 10**400, 0.5, NAN, INF, True, "8", [8], {}):
            yield Corruption(
                f"config: {key} {str(value)[:12]}", _rewrite_json("config.json", lambda c, k=key, v=value:
                c.update({k: v})), ("config.json", key),
            )  # fmt: skip
    for key in ("rms_norm_eps", "rope_theta"):
        for value in (NAN, INF, -INF, -1.0, 1e40, True, "x", [], {}):
            yield Corruption(
                f"config: {key} {value}",
                _rewrite_json("config.json", lambda c, k=key, v=value: c.update({k: v})),
                ("config.json", key),
            )
    for key in ("hidden_act", "torch_dtype", "architectures", "tie_word_embeddings", "rope_scaling"):
        for value in (1, "x", [1], {"type": "x"}, NAN):
            yield Corruption(
                f"config: {key} {value}",
                _rewrite_json("config.json", lambda c, k=key, v=value: c.update({k: v})),
                ("config.json", "rope" if key == "rope_scaling" else key),
            )
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                "architectures"):  # fmt: skip
        yield Corruption(
            f"config: no {key}", _rewrite_json("config.json", lambda c, k=key: c.pop(k) and None), ("config.json", key)
        )


def text_files() -> Iterator[Corruption]:
    for name in (*TEXT_FILES, "config.json"):
        for text in (b"", b"{", b"[]", b"1", b'"x"', b"\xff\xfe{}", b"\x00" * 10, b"[" * 100_000, b'{"a":' * 100_000):
            yield Corruption(
                f"{name}: {text[:8]!r}",
                lambda folder, n=name, t=text: (folder / n).write_bytes(t) and None,
                (name,),
            )
    edits: dict[str, Callable[[Json], Any]] = {
        "no model": lambda t: t.pop("model") and None,
        "model of an unknown type": lambda t: t["model"].update(type="XYZ"),
        "vocab a list": lambda t: t["model"].update(vocab=[1, 2]),
        "vocab with negative ids": lambda t: t["model"]["vocab"].update(a=-1),
        "vocab with ids as text": lambda t: t["model"]["vocab"].update(a="1"),
        "vocab with an id of 2^40": lambda t: t["model"]["vocab"].update(a=2**40),
        "merges of unknown tokens": lambda t: t["model"].update(merges=[["x", "y"]]),
        "merges of three": lambda t: t["model"].update(merges=[["a", "b", "ab"]]),
        "merges a number": lambda t: t["model"].update(merges=7),
        "added tokens a number": lambda t: t.update(added_tokens=7),
        "added token without text": lambda t: t["added_tokens"][0].pop("content") and None,
        "unknown pre-tokenizer": lambda t: t.update(pre_tokenizer={"type": "XYZ"}),
        "unknown decoder": lambda t: t.update(decoder={"type": "XYZ"}),
        "unknown normalizer": lambda t: t.update(normalizer={"type": "XYZ"}),
        "a pattern that does not compile": lambda t: t.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
        ),
    }
    for what, edit in edits.items():
        yield Corruption(f"tokenizer.json: {what}", _rewrite_json("tokenizer.json", edit), ("tokenizer.json",))
    for value in (-1, "2", 1.5, True, [1, None], [[1]], {"a": 1}, 2**40, NAN):
        yield Corruption(
            f"generation_config.json: eos_token_id {value}",
            _rewrite_json("generation_config.json", lambda c, v=value: c.update(eos_token_id=v)),
            ("eos_token_id",),
        )
    for value in (7, {"a": 1}, "{% for %}", "{{ ", "{% include 'x' %}", "(" * 20_000):
        if value == "(" * 20_000:
            value = "{{ " + "(" * 20_000 + " }}"
        yield Corruption(
            f"chat_template {str(value)[:20]}",
            _rewrite_json("tokenizer_config.json", lambda c, v=value: c.update(chat_template=v)),
            ("template",),
        )


def indexes() -> Iterator[Corruption]:
    index = "model.safetensors.index.json"

    def sharded(edit: Callable[[Json], Any]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            tiny.write_sharded(folder)
            _rewrite_json(index, edit)(folder)

        return apply

    q = tiny.Q_PROJ
    for value in ("../x.safetensors", "/etc/passwd", "/dev/zero", "a/b.safetensors", "..", "", ".safetensors\0",
                  "model.bin", "x.py", 1, None, [], "x" * 5000 + ".safetensors", "absent.safetensors",
                  "model-00001-of-00002.safetensors"):  # fmt: skip
        yield Corruption(
            f"index: a tensor in {str(value)[:20]!r}",
            sharded(lambda i, v=value: i["weight_map"].update({q: v})),
            ("safetensors",),
        )
    for value in (None, [], {}, "x", 1):
        yield Corruption(f"index: weight_map {value}", sharded(lambda i, v=value: i.update(weight_map=v)), (index,))
    yield Corruption("index: no weight_map", sharded(lambda i: i.pop("weight_map") and None), (index,))
    yield Corruption("index: forgets a tensor", sharded(lambda i: i["weight_map"].pop(q) and None), (index, q))
    yield Corruption(
        "index: promises a tensor", sharded(lambda i: i["weight_map"].update(x=i["weight_map"][q])), (index, "x")
    )


def special_files() -> Iterator[Corruption]:
    def replaced(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            (folder / name).unlink()
            make(folder / name)

        return apply

    def sparse(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(tiny.file_bytes(tiny.tensors()))
            file.truncate(4 << 40)

    kinds: dict[str, Callable[[Path], Any]] = {
        "FIFO": os.mkfifo,
        "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "link out": lambda path: path.symlink_to("/etc/passwd"),
        "link to itself": lambda path: path.symlink_to(path),
        "folder": Path.mkdir,
        "sparse file of 4 TB": sparse,
    }
    for name in ("config.json", "model.safetensors", *TEXT_FILES):
        for kind, make in kinds.items():
            yield Corruption(f"{name}: {kind}", replaced(name, make), (name,))
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"):
        yield Corruption(
            f"only {name}",
            lambda folder, n=name: (folder / "model.safetensors").rename(folder / n) and None,
            (name, "convert"),
        )


def all_corruptions() -> list[Corruption]:
    parts = (headers, tensors, configs, text_files, indexes, special_files)
    return [corruption for part in parts for corruption in part()]


def _peak_bytes() -> int:
    """Peak memory of this process. (ru_maxrss would be that of the process that started it, if larger.)"""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    import fastllm

    def attempt(folder: Path) -> str | None:
        """Message of the refusal, or None."""
        try:
            with fastllm.LLM(str(folder), num_threads=1, max_num_seqs=2, kv_cache_tokens=256) as llm:
                assert llm.generate([[1, 2]], fastllm.SamplingParams(max_tokens=2))[0].finished
        except (fastllm.CheckpointError, fastllm.UnsupportedModelError) as e:
            return str(e)
        return None

    failures: list[str] = []
    slowest = (0.0, "")
    # Thousands of small files: in memory where there is such a place.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        good = write_good(Path(name) / "good")
        assert (message := attempt(good)) is None, message
        before = _peak_bytes()
        table = all_corruptions()
        for i, corruption in enumerate(table):
            folder = write_good(Path(name) / str(i))
            corruption.apply(folder)
            begin = time.process_time()
            try:
                message = attempt(folder)
            except BaseException as e:
                failures.append(f"{corruption.name}: {type(e).__name__}: {str(e)[:300]}")
                continue
            slowest = max(slowest, (time.process_time() - begin, corruption.name))
            if message is None:
                failures.append(f"{corruption.name}: was accepted")
            elif not all(word in message for word in corruption.words):
                failures.append(f"{corruption.name}: the message names not all of {corruption.words}: {message[:300]}")
        usable = attempt(good) is None
        growth = _peak_bytes() - before
    json.dump(
        {"count": len(table), "failures": failures, "slowest": slowest, "growth": growth, "usable": usable}, sys.stdout
    )


if __name__ == "__main__":
    main()
