"""Typed access to config.json. A model folder is data: known keys are read with type and range, others are ignored.

Missing and null are the same, as in transformers. NaN and infinity are refused where a value is read, so that the
message names the key.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastllm.checkpoint.files import read_json_object
from fastllm.errors import CheckpointError, UnsupportedModelError

MAX_CONFIG_BYTES = 16 << 20
_REQUIRED: Any = object()
# Inside the class these names mean its methods.
_Int = int
_Float = float
_Bool = bool
_Str = str
_LARGEST = 2**31 - 1


class Config:
    """One JSON object of config.json; `where` names file and section in messages."""

    def __init__(self, values: dict[_Str, Any], where: _Str = "config.json", path: _Str = "") -> None:
        self.values = values
        self.where = where
        self.path = path

    @classmethod
    def load(cls, folder: Path) -> Config:
        return cls(read_json_object(folder, "config.json", MAX_CONFIG_BYTES), str(folder / "config.json"))

    def wrong(self, key: _Str, finding: _Str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {self.path}{key} {finding}")

    def unsupported(self, key: _Str, finding: _Str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.where}: {self.path}{key} {finding}")

    def optional(self, key: _Str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def has(self, key: _Str) -> _Bool:
        return self.values.get(key) is not None

    def _get(self, keys: tuple[_Str, ...], default: Any, kind: _Str) -> tuple[_Str, Any]:
        """The first of several spellings that is present, or the default."""
        for key in keys:
            if self.has(key):
                return key, self.values[key]
        if default is _REQUIRED:
            raise self.wrong(" or ".join(keys), f"is missing, expected {kind}")
        return keys[0], default

    def int(self, *keys: _Str, min: _Int = 0, max: _Int = _LARGEST, default: Any = _REQUIRED) -> Any:
        key, value = self._get(keys, default, "an integer")
        if value is default and default is not _REQUIRED:
            return value
        if type(value) is not int or not min <= value <= max:
            raise self.wrong(key, f"is {_short(value)}, expected an integer in [{min}, {max}]")
        return value

    def float(self, *keys: _Str, min: _Float = -3.0e38, max: _Float = 3.0e38, default: Any = _REQUIRED) -> Any:
        key, value = self._get(keys, default, "a number")
        if value is default and default is not _REQUIRED:
            return value
        # Written so that NaN fails; a huge integer is compared before it is converted.
        if type(value) not in (int, float) or not min <= value <= max:
            raise self.wrong(key, f"is {_short(value)}, expected a number in [{min:g}, {max:g}]")
        return float(value)

    def bool(self, *keys: _Str, default: Any = _REQUIRED) -> _Bool:
        key, value = self._get(keys, default, "true or false")
        if type(value) is not bool:
            raise self.wrong(key, f"is {_short(value)}, expected true or false")
        return value

    def str(self, *keys: _Str, default: Any = _REQUIRED) -> Any:
        key, value = self._get(keys, default, "a string")
        if value is not default and not isinstance(value, str):
            raise self.wrong(key, f"is {_short(value)}, expected a string")
        return value

    def section(self, key: _Str) -> Config | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, f"is {_short(value)}, expected an object")
        return Config(value, self.where, f"{self.path}{key}.")

    def floats(self, key: _Str, length: _Int, min: _Float, max: _Float) -> list[_Float]:
        values = self._list(key, length)
        for i, value in enumerate(values):
            if type(value) not in (int, float) or not min <= value <= max:
                raise self.wrong(f"{key}[{i}]", f"is {_short(value)}, expected a number in [{min:g}, {max:g}]")
        return [float(value) for value in values]

    def ints(self, key: _Str, min: _Int, max: _Int) -> list[_Int]:
        values = self._list(key, None)
        for i, value in enumerate(values):
            if type(value) is not int or not min <= value <= max:
                raise self.wrong(f"{key}[{i}]", f"is {_short(value)}, expected an integer in [{min}, {max}]")
        return values

    def strs(self, key: _Str, length: _Int, known: tuple[_Str, ...]) -> list[_Str]:
        values = self._list(key, length)
        for i, value in enumerate(values):
            if value not in known:
                raise self.unsupported(f"{key}[{i}]", f"is {_short(value)} ({', '.join(known)} are known)")
        return values

    def _list(self, key: _Str, length: _Int | None) -> list[Any]:
        values = self.values.get(key)
        if not isinstance(values, list) or (length is not None and len(values) != length):
            expected = "a list" if length is None else f"a list of {length} entries"
            found = f"a list of {len(values)}" if isinstance(values, list) else _short(values)
            raise self.wrong(key, f"is {found}, expected {expected}")
        return values

    def require(self, key: _Str, known: tuple[Any, ...], default: Any) -> Any:
        """A key whose unknown values would run wrongly: refuse them by name."""
        value = self.optional(key, default)
        if not any(type(value) is type(k) and value == k for k in known):
            raise self.unsupported(key, f"is {_short(value)}; only {' or '.join(map(_short, known))} is supported")
        return value

    @property
    def architecture(self) -> _Str:
        names = self.values.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise self.wrong("architectures", f"is {_short(names)}, expected a list with the name of the architecture")
        return names[0]

    @property
    def dtype(self) -> _Str | None:
        """Type of the checkpoint by its config: "float32", "bfloat16", "float16" or None."""
        nested = self.section("text_config")
        value = self.str("dtype", "torch_dtype", default=None)
        if value is None and nested is not None:
            value = nested.str("dtype", "torch_dtype", default=None)
        if value is None:
            return None
        name = value.removeprefix("torch.")
        if name not in ("float32", "bfloat16", "float16"):
            raise self.unsupported("torch_dtype", f"is {_short(value)}; float32, bfloat16 and float16 are known")
        return str(name)


def _short(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if type(value) is int and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 100 else text[:97] + "..."
