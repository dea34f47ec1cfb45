"""What is finished of a quantization, so that a process that was killed can be started again and goes on.

OUT.partial holds the files of the finished layers, and in `work/` the journal and the activations that go into the next
layer. A journal belongs to one job: settings, model, data and code. Another job is refused, not mixed in.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastllm.checkpoint.files import read_json_object
from fastllm.errors import CheckpointError, InvalidRequestError
from fastllm.quantize.writer import published, write_json

WORK = "work"
F32 = npt.NDArray[np.float32]


class Journal:
    def __init__(self, partial: Path, job: dict[str, Any]) -> None:
        self.folder = partial
        self._work = partial / WORK
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

    def _hidden_path(self, layer: int) -> Path:
        return self._work / f"hidden-{layer}.f32"

    def hidden(self, layer: int, shape: tuple[int, ...]) -> F32:
        """The inputs of a layer, float32 [S, L, E], in a file: they need no memory of this process for long."""
        path = self._hidden_path(layer)
        if path.stat().st_size != 4 * math.prod(shape):
            raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, expected {4 * math.prod(shape)}")
        return np.memmap(path, np.float32, "r", shape=shape)

    def write_hidden(self, layer: int, pieces: Iterable[Tensor]) -> None:
        """Written, not mapped: a full disk is an error then, and on the disk before the journal says so."""
        with published(self._hidden_path(layer)) as file:
            for piece in pieces:
                file.write(piece.contiguous().numpy().data)

    def finish(self, entry: dict[str, Any]) -> None:
        """The layer after the finished ones is on the disk, and so are the inputs of the one after it."""
        self.layers.append(entry)
        self._write()
        self._hidden_path(len(self.layers) - 1).unlink(missing_ok=True)
