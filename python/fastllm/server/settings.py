"""Files that a server is told by: API keys, prices, and the YAML with the options of ``fastllm serve``."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fastllm.checkpoint.resolve import resolve
from fastllm.errors import InvalidRequestError
from fastllm.quantize.report import verify
from fastllm.server.config import ApiKey
from fastllm.server.cost import Price

MAX_FILE_BYTES = 1 << 20


def read_yaml(path: Path) -> Any:
    """Data of a small YAML file. Raises InvalidRequestError, without quoting the file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            raise InvalidRequestError(f"{path}: is not a regular file of at most {MAX_FILE_BYTES} bytes")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: cannot be read ({type(error).__name__})") from None
    except (yaml.YAMLError, RecursionError):
        raise InvalidRequestError(f"{path}: is not valid YAML") from None


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """A list of objects with the fields of ApiKey, or one key a line.

    Raises:
        InvalidRequestError: with the number of the entry, never its content.
    """
    value = read_yaml(path)
    if isinstance(value, str):  # plain lines are one YAML string
        value = [{"name": f"key-{i}", "secret": line} for i, line in enumerate(value.split(), start=1)]
    if not isinstance(value, list) or not value:
        raise InvalidRequestError(f"{path}: expected a list of keys, or one key a line")
    known = {field.name for field in dataclasses.fields(ApiKey)}
    keys = []
    for i, entry in enumerate(value, start=1):
        if not isinstance(entry, dict) or not {"name", "secret"} <= entry.keys() <= known:
            raise InvalidRequestError(
                f"{path}: key {i}: needs name and secret, and may have {', '.join(sorted(known))}"
            )
        for name, item in entry.items():
            text = name in ("name", "secret", "cache_salt")
            if not isinstance(item, str if text else (int, float)) or isinstance(item, bool):
                raise InvalidRequestError(f"{path}: key {i}: {name} has the wrong type")
            if isinstance(item, (int, float)) and name != "priority" and not item > 0:
                raise InvalidRequestError(f"{path}: key {i}: {name} must be positive")
        keys.append(ApiKey(**entry))
    return tuple(keys)


def read_prices(path: Path) -> dict[str, Price]:
    """A YAML table: served model name -> currency, device_hour, kv_gib_hour. Raises InvalidRequestError."""
    table = read_yaml(path)
    if not isinstance(table, dict) or not table:
        raise InvalidRequestError(f"{path}: expected model names with their prices")
    known = {field.name for field in dataclasses.fields(Price)}
    found = {}
    for name, entry in table.items():
        if not isinstance(name, str) or not isinstance(entry, dict) or not {"currency"} <= entry.keys() <= known:
            raise InvalidRequestError(f"{path}: {name}: needs currency, and may have {', '.join(sorted(known))}")
        currency = entry["currency"]
        if not isinstance(currency, str) or not currency.isalnum() or len(currency) > 16:
            raise InvalidRequestError(f"{path}: {name}: currency must be a short word")
        for field, value in entry.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if field != "currency" and not (is_number and 0 <= value < 1e12):
                raise InvalidRequestError(f"{path}: {name}: {field} must be a number from 0")
        found[name] = Price(**entry)
    return found


# Options of an engine that change what a model computes: a gate holds for the values that it was measured with.
_MEASURED = ("dtype", "quantization", "activation_mode", "kv_cache_dtype")


def check_gate(model: str | None, revision: str | None, engine: Mapping[str, Any]) -> None:
    """`engine`: the options that it is served with.

    Raises:
        CheckpointError: the folder has no quantization report that is of its files and passed its gate.
        InvalidRequestError: it passed with other options than these.
    """
    folder = resolve(model, revision)
    how = verify(folder)["evaluation"]["options"]
    differing = [name for name in _MEASURED if engine[name] != how.get(name, "unknown")]
    if differing:
        name = differing[0]
        raise InvalidRequestError(
            f"--require-gate: {folder} passed its gate with {name} = {how.get(name, 'unknown')!r}, and is to be served "
            f"with {engine[name]!r}; leave the option out, or quantize with evaluation=EvalOptions({name}=...)"
        )
    if engine["load_format"] == "dummy":
        raise InvalidRequestError("--require-gate: load_format 'dummy' serves random weights, which pass no gate")
