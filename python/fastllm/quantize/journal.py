"""What is finished of a quantization, so that a process that was killed can be started again and goes on.

OUT.partial holds the files of the finished layers, and in `work/` the journal and the activations that go into the next
layer. A journal belongs to one job: settings, model, data and code. Another job is refused, not mixed in.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastllm.checkpoint.files import read_json_object
from fastllm.errors import CheckpointError, InvalidRequestError
from fastllm.quantize.writer import write_json

F32 = npt.NDArray[np.float32]


class Journal:
    def __init__(self, partial: Path, job: dict[str, Any]) -> None:
        self.folder = partial
        self._work = partial / "work"
        self._key = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
        self.layers: list[dict[str, Any]] = []  # entries of the finished layers, in order
        if (self._work / "journal.json").exists():
            found = read_json_object(self._work, "journal.json")
            if found.get("key") != self._key or not isinstance(found.get("layers"), list):
                raise InvalidRequestError(
                    f"{partial}: holds a quantization with other settings, model, data or version; remove it to begin "
                    "anew"
                )
            self.layers = found["layers"]
        elif partial.exists():
            raise InvalidRequestError(f"{partial}: exists and holds no quantization that could go on; remove it")
        else:
            self._work.mkdir(parents=True)
            self._write()

    def _write(self) -> None:
        write_json(self._work / "journal.json", {"key": self._key, "layers": self.layers})

    def hidden(self, layer: int, shape: tuple[int, ...], *, create: bool) -> F32:
        """The inputs of a layer, float32 [S, L, E], in a file: they need no memory of this process for long."""
        path = self._work / f"hidden-{layer}.f32"
        if not create and path.stat().st_size != 4 * int(np.prod(shape)):
            raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, expected {4 * int(np.prod(shape))}")
        return np.memmap(path, np.float32, "w+" if create else "r", shape=shape)

    def finish(self, entry: dict[str, Any]) -> None:
        """The layer after the finished ones is on the disk, and so are the inputs of the one after it."""
        self.layers.append(entry)
        self._write()
        (self._work / f"hidden-{len(self.layers) - 1}.f32").unlink(missing_ok=True)

    def clean(self) -> None:
        shutil.rmtree(self._work)
