"""Grammars for calls: so that a call that must come does come, and arguments fit a strict schema.

The text is that of the model's own style (``tools.STYLES``), so the parser of calls reads it as it reads any other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from fastllm import StructuredOutputsParams
from fastllm.server.openai.reasoning import BEGIN, END
from fastllm.server.openai.tools import FunctionSpec, Style
from fastllm.structured.grammar import Behind

MAX_PARALLEL_CALLS = 16
_ANY_OBJECT: dict[str, object] = {"type": "object"}

# Text -> a literal of the grammar. Some models have markers that are special tokens and must be named by their id.
Literal = Callable[[str], str]


def forced_calls(
    style: Style, functions: Sequence[FunctionSpec], literal: Literal, *, one_call: bool
) -> StructuredOutputsParams:
    """Nothing but calls of these functions."""

    def many(item: str, between: str) -> str:
        return item if one_call else f"{item} ({_quoted(between)} {item}){{0,{MAX_PARALLEL_CALLS - 1}}}"

    begin = literal(style.begin)
    if style.name == "hermes":
        start = f'start: {many("call", chr(10))}\ncall: {begin} "\\n" object "\\n" {literal(style.end)}'
    elif style.name == "mistral":
        start = f'start: {begin} "[" {many("object", ", ")} "]"'
    else:
        start = f"start: {many('object', '; ')}"
    return StructuredOutputsParams(grammar=f"{start}\n{_objects(style, functions)}")


def strict_calls(style: Style, functions: Sequence[FunctionSpec], literal: Literal) -> StructuredOutputsParams:
    """Any text, and in it calls whose arguments fit: the schema of strict functions, any object for others."""
    begin, end = literal(style.begin), literal(style.end)
    if style.name == "mistral":
        # Nothing says where its calls end, so they end the answer.
        call, start = f'{begin} "[" object (", " object){{0,{MAX_PARALLEL_CALLS - 1}}} "]"', "TEXT | call"
    else:
        call, start = f'{begin} "\\n" object "\\n" {end}', "call* TEXT"
    if begin.startswith('"'):
        # The marker is plain text: the text before it ends with it, as early as it can.
        call = f"marked {call.removeprefix(begin)}"
        before = f"marked[lazy]: /(.|\\n)*/ {begin}"
    else:
        call, before = f"TEXT {call}", ""
    objects = _objects(style, functions, strict=True)
    return StructuredOutputsParams(grammar=f"start: {start}\ncall: {call}\nTEXT: /(.|\\n)*/\n{before}\n{objects}")


def after_reasoning(params: StructuredOutputsParams, literal: Literal, *, is_inside: bool) -> StructuredOutputsParams:
    """The same behind the end of the model's reasoning, which is free text."""
    begin, end = "" if is_inside else literal(BEGIN), literal(END)
    if end.startswith('"'):
        thought = f"thought: {begin} text\ntext[lazy]: /(.|\\n)*/ {end}"
    else:
        thought = f"thought: {begin} /(.|\\n)*/ {end}"
    head = f"start: (thought /\\n{{0,2}}/){'' if is_inside else '?'} @answer\n{thought}"
    given = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return Behind(head=head, **given)


def _objects(style: Style, functions: Sequence[FunctionSpec], *, strict: bool = False) -> str:
    names = " | ".join(f"object_{i}" for i in range(len(functions)))
    rules = [f"object: {names}"]
    key = "parameters" if style.name == "llama3_json" else "arguments"
    for i, function in enumerate(functions):
        schema = _ANY_OBJECT if strict and not function.strict else function.parameters or _ANY_OBJECT
        head = _quoted(f'{{"name": {json.dumps(function.name)}, "{key}": ')
        rules.append(f'object_{i}: {head} %json {json.dumps(schema)} "}}"')
    return "\n".join(rules)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
