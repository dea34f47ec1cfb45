"""Reading files of a model folder that nobody vouches for: regular files only, nothing outside the folder, bounded."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from fastllm.errors import CheckpointError

MAX_JSON_BYTES = 100 << 20
# What the text side reads from a model folder.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
TEXT_FILES = (*TOKENIZER_FILES, "tokenizer_config.json", "added_tokens.json", "chat_template.jinja",
              "chat_template.json", "generation_config.json")  # fmt: skip
MAX_TEXT_FILE_BYTES = 200 << 20


def _is_inside(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def safe_path(folder: Path, name: str) -> Path:
    """The real path of `name` in `folder`. Symbolic links may leave the folder only for the blobs of the hub cache."""
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise CheckpointError(f"{folder}: file name {name[:200]!r} is not a plain name (no '/', '\\' or '..')")
    try:
        root = folder.resolve()
        real = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as e:  # a link to itself, a name too long or that is no text
        raise CheckpointError(f"{folder / name[:200]}: cannot be resolved: {e}") from e
    allowed = [root]
    repo = root.parent.parent
    if root.parent.name == "snapshots" and repo.name.startswith("models--"):
        # cache/models--x/snapshots/<revision>/<name> -> cache/models--x/blobs/<hash>, which newer versions of
        # huggingface_hub make a link to cache/blobs/<prefix>/<hash>, shared by all repositories.
        allowed += [repo / "blobs", repo.parent / "blobs"]
    if not any(_is_inside(real, place) for place in allowed):
        raise CheckpointError(
            f"{folder / name}: a symbolic link leads outside the model folder, to {real}; copy the file"
        )
    return real


def open_regular(path: Path) -> tuple[int, int]:
    """File descriptor and size. O_NONBLOCK first: opening a FIFO must not wait for a writer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be opened: {e.strerror}") from e
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise CheckpointError(f"{path}: is not a regular file")
    return fd, info.st_size


def check_text_files(folder: Path) -> None:
    """Refuses a FIFO, a device, a giant or a link out of the folder where a file of tokenizer or template should be."""
    for name in TEXT_FILES:
        if os.path.lexists(folder / name):
            fd, size = open_regular(safe_path(folder, name))
            os.close(fd)
            if size > MAX_TEXT_FILE_BYTES:
                raise CheckpointError(f"{folder / name}: has {size} bytes, at most {MAX_TEXT_FILE_BYTES} are read")


class InputFile:
    """A regular file that stays open for reading at offsets, from any thread."""

    def __init__(self, path: Path, label: str) -> None:
        self._fd = -1
        self.label = label
        self._fd, self.size = open_regular(path)
        info = os.fstat(self._fd)
        # Another content has another time of change, whatever mtime it was given.
        self.identity = [info.st_ino, info.st_mtime_ns, info.st_ctime_ns]

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read_into(self, offset: int, out: memoryview) -> None:
        """All of `out`, or CheckpointError: the disk failed, or the file has become shorter."""
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._fd, [out[done:]], offset + done)
            except (OSError, OverflowError) as e:
                raise CheckpointError(f"{self.label}: cannot be read at byte {offset + done}: {e}") from e
            if count == 0:
                raise CheckpointError(f"{self.label}: ends at byte {offset + done}; was it changed while it was read?")
            done += count

    def read(self, offset: int, size: int) -> bytes:
        data = bytearray(size)
        self.read_into(offset, memoryview(data))
        return bytes(data)


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """object_pairs_hook for json: a key given twice means two readers may see two files."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:200]!r} is given twice")
    return result


def parse_json_object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_duplicates)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text: ValueError
    except RecursionError:
        raise CheckpointError(f"{where}: JSON is nested too deeply") from None
    except ValueError as e:  # bad UTF-8, bad JSON, duplicate keys, numbers of thousands of digits
        raise CheckpointError(f"{where}: is not valid JSON: {str(e)[:300]}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_object(folder: Path, name: str, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    fd, size = open_regular(safe_path(folder, name))
    with os.fdopen(fd, "rb") as file:
        if size > max_bytes:
            raise CheckpointError(f"{folder / name}: has {size} bytes, at most {max_bytes} are read")
        text = file.read(size)  # not max_bytes: that much would be reserved before the first byte is read
    return parse_json_object(text, str(folder / name))
