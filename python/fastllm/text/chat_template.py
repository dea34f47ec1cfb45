"""Chat templates: Jinja as transformers runs it, in a sandbox and with budgets.

The sandbox of Jinja keeps a template from reaching Python; it does not keep it from taking all time and memory
(`{{ 'a' * 10000000000 }}` is folded while the template is compiled). So nothing is folded, every loop turn and call
counts as a step, and whatever can make a large value checks its size first.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastllm.errors import CheckpointError, InvalidRequestError
from fastllm.text.tokenizer import read_json, token_text

T = TypeVar("T")

MAX_SOURCE = 256 << 10
MAX_OUTPUT = 4 << 20
MAX_STRING = 1 << 20
MAX_ITEMS = 100_000
MAX_STEPS = 300_000
MAX_DEPTH = 64
# Of the source: beyond this the recursive parser would be at risk.
MAX_NESTING = 200

FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "indent", "int",
    "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace",
    "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum", "title", "tojson", "trim", "unique",
    "upper",
)  # fmt: skip
_FORMAT_WIDTH = re.compile(r"%[^a-zA-Z%]*(\*|\d{4,})")


class _BudgetError(Exception):
    pass


class _GenerationTag(Extension):
    """`{% generation %}` marks the answer for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  (the name and form are Jinja's)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "+", "**", "%", "-", "/", "//"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_GenerationTag, loopcontrols],
        )
        self.steps = 0
        self.depth = 0
        self.globals = {
            "range": _range,
            "namespace": self.globals["namespace"],
            "dict": dict,
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.datetime.now().strftime(str(form)[:200]),
            "_turns": self._turns,
            "_concat": _concat,
        }
        known = dict(self.filters)
        known["tojson"] = _tojson
        self.filters = {name: self._limited(name, known[name]) for name in FILTERS}

    def count(self, steps: int = 1) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise _BudgetError(f"takes more than {MAX_STEPS} steps")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.count()
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, bytes, list, tuple)) and isinstance(times, int):
                    limit = MAX_STRING if isinstance(text, (str, bytes)) else MAX_ITEMS
                    _check_size(len(text) * max(0, times), limit, "a repetition")
            if isinstance(left, int) and isinstance(right, int):
                _check_size(left.bit_length() + right.bit_length(), 1024, "a number")
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                _check_size(left.bit_length() * max(0, right), 1024, "a power")
        elif operator == "%" and isinstance(left, str):
            if _FORMAT_WIDTH.search(left):
                raise _BudgetError("formats with a width above 999")
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            limit = MAX_OUTPUT if isinstance(left, str) else MAX_ITEMS
            _check_size(len(left) + len(right), limit, "a sum")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.count()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, (str, bytes)):
            name = getattr(obj, "__name__", "")
            if name in ("format", "format_map", "translate", "expandtabs"):
                raise _BudgetError(f"calls {name}() of a string, which is not available here")
            _check_growth(name, owner, args, kwargs)
        self.depth += 1
        try:
            if self.depth > MAX_DEPTH:
                raise _BudgetError(f"calls itself more than {MAX_DEPTH} levels deep")
            return super().call(context, obj, *args, **kwargs)
        finally:
            self.depth -= 1

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not attr.startswith("_") and super().is_safe_attribute(obj, attr, value)

    def _turns(self, iterable: Any) -> Any:
        """Stands around the iterable of every loop and counts its turns."""
        if isinstance(iterable, (str, list, tuple, dict, range)):
            self.count(len(iterable) + 1)
            return iterable
        return self._counted(iterable)

    def _counted(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.count()
            yield item

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts as a step and refuses to make something large."""
        shift = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

        def limited(*args: Any, **kwargs: Any) -> Any:
            self.count()
            values = args[shift:]
            if values and isinstance(values[0], (str, list, tuple, dict)):
                self.count(len(values[0]) // 16)
            if name == "join" and values:
                items = list(values[0])
                self.count(len(items))
                between = str(values[1]) if len(values) > 1 else str(kwargs.get("d", ""))
                size = sum(len(str(item)) for item in items) + len(between) * len(items)
                _check_size(size, MAX_OUTPUT, "a joined text")
                args = (*args[:shift], items, *values[1:])
            elif values and isinstance(values[0], str):
                _check_growth(name, values[0], values[1:], kwargs)
            elif name in ("list", "sort", "unique", "dictsort") and values and isinstance(values[0], str):
                _check_size(len(values[0]), MAX_ITEMS, "a list")
            return function(*args, **kwargs)

        marker = getattr(function, "jinja_pass_arg", None)
        if marker is not None:
            limited.jinja_pass_arg = marker  # type: ignore[attr-defined]
        return limited


def _range(*bounds: int) -> range:
    result = range(*bounds)
    _check_size(len(result), MAX_ITEMS, "range()")
    return result


def _concat(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)), MAX_OUTPUT, "a text")
    return "".join(texts)


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:1000])


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=None if indent is None else min(int(indent), 16))


def _check_size(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise _BudgetError(f"makes {what} of size {size}, the limit is {limit}")


def _check_growth(name: str, text: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """What a method or filter of a string could make of it."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, int):
            _check_size(abs(value), MAX_ITEMS, f"a number for {name}()")
    if name == "replace" and len(args) >= 2:
        _check_size(len(text) + (len(text) + 1) * len(str(args[1])), 16 * MAX_OUTPUT, "a replacement")
    if name == "indent" and args:
        width = args[0] if isinstance(args[0], int) else len(str(args[0]))
        _check_size(len(text) + text.count("\n") * width, MAX_OUTPUT, "an indented text")
    if name == "join" and args:
        items = list(args[0])
        _check_size(sum(len(str(item)) for item in items) + len(text) * len(items), MAX_OUTPUT, "a joined text")


def _check_nesting(source: str) -> None:
    depth = 0
    for c in source:
        if c in "([{":
            depth += 1
            if depth > MAX_NESTING:
                raise _BudgetError(f"nests brackets more than {MAX_NESTING} deep")
        elif c in ")]}":
            depth = max(0, depth - 1)


def _instrument(node: nodes.Node) -> None:
    """Puts counters around loops and replaces `~`; refuses what reaches outside. Works with a stack of its own."""
    stack: list[tuple[nodes.Node, int]] = [(node, 0)]
    while stack:
        current, depth = stack.pop()
        if depth > MAX_NESTING:
            raise _BudgetError(f"is nested more than {MAX_NESTING} deep")
        if isinstance(current, (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise _BudgetError("uses include, import or extends, which are not available here")
        for field, value in list(current.iter_fields()):
            if isinstance(value, nodes.Concat):
                setattr(current, field, _call("_concat", value.nodes))
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, nodes.Concat):
                        value[i] = _call("_concat", item.nodes)
        if isinstance(current, nodes.For):
            current.iter = _call("_turns", [current.iter])
        stack.extend((child, depth + 1) for child in current.iter_child_nodes())


def _call(function: str, arguments: list[Any]) -> nodes.Call:
    return nodes.Call(nodes.Name(function, "load"), arguments, [], None, None)


class ChatTemplate:
    """A compiled template. `render` may be called from several threads.

    Args:
        source: the Jinja text.
        bos_token, eos_token: available in the template under these names.

    Raises:
        InvalidRequestError: the template is not valid Jinja or exceeds a budget.
    """

    def __init__(self, source: str, bos_token: str | None = None, eos_token: str | None = None) -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        _guarded(self._compile, "chat template")

    def _compile(self) -> tuple[_Environment, jinja2.Template]:
        if len(self.source) > MAX_SOURCE:
            raise _BudgetError(f"has {len(self.source)} characters, the limit is {MAX_SOURCE}")
        _check_nesting(self.source)
        environment = _Environment()
        tree = environment.parse(self.source)
        _instrument(tree)
        for node in tree.find_all(nodes.Node):
            node.environment = environment
            if getattr(node, "lineno", None) is None:
                node.lineno = 1
        code = environment.compile(tree)
        return environment, jinja2.Template.from_code(environment, code, environment.globals)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation. Raises InvalidRequestError with the template's own message if it refuses."""
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or "role" not in message:
                raise InvalidRequestError(f'messages[{i}] must be a dict with "role" and "content"')

        def run() -> str:
            # A template is compiled per call: its environment holds the budget of that call.
            environment, template = self._compile()
            environment.steps = 0
            pieces: list[str] = []
            size = 0
            for piece in template.generate(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                **self._tokens,
                **variables,
            ):
                size += len(piece)
                environment.count()
                _check_size(size, MAX_OUTPUT, "an output")
                pieces.append(piece)
            return "".join(pieces)

        return _guarded(run, "chat template")


def _guarded(run: Callable[[], T], what: str) -> T:
    try:
        return run()
    except _BudgetError as error:
        raise InvalidRequestError(f"{what} {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise InvalidRequestError(f"{what}, line {error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:
        raise InvalidRequestError(f"{what}: {error.message or error}") from None
    except (RecursionError, MemoryError, SyntaxError):
        raise InvalidRequestError(f"{what} is nested too deep") from None
    except Exception as error:  # a template can make any operation of Python fail
        raise InvalidRequestError(f"{what}: {type(error).__name__}: {str(error)[:500]}") from None


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a model folder: chat_template.jinja, chat_template.json, or in tokenizer_config.json."""
    config = read_json(folder / "tokenizer_config.json")
    path = folder / "chat_template.jinja"
    source: Any
    if path.is_file():
        if path.stat().st_size > MAX_SOURCE * 4:
            raise CheckpointError(f"{path}: is larger than {MAX_SOURCE * 4} bytes")
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: is not UTF-8: {error}") from error
    else:
        source = read_json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(source, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: chat_template is {type(source).__name__}")
    try:
        return ChatTemplate(source, token_text(config.get("bos_token")), token_text(config.get("eos_token")))
    except InvalidRequestError as error:
        raise CheckpointError(f"{folder}: {error}") from error
