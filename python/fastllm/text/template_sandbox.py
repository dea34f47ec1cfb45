"""Jinja for templates that nobody vouches for: no way to Python, and a budget of work and memory.

The sandbox of Jinja keeps a template from reaching Python; it does not keep it from taking all time and memory
(`{{ 'a' * 10000000000 }}` is folded while the template is compiled). Here everything that a template can make happen
costs steps:

    a turn of a loop, a call of a macro    the number of nodes in its body
    a filter, test, call, operator         1, and the weight of what it reads
    the weight of a text                   1 per 1,024 characters
    the weight of a list or dict           1 per element, and the weight of the elements, however deep

so MAX_STEPS bounds time (a step takes about a microsecond at most) and what is made (300 MB at the very most). What
grows faster than what it reads (repetition, padding, formatting with widths, powers) checks its result first. Methods
are those of a list (METHODS): the others can do more than templates need.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_SOURCE = 256 << 10
MAX_TOKENS = 10_000  # of the source: compiling one takes 20 to 30 microseconds
MAX_OUTPUT = 4 << 20
MAX_STRING = 1 << 20  # made by repetition
MAX_ITEMS = 100_000
MAX_STEPS = 300_000
MAX_DEPTH = 64
MAX_NESTING = 200  # of the source: beyond this the recursive parser would be at risk


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Read their input as they go, or not at all; the elements are paid for where they come out.
LAZY_FILTERS = _names(
    "abs batch count d default first float int items last length list map reject rejectattr reverse round safe select "
    "selectattr slice"
)
FILTERS = LAZY_FILTERS | _names(
    "capitalize dictsort e escape format groupby indent join lower max min replace sort string sum title tojson trim "
    "unique upper"
)
METHODS: dict[type, frozenset[str]] = {
    str: _names(
        "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit "
        "isidentifier islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix "
        "removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase "
        "title upper zfill"
    ),
    dict: _names("copy get items keys values"),
    list: _names("copy count index"),
    tuple: _names("count index"),
}
_VIEWS = (KeysView, ValuesView, ItemsView)
_CONTAINERS = (list, tuple, dict, Namespace, *_VIEWS)
# A conversion of the % operator whose width or precision is not a small number, or is there at all; in texts with
# `%(name)s`, any number, for what a name may contain is hard to say.
_LARGE_WIDTH, _LARGE_NUMBER = re.compile(r"%[^a-zA-Z%]*?(?:\*|\d{4})"), re.compile(r"\*|\d{4}")
_ANY_WIDTH, _ANY_NUMBER = re.compile(r"%[^a-zA-Z%]*?\d"), re.compile(r"\d")
_FORMAT_SPEC = re.compile(r"\{[^{}]*:")


class BudgetError(Exception):
    """A template wants more than it may have."""


class _GenerationTag(Extension):
    """`{% generation %}` marks the answer for training; here it is a scope, as its block is in transformers."""

    tags = {"generation"}  # noqa: RUF012  (the name and form are Jinja's)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class TemplateNamespace(Namespace):
    """`namespace()`; its attributes are of the kind that a template may read."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise BudgetError(f"sets {str(name)[:100]!r} of a namespace; names that begin with '_' are not available")
        super().__setitem__(name, value)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates, and holds the budget of one rendering: each rendering makes its own."""

    intercepted_binops = frozenset(("*", "+", "**", "%", "-", "/", "//"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self._printed,
            extensions=[_GenerationTag, loopcontrols],
        )
        self._steps = 0
        self._printed_size = 0
        self._depth = 0
        self.globals = {
            "range": _range,
            "namespace": TemplateNamespace,
            "dict": dict,
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.datetime.now().strftime(str(form)[:200]),
        }
        filters = {**self.filters, "tojson": _tojson, "sum": _sum}
        self.filters = {name: self._limited(name, filters[name]) for name in FILTERS}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: self._limited_test(test) for name, test in tests.items()}

    # Costs.

    def count(self, steps: int = 1) -> str:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise BudgetError(f"takes more than {MAX_STEPS} steps")
        return ""

    def weigh(self, value: Any) -> Any:
        """Counts what reading all of a value costs; returns the value."""
        if isinstance(value, str):
            self.count(len(value) >> 10)
        elif isinstance(value, _CONTAINERS):
            waiting = [value]
            while waiting:
                container = waiting.pop()
                if isinstance(container, Namespace):
                    container = container._Namespace__attrs
                self.count(len(container) + 3)
                items: Iterable[Any] = container
                if isinstance(container, dict):
                    items = [*container.keys(), *container.values()]
                for item in items:
                    if isinstance(item, str):
                        self._steps += len(item) >> 10
                    elif isinstance(item, _CONTAINERS):
                        waiting.append(item)
                self.count(0)
        elif isinstance(value, range):
            self.count(len(value))
        return value

    def _printed(self, value: Any) -> Any:
        """Stands around every `{{ }}`; blocks, macros and `set` blocks collect what it returns."""
        self.count()
        self.weigh(value)
        self._printed_size += len(value) if isinstance(value, str) else 0
        if self._printed_size > 4 * MAX_OUTPUT:
            raise BudgetError(f"prints more than {4 * MAX_OUTPUT} characters")
        return value

    # What a compiled template calls. It reaches turns, joined, part_of, weigh and count only as attributes of the
    # environment, which _instrument() writes and no source can name.

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.count()
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, list, tuple)) and isinstance(times, int):
                    limit = MAX_STRING if isinstance(text, str) else MAX_ITEMS
                    self._check_made(len(text) * max(0, times), limit, "a repetition", text)
            if isinstance(left, int) and isinstance(right, int):
                check_size(left.bit_length() + right.bit_length(), 1024, "a number")
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                check_size(left.bit_length() * max(0, right), 1024, "a power")
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            limit = MAX_OUTPUT if isinstance(left, str) else MAX_ITEMS
            self._check_made(len(left) + len(right), limit, "a sum", left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if owner is self:
            return obj(*args)
        self.count()
        if isinstance(obj, LoopContext):
            for value in args:
                self.count(len(value) if hasattr(value, "__len__") else 0)
        elif not isinstance(obj, (Macro, BlockReference)):
            args = tuple(self._settled(value) for value in args)
            for value in (*args, *kwargs.values()):
                self.weigh(value)
            if owner is not None:
                self._check_method(owner, getattr(obj, "__name__", ""), args, kwargs)
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                raise BudgetError(f"calls itself more than {MAX_DEPTH} levels deep")
            result = super().call(context, obj, *args, **kwargs)
        finally:
            self._depth -= 1
        if isinstance(result, (list, tuple)):
            self.count(len(result) >> 2)
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            self.weigh(argument)  # its hash reads all of it
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not attr.startswith("_") and super().is_safe_attribute(obj, attr, value)

    def turns(self, iterable: Any, cost: int) -> Any:
        """Stands around the iterable of every loop: each turn costs 1 and its condition."""
        if isinstance(iterable, (str, list, tuple, dict, range)):
            self.count(len(iterable) * (1 + cost) + 1)
            return iterable
        return self._counted(iterable, 1 + cost)

    def _counted(self, iterable: Iterable[Any], cost: int) -> Iterator[Any]:
        for item in iterable:
            self.count(cost)
            yield item

    def _settled(self, value: Any) -> Any:
        """An iterator as a list: it can be read once only, and reading is what a check does."""
        return list(self._counted(value, 1)) if isinstance(value, Iterator) else value

    def joined(self, *parts: Any) -> str:
        texts = [str(self.weigh(part)) for part in parts]
        check_size(sum(map(len, texts)), MAX_OUTPUT, "a text")
        return "".join(texts)

    def part_of(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = value[start:stop:step]
        self.count(1 + (len(part) >> (10 if isinstance(part, str) else 4)))
        return part

    # Checks of what could become large.

    def _check_made(self, size: int, limit: int, what: str, like: Any) -> None:
        check_size(size, limit, what)
        self.count(size >> (10 if isinstance(like, str) else 4))

    def _check_format(self, text: str, values: Any) -> None:
        self.weigh(text)
        self.weigh(values)
        named = "%(" in text
        if (_LARGE_NUMBER if named else _LARGE_WIDTH).search(text):
            raise BudgetError("formats with a width above 999")
        if (_ANY_NUMBER if named else _ANY_WIDTH).search(text):
            self._check_made(len(text) + 1000 * text.count("%"), MAX_OUTPUT, "a formatted text", text)

    def _check_method(self, owner: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for kind, names in METHODS.items():
            if issubclass(type(owner), kind):
                if name not in names:
                    break
                if isinstance(owner, str):
                    self.weigh(owner)
                    self._check_growth(name, owner, args, kwargs)
                elif name in ("count", "index"):
                    self.weigh(owner)
                elif name == "copy":
                    self.count(len(owner) >> 4)
                return
        if type(owner).__module__.startswith("jinja2."):
            return
        raise BudgetError(f"calls {name[:100]}() of {type(owner).__name__}, which is not available here")

    def _check_growth(self, name: str, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """What a method or filter of a text could make of it, or how long it could take."""
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, str)), "")
        if name == "replace":
            old = str(kwargs.get("old", args[0] if args else ""))
            new = kwargs.get("new", args[1] if len(args) > 1 else "")
            times = text.count(old) if old else len(text) + 1
            self._check_made(len(text) + times * len(str(new)), MAX_OUTPUT, "a replacement", text)
        elif name == "indent":
            width = kwargs.get("width", args[0] if args else 4)
            width = width if isinstance(width, int) else len(str(width))
            size = len(text) + (text.count("\n") + 1) * max(0, width)
            self._check_made(size, MAX_OUTPUT, "an indented text", text)
        elif name == "join" and args:
            items = [str(item) for item in args[0]]
            self._check_made(sum(map(len, items)) + len(text) * len(items), MAX_OUTPUT, "a joined text", text)
        elif name == "format":
            if _FORMAT_SPEC.search(text):
                raise BudgetError("calls format() with a format after ':', which is not available here")
            size = sum(len(str(value)) for value in (*args, *kwargs.values())) * (10 if "!" in text else 1)
            self._check_made(len(text) + text.count("{") * size, MAX_OUTPUT, "a formatted text", text)
        elif name in ("center", "ljust", "rjust", "zfill"):
            for value in args:
                if isinstance(value, int):
                    self._check_made(value, MAX_STRING, "a padded text", text)
        elif name in ("strip", "lstrip", "rstrip", "trim", "rfind", "rindex", "rsplit", "rpartition"):
            self.count(len(text) * len(first) >> 14)  # these compare one with the other at every place
        elif name == "title":
            self.count(len(text) >> 6)

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that costs steps and refuses to make something large."""
        marker = getattr(function, "jinja_pass_arg", None)
        given = 0 if marker is None else 1  # the context or environment that Jinja passes in front

        def limited(*args: Any, **kwargs: Any) -> Any:
            self.count()
            values = args[given:]
            for value in (*values[1:], *kwargs.values()):
                if isinstance(value, int):
                    check_size(abs(value), 100 if name == "round" else MAX_ITEMS, f"a number for {name}")
            if name in LAZY_FILTERS:
                for value in values[:1]:
                    if name == "list" and isinstance(value, str):
                        check_size(len(value), MAX_ITEMS, "a list")
                    if name not in ("count", "d", "default", "first", "last", "length", "safe"):
                        self.count(len(value) if isinstance(value, (str, list, tuple, dict, range)) else 0)
            else:
                values = tuple(self._settled(value) for value in values)
                args = (*args[:given], *values)
                for value in (*values, *kwargs.values()):
                    self.weigh(value)
                if name == "join" and values:
                    between = str(kwargs.get("d", values[1] if len(values) > 1 else ""))
                    self._check_growth("join", between, values[:1], {})
                elif name == "format" and values:
                    self._check_format(str(values[0]), values[1:] or kwargs)
                elif values and isinstance(values[0], str):
                    self._check_growth(name, values[0], values[1:], kwargs)
            result = function(*args, **kwargs)
            if isinstance(result, Iterator):
                return self._counted(result, 2)
            if isinstance(result, (str, list)):
                check_size(len(result), MAX_OUTPUT, "a value")
            return result

        if marker is not None:
            limited.jinja_pass_arg = marker  # type: ignore[attr-defined]
        return limited

    def _limited_test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A test that costs steps; those with a second value compare, and read both."""
        marker = getattr(function, "jinja_pass_arg", None)
        given = 0 if marker is None else 1

        def limited(*args: Any, **kwargs: Any) -> Any:
            self.count()
            if len(args) - given > 1:
                for value in args[given:]:
                    self.weigh(value)
            elif args and isinstance(args[-1], str):
                self.weigh(args[-1])
            return function(*args, **kwargs)

        if marker is not None:
            limited.jinja_pass_arg = marker  # type: ignore[attr-defined]
        return limited


def compile_template(source: str) -> Any:
    """Code for `jinja2.Template.from_code` with a fresh environment. Raises BudgetError and Jinja's errors."""
    if len(source) > MAX_SOURCE:
        raise BudgetError(f"has {len(source)} characters, the limit is {MAX_SOURCE}")
    _check_nesting(source)
    environment = TemplateEnvironment()
    tokens = 0
    for _, kind, _ in environment.lexer.tokeniter(source, None):
        tokens += kind != "whitespace"
        if tokens > MAX_TOKENS:
            raise BudgetError(f"has more than {MAX_TOKENS} tokens")
    tree = environment.parse(source)
    _instrument(tree)
    for node in tree.find_all(nodes.Node):
        node.environment = environment
        if getattr(node, "lineno", None) is None:
            node.lineno = 1
    return environment.compile(tree)


def _check_nesting(source: str) -> None:
    depth = 0
    for c in source:
        if c in "([{":
            depth += 1
            if depth > MAX_NESTING:
                raise BudgetError(f"nests brackets more than {MAX_NESTING} deep")
        elif c in ")]}":
            depth = max(0, depth - 1)


_BODIES = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)


def _instrument(root: nodes.Node) -> None:
    """Puts costs around what repeats or reads; refuses what reaches outside. Works with a stack of its own."""
    cost_of = {id(root): 0}  # of the bodies, by the node that owns them
    owners: list[nodes.Node] = []
    stack: list[tuple[nodes.Node, int, nodes.Node]] = [(root, 0, root)]
    while stack:
        node, depth, owner = stack.pop()
        if depth > MAX_NESTING:
            raise BudgetError(f"is nested more than {MAX_NESTING} deep")
        if isinstance(node, (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise BudgetError("uses include, import or extends, which are not available here")
        if isinstance(node, nodes.TemplateData):
            cost_of[id(owner)] += len(node.data) >> 8
        cost_of[id(owner)] += 1
        if isinstance(node, _BODIES):
            owner = node
            owners.append(node)
            cost_of[id(node)] = 1
        for field, value in list(node.iter_fields()):
            if isinstance(value, list):
                value[:] = [_instrumented(item) for item in value]
            else:
                setattr(node, field, _instrumented(value))
        if isinstance(node, nodes.Pair) and not isinstance(node.key, nodes.Const):
            node.key = _call("weigh", node.key)  # its hash reads all of it
        elif isinstance(node, nodes.Compare):
            node.expr = _weighed(node.expr)
            for operand in node.ops:
                operand.expr = _weighed(operand.expr)
        stack.extend((child, depth + 1, owner) for child in node.iter_child_nodes())
    for node in owners:
        cost = nodes.Const(cost_of[id(node)])
        if isinstance(node, nodes.For):
            node.iter = _call("turns", node.iter, cost if node.test is not None else nodes.Const(0))
        node.body.insert(0, nodes.ExprStmt(_call("count", cost)))  # type: ignore[attr-defined]


def _instrumented(node: Any) -> Any:
    if isinstance(node, nodes.Concat):
        return _call("joined", *node.nodes)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _call("part_of", node.node, *(nodes.Const(None) if bound is None else bound for bound in bounds))
    return node


def _weighed(node: Any) -> Any:
    return node if isinstance(node, nodes.Const) else _call("weigh", node)


def _call(function: str, *arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(function), list(arguments), [], None, None)


def check_size(size: int, limit: int, what: str) -> None:
    """Raises BudgetError if something would become larger than it may be."""
    if size > limit:
        raise BudgetError(f"makes {what} of size {size}, the limit is {limit}")


def _range(*bounds: int) -> range:
    result = range(*bounds)
    check_size(len(result), MAX_ITEMS, "range()")
    return result


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:1000])


def _sum(values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Of numbers: the sum of lists would copy them again and again."""
    total = start
    for value in values:
        part = value if attribute is None else value[attribute]
        if not isinstance(part, (int, float)) or not isinstance(total, (int, float)):
            raise jinja2.TemplateError("sum: only numbers can be summed")
        total += part
    return total


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: no escapes for HTML."""
    check_size(indent if isinstance(indent, int) else len(indent or ""), 64, "an indent")
    check_size(max(map(len, separators or ("",))), 64, "a separator")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    size, pieces = 0, []
    for piece in encoder.iterencode(value):
        size += len(piece)
        check_size(size, MAX_OUTPUT, "a JSON text")
        pieces.append(piece)
    return "".join(pieces)
