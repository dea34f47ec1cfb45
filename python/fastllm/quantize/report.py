"""quantization_report.json: what was made of what, with what, and how far it is from it. Bound to the files by hashes.

`files` are the SHA-256 of the output's weights and config: verify() tells a report that belongs to a folder from one
that was put there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastllm.checkpoint.files import read_json_object
from fastllm.errors import CheckpointError

REPORT = "quantization_report.json"


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10
    state = hashlib.sha256()
    while piece := file.read(1 << 20):
        state.update(piece)
    return state.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """What decides what a checkpoint computes."""
    return sorted(path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name == "config.json")


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256(path) for path in paths}


def code_version() -> dict[str, str]:
    """Version of the package, and a hash of the code that quantizes."""
    import fastllm

    state = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        state.update(path.read_bytes())
    return {"fastllm": fastllm.__version__, "quantize_sha256": state.hexdigest()}


def summarize(modules: Sequence[dict[str, Any]], method: str) -> dict[str, Any]:
    """Sizes and errors over all modules, and those that fell back to round-to-nearest."""
    elements = sum(m["elements"] for m in modules)
    size = sum(m["bytes"] for m in modules)
    compared = [m for m in modules if m["error_rtn"] is not None and m["method"] != "rtn"]
    return {
        "modules": len(modules),
        "linear_bytes": size,
        "linear_bytes_bf16": 2 * elements,
        "share_of_bf16": size / (2 * elements) if elements else None,
        "mean_error": sum(m["error"] for m in modules) / len(modules) if modules else None,
        "compared_with_rtn": len(compared),
        "better_than_rtn": sum(m["error"] < m["error_rtn"] for m in compared),
        "fallbacks": [
            {"module": m["name"], "tokens": m["tokens"]} for m in modules if method != "rtn" and m["method"] == "rtn"
        ],
    }


def modules_of(folder: Path) -> list[dict[str, Any]]:
    """The modules of a folder's report, each with its name and its error; none without a report."""
    if not (folder / REPORT).is_file():
        return []
    modules = read_json_object(folder, REPORT).get("modules")
    if not isinstance(modules, list) or not all(map(_is_module, modules)):
        raise CheckpointError(f"{folder / REPORT}: modules: expected a list of objects with name and error")
    return modules


def _is_module(value: Any) -> bool:
    return (
        isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("error"), (int, float))
    )


def verify(folder: Path) -> dict[str, Any]:
    """The report of a folder, if its gate was passed and its files are those that were measured.

    Raises:
        CheckpointError: no report, no gate, a gate that was not passed or that nobody knows how it was measured,
            or files that differ.
    """
    if not folder.is_dir() or not (folder / REPORT).exists():
        raise CheckpointError(f"{folder}: has no {REPORT}; `fastllm quantize --gate` writes one")
    report = read_json_object(folder, REPORT)
    gate = report.get("gate")
    if not isinstance(gate, dict) or gate.get("passed") is not True:
        finding = "was not passed" if isinstance(gate, dict) else "is missing: it was quantized without --gate"
        raise CheckpointError(f"{folder / REPORT}: the gate {finding}")
    measured = report.get("evaluation")
    if not isinstance(measured, dict) or not isinstance(measured.get("options"), dict):
        raise CheckpointError(f"{folder / REPORT}: does not say how its gate was measured; quantize it anew")
    expected = report.get("files")
    found = hashes(weight_files(folder))
    if expected != found:
        names = expected.keys() ^ found.keys() if isinstance(expected, dict) else set()
        wrong = sorted(names) or sorted(n for n in found if isinstance(expected, dict) and expected[n] != found[n])
        raise CheckpointError(f"{folder / REPORT}: is not of these files: {', '.join(wrong[:5]) or 'none are listed'}")
    return report
