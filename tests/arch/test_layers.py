"""The arrows of docs/design.md: who may include or import whom."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Folder of csrc -> folders it may include (itself always).
MAY_INCLUDE = {
    "core": set(),
    "ops": {"core"},
    "reference": {"core", "ops"},
    "cpu": {"core", "ops"},
    "cuda": {"core", "ops"},
    "model": {"core", "ops"},
    "kv": {"core", "ops"},
    "text": {"core"},
    "engine": {"core", "ops", "model", "kv", "text"},
    "bindings": {"core", "ops", "reference", "cpu", "cuda", "model", "kv", "text", "engine"},
}
# Subpackage of fastllm -> modules of fastllm it must not import.
MUST_NOT_IMPORT = {
    "models": {"llm", "async_llm", "cli", "text"},
    "checkpoint": {"llm", "async_llm", "cli"},
    "text": {"llm", "async_llm", "cli", "models", "checkpoint"},
}


def native_files():
    return sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu"})


@pytest.mark.parametrize("path", native_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_native_file_includes_only_what_its_layer_may(path):
    layer = path.relative_to(ROOT / "csrc").parts[0]
    allowed = MAY_INCLUDE[layer] | {layer}
    for included in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
        assert included.split("/")[0] in allowed, f"{path.name} includes {included}"


@pytest.mark.parametrize("path", native_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_bindings_see_nanobind(path):
    if path.relative_to(ROOT / "csrc").parts[0] != "bindings":
        assert "nanobind" not in re.sub(r"//.*", "", path.read_text())


@pytest.mark.parametrize("package", sorted(MUST_NOT_IMPORT))
def test_python_layer_imports_only_downwards(package):
    for path in (ROOT / "python" / "fastllm" / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "fastllm" and len(parts) > 1:
                    assert parts[1] not in MUST_NOT_IMPORT[package], f"{path.name} imports {name}"


def test_no_pickle_in_the_package():
    for path in (ROOT / "python").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] not in {"pickle", "shelve", "marshal"} for alias in node.names), (
                    path
                )
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in {"pickle", "shelve", "marshal"}, path


def test_no_std_regex_in_the_core():
    for path in native_files():
        assert "std::regex" not in re.sub(r"//.*", "", path.read_text()), path
