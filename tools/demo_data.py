"""Text for the demo model: Python's documentation sources and standard library (PSF licence), cleaned and split.

Prose comes from `Doc/**/*.rst`, a third as much from docstrings of the standard library, and a small part is turned
into conversations (module synopses, glossary entries), so that the chat template gives something sensible.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

END = "<|endoftext|>"
_ROLE = re.compile(r":(?:[\w:+-]+):`(?:[^`<]*<)?[!~]?([^`>]+)>?`")
_DIRECTIVE = re.compile(
    r"^\s*\.\. (?!code-block|note|warning|seealso|versionadded|versionchanged|deprecated|function|"
    r"class|method|data|module|attribute|exception|glossary).*$",
    re.MULTILINE,
)
_OPTION = re.compile(r"^\s+:\w[\w -]*:.*$", re.MULTILINE)
_SYNOPSIS = re.compile(r"^\.\. module:: (\S+)\s*\n(?:\s+:\w+:.*\n)*?\s+:synopsis: (.+)$", re.MULTILINE)


def clean_rst(text: str) -> str:
    """Takes markup out that a reader of plain text would not miss."""
    text = _DIRECTIVE.sub("", text)
    text = _OPTION.sub("", text)
    text = _ROLE.sub(r"\1", text)
    text = re.sub(
        r"^\s*\.\. (function|class|method|data|module|attribute|exception):: ", r"\1 ", text, flags=re.MULTILINE
    )
    text = re.sub(r"^\s*\.\. (versionadded|versionchanged|deprecated):: (\S+)", r"\1 in version \2:", text, flags=re.M)
    text = re.sub(r"^\s*\.\. (note|warning|seealso)::", lambda m: m[1].capitalize() + ":", text, flags=re.MULTILINE)
    text = re.sub(r"^[=\-~^*#\"]{3,}\s*$", "", text, flags=re.MULTILINE)
    text = text.replace("``", "`")
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def is_held_out(name: str) -> bool:
    """About 2 % of the files, by a hash of their name; .rst (checkouts) and .rst.txt (packages) are split alike."""
    if name.endswith(".rst"):
        name += ".txt"
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 50 == 0


def doc_files(docs: Path) -> list[Path]:
    """Documentation sources: `*.rst`, or `*.rst.txt` as some distributions ship them."""
    return sorted(p for p in docs.rglob("*") if p.name.endswith((".rst", ".rst.txt")))


def docstrings(root: Path) -> Iterator[tuple[str, str]]:
    """(file name, its docstrings with the signatures they belong to) of a standard library."""
    skip = {"test", "tests", "idlelib", "lib2to3", "site-packages", "encodings", "pydoc_data", "turtledemo"}
    for path in sorted(root.rglob("*.py")):
        if skip & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        parts = []
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text) > 60:
                    head = "" if isinstance(node, ast.Module) else f"{node.name}\n\n"
                    parts.append(head + text)
        if parts:
            yield str(path.relative_to(root)), "\n\n".join(parts)


def conversations(texts: list[str]) -> list[str]:
    """Questions and answers found in the sources, in the chat format of the tokenizer."""
    out = []
    for text in texts:
        for name, synopsis in _SYNOPSIS.findall(text):
            answer = clean_rst(synopsis)
            for question in (f"What is the {name} module for?", f"What does the {name} module do?"):
                out.append(_turns(question, f"The {name} module: {answer}"))
        if ".. glossary::" in text:
            for term, body in re.findall(r"^   (\w[\w -]*)\n((?:      .*\n|\n)+)", text, re.MULTILINE):
                out.append(_turns(f"What is a {term}?", " ".join(clean_rst(body).split())[:600]))
    return out


def _turns(question: str, answer: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"


def build(docs: Path, stdlib: Path, seed: int) -> tuple[list[str], list[str]]:
    """Documents to train on and documents held out."""
    train, held_out, sources = [], [], []
    for path in doc_files(docs):
        raw = path.read_text(encoding="utf-8", errors="ignore")
        text = clean_rst(raw)
        if len(text) < 400:
            continue
        if is_held_out(path.name):
            held_out.append(text)
        else:
            train.append(text)
            sources.append(raw)
    prose = sum(map(len, train))
    budget = prose // 3
    strings = [(name, text) for name, text in docstrings(stdlib) if not is_held_out(name)]
    random.Random(seed).shuffle(strings)
    for _, text in strings:
        if budget <= 0:
            break
        train.append(text[:20000])
        budget -= len(train[-1])
    train.extend(conversations(sources) * 3)
    return train, held_out
