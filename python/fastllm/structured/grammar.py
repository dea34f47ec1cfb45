"""From ``StructuredOutputsParams`` to the text of a grammar for llguidance, within the limits.

Everything here is cheap and refuses with a text that names the parameter. What a grammar costs to compile is bounded by
the limits of the parser (``compiler``) and, where one step costs more than its text shows and nothing stops it, by
``MAX_REPEATS`` (a counted repeat of a counted repeat) and ``MAX_MULTIPLE`` (the automaton of a remainder).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from fastllm.errors import InvalidRequestError
from fastllm.params import StructuredOutputsParams

MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 32
MAX_REGEX_BYTES = 1 << 10
MAX_GRAMMAR_BYTES = 64 << 10
MAX_CHOICES = 1024
# Characters of a regular expression with its counted repeats written out.
MAX_REPEATS = 20_000
# States of the automaton of a number's remainder: 20,000 take 0.1 s, 1,000,000 take 17 s and 400 MiB.
MAX_MULTIPLE = 20_000

# Of JSON, as regular expressions: at most one space, so that a model that likes white space comes to an end.
_COMMA, _COLON = ", ?", ": ?"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Behind(StructuredOutputsParams):
    """The same behind a text of another kind.

    Args:
        head: Lark that goes on with ``@answer``: a grammar of its own, so no name of one has a meaning in the other.
    """

    head: str


def grammar_text(params: StructuredOutputsParams) -> str:
    """The grammar, as llguidance reads it.

    Raises:
        InvalidRequestError: not exactly one kind is given, a limit is exceeded, or the text cannot be a grammar.
    """
    grammars = [{"name": "answer", **_grammar(params)}]
    if isinstance(params, Behind):
        grammars.insert(0, {"lark_grammar": params.head})
    return json.dumps({"grammars": grammars})


def _grammar(params: StructuredOutputsParams) -> dict[str, Any]:
    import llguidance
    from llguidance.gbnf_to_lark import any_to_lark

    kind, value = _the_kind(params)
    if kind in ("json", "json_object"):
        schema = _schema(value) if kind == "json" else {"type": "object"}
        # What a schema says of its own whitespace or leniency is not asked.
        return {"json_schema": {**schema, "x-guidance": _json_options(params)}}
    if kind == "regex":
        _check_regex(value, "regex")
        return {"lark_grammar": json.loads(llguidance.grammar_from("regex", value))["grammars"][0]["lark_grammar"]}
    if kind == "choice":
        return {"lark_grammar": llguidance.grammar_from("choice", json.dumps(_choices(value)))}
    _check_grammar(value)
    try:
        lark = any_to_lark(value)
    except Exception:  # of several kinds
        raise _invalid("grammar is neither Lark nor GBNF") from None
    return {"lark_grammar": _with_checked_schemas(lark, _json_options(params))}


def _json_options(params: StructuredOutputsParams) -> dict[str, Any]:
    return {
        "whitespace_flexible": False,
        "item_separator": "," if params.disable_any_whitespace else _COMMA,
        "key_separator": ":" if params.disable_any_whitespace else _COLON,
        "lenient": False,
        "coerce_one_of": False,
    }


def _invalid(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"structured_outputs: {what}")


def _the_kind(params: StructuredOutputsParams) -> tuple[str, Any]:
    if not isinstance(params, StructuredOutputsParams):
        raise _invalid(f"is {type(params).__name__}, expected StructuredOutputsParams")
    given = {
        "json": params.json,
        "regex": params.regex,
        "choice": params.choice,
        "grammar": params.grammar,
        "json_object": params.json_object or None,
    }
    found = [(name, value) for name, value in given.items() if value is not None]
    if len(found) != 1:
        raise _invalid(f"{len(found)} of {', '.join(given)} are given, expected exactly one")
    name, value = found[0]
    if name in ("regex", "grammar") and not isinstance(value, str):
        raise _invalid(f"{name} is {type(value).__name__}, expected a string")
    return name, value


def _size(text: str, what: str, limit: int) -> None:
    size = len(text.encode("utf-8", "replace"))
    if not 1 <= size <= limit:
        raise _invalid(f"{what} has {size} bytes, 1 to {limit} are allowed")


def _schema(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        _size(value, "json", MAX_SCHEMA_BYTES)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _invalid("json is a string that is not valid JSON") from None
    if not isinstance(value, Mapping):
        raise _invalid(f"json is {type(value).__name__}, expected a JSON schema: an object")
    _check_depth(value, 1)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise _invalid("json holds what is not JSON") from None
    _size(text, "json", MAX_SCHEMA_BYTES)
    # All may meet in one number, through allOf and $ref; all with one small common multiple are also few.
    if math.lcm(*_multiples(value)) > MAX_MULTIPLE:
        raise _invalid(f"json: multipleOf: the least common multiple of all must be at most {MAX_MULTIPLE}")
    return value


def _multiples(value: Any) -> Iterator[int]:
    """The digits of every multipleOf: zeros at their end, and where the point is, cost no states."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == "multipleOf" and isinstance(item, (int, float)) and not isinstance(item, bool) and item != 0:
                yield int("".join(map(str, Decimal(str(item)).as_tuple().digits)).rstrip("0"))
            yield from _multiples(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _multiples(item)


def _check_depth(value: Any, depth: int) -> None:
    """Also looks at the regular expressions on the way."""
    if depth > MAX_SCHEMA_DEPTH:
        raise _invalid(f"json is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == "pattern" and isinstance(item, str):
                _check_regex(item, "json: pattern")
            if name == "patternProperties" and isinstance(item, Mapping):
                for pattern in item:
                    _check_regex(str(pattern), "json: patternProperties")
            _check_depth(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_depth(item, depth + 1)


def _choices(value: Any) -> list[str]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or not all(isinstance(c, str) for c in value):
        raise _invalid("choice must be a list of strings")
    if not 1 <= len(value) <= MAX_CHOICES:
        raise _invalid(f"choice has {len(value)} strings, 1 to {MAX_CHOICES} are allowed")
    if "" in value:
        raise _invalid("choice contains an empty string")
    _size("".join(value), "choice", MAX_GRAMMAR_BYTES)
    return list(value)


def _check_regex(pattern: str, what: str) -> None:
    _size(pattern, what, MAX_REGEX_BYTES)
    size = written_out(pattern)
    if size > MAX_REPEATS:
        raise _invalid(f"{what} has {size} characters with its repeats written out, {MAX_REPEATS} are allowed")


_COUNTED = re.compile(r"\{(\d{1,9})(?:(,)(\d{0,9}))?\}")


def written_out(pattern: str) -> int:
    """About the length of a regular expression with its counted repeats written out."""
    sizes = [0]  # of each open group
    last = 0  # of the last atom, which a repeat multiplies
    i = 0
    while i < len(pattern):
        c = pattern[i]
        if c == "\\":
            i, last = i + 1, 1
        elif c == "[":
            i, last = _class_end(pattern, i), 1
        elif c == "(":
            sizes.append(0)
            last = 0
            i += 1
            continue
        elif c == ")" and len(sizes) > 1:
            last = sizes.pop()
        elif (found := _COUNTED.match(pattern, i)) is not None:
            times = max(int(found[1]), int(found[3] or 0), 1)
            sizes[-1] += last * (times - 1)
            i, last = found.end(), last * times
            continue
        else:
            last = 1
        sizes[-1] += last
        i += 1
    return sum(sizes)


def _class_end(pattern: str, i: int) -> int:
    """The position of the ] that ends the class which begins at i."""
    j = i + 2 if pattern[i + 1 : i + 2] in ("]", "^") else i + 1
    while j < len(pattern) and pattern[j] != "]":
        j += 2 if pattern[j] == "\\" else 1
    return j


# What may hold anything in Lark (comments, strings, regular expressions, names of tokens), and what it is not in.
_LEXEME = re.compile(r'(?:#|//)[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\])+/|<[^<>\s]+>|%json')
_SPACE = re.compile(r"\s*")


def _with_checked_schemas(text: str, options: dict[str, Any]) -> str:
    """Lark may hold JSON schemas, after %json: they are checked, and take our options."""
    pieces: list[str] = []
    copied = at = 0
    while (found := _LEXEME.search(text, at)) is not None:
        at = found.end()
        if found[0] != "%json":
            continue
        space = _SPACE.match(text, at)
        try:
            schema, end = json.JSONDecoder().raw_decode(text, space.end() if space else at)
        except (ValueError, RecursionError):
            raise _invalid("grammar: %json is not followed by a JSON schema") from None
        pieces += [text[copied:at], " ", json.dumps({**_schema(schema), "x-guidance": options})]
        copied = at = end
    return "".join([*pieces, text[copied:]])


def _check_grammar(text: str) -> None:
    _size(text, "grammar", MAX_GRAMMAR_BYTES)
    # Rules may repeat each other, so nesting cannot be seen in the text: the three largest may all be nested.
    counts = sorted((max(int(m[1]), int(m[3] or 0)) for m in _COUNTED.finditer(text)), reverse=True)[:3]
    product = 1
    for count in counts:
        product *= max(count, 1)
    if product > 10 * MAX_REPEATS:
        raise _invalid(f"grammar has repeats of {', '.join(map(str, counts))}, their product must be at most 200000")
