"""Chat templates: Jinja as transformers runs it, in the sandbox of `template_sandbox`.

What a template sees is data: messages, tools and variables are copied into plain values first, and objects, functions
and names that a template relies on are refused. Nobody can send a template along with a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2

from fastllm.errors import CheckpointError, InvalidRequestError
from fastllm.text.template_sandbox import MAX_OUTPUT, MAX_SOURCE, BudgetError, TemplateEnvironment, compile_template
from fastllm.text.tokenizer import SPECIAL_NAMES, read_json, token_text

T = TypeVar("T")

MAX_DATA_DEPTH = 64
# Where clients put the reasoning of a message; templates read the first, gpt-oss's the second.
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_RESERVED = frozenset(("messages", "range", "namespace", "dict", "cycler", "joiner", "raise_exception", "strftime_now"))


class ChatTemplate:
    """A compiled template. `render` may be called from several threads.

    Args:
        source: the Jinja text.
        special_tokens: available in the template under their names (bos_token, eos_token, ...).
        source_with_tools: used instead when there are tools, if the model has a template of its own for them.

    Raises:
        InvalidRequestError: the template is not valid Jinja or exceeds a budget.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, source_with_tools: str | None = None
    ) -> None:
        self.source = source
        self._tokens = dict(special_tokens or {})
        self._code = _guarded(lambda: compile_template(source))
        self._code_with_tools = self._code
        if source_with_tools is not None:
            self._code_with_tools = _guarded(lambda: compile_template(source_with_tools))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: dicts with "role" and mostly "content"; keys whose value is None are left out.
            add_generation_prompt: end with the beginning of an answer.
            variables: what else the template reads: "tools", "documents", "enable_thinking", ...

        Raises:
            InvalidRequestError: the template refuses, with its own message; a budget is exceeded; a value is not data.
        """
        values: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        values.update(self._tokens)
        values.update(_checked_variables(variables or {}))
        values["messages"] = _checked_messages(messages)
        code = self._code if values["tools"] is None else self._code_with_tools

        def run() -> str:
            # The environment holds the budget of this call.
            environment = TemplateEnvironment()
            template = jinja2.Template.from_code(environment, code, environment.globals)
            pieces: list[str] = []
            size = 0
            for piece in template.generate(values):
                size += len(piece)
                environment.count()
                if size > MAX_OUTPUT:
                    raise BudgetError(f"makes an output of more than {MAX_OUTPUT} characters")
                pieces.append(piece)
            return "".join(pieces)

        return _guarded(run)


def _checked_messages(messages: Any) -> list[dict[str, Any]]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequestError('messages must be a list of one or more dicts with "role" and "content"')
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequestError(f'messages[{i}] must be a dict with "role" (a string) and "content"')
        plain = _plain({k: v for k, v in message.items() if v is not None}, f"messages[{i}]", 0)
        reasoning = next((plain[name] for name in REASONING_NAMES if name in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        checked.append(plain)
    return checked


def _checked_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    for name in variables:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or name in _RESERVED:
            raise InvalidRequestError(
                f"{str(name)[:100]!r} cannot be the name of a variable for the chat template; "
                f"it is not a plain name or is taken ({', '.join(sorted(_RESERVED))})"
            )
    return {name: _plain(value, name, 0) for name, value in variables.items()}


def _plain(value: Any, where: str, depth: int) -> Any:
    """A copy of data in the types of JSON. Subclasses go back to their base: they could carry code."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if depth >= MAX_DATA_DEPTH:
        raise InvalidRequestError(f"{where[:200]}... is nested more than {MAX_DATA_DEPTH} deep")
    if isinstance(value, Mapping):
        return {_key(k, where): _plain(v, f"{where}.{k}"[:200], depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, depth + 1) for item in value]
    raise InvalidRequestError(
        f"{where}: {type(value).__name__} is not data; a chat template gets strings, numbers, booleans, lists and dicts"
    )


def _key(key: Any, where: str) -> Any:
    if key is None or isinstance(key, (str, int, float)):
        return _plain(key, where, 0)
    raise InvalidRequestError(f"{where}: a key of a dict is {type(key).__name__}, expected a string")


def _guarded(run: Callable[[], T]) -> T:
    what = "chat template"
    try:
        return run()
    except BudgetError as error:
        raise InvalidRequestError(f"{what} {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise InvalidRequestError(f"{what}, line {error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:
        raise InvalidRequestError(f"{what}: {error.message or type(error).__name__}") from None
    except (RecursionError, MemoryError, SyntaxError):
        raise InvalidRequestError(f"{what} is nested too deep, or makes something too large") from None
    except Exception as error:  # a template can make any operation of Python fail
        raise InvalidRequestError(f"{what}: {type(error).__name__}: {str(error)[:500]}") from None


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a model folder: chat_template.jinja, chat_template.json, or in tokenizer_config.json.

    Raises CheckpointError: a template is not valid, or exceeds a budget.
    """
    config = read_json(folder / "tokenizer_config.json")
    named: dict[str, Any] = {}
    source = _read_source(folder / "chat_template.jinja")
    if source is None:
        found = read_json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
        named = _named_templates(found)
    else:
        tool_use = _read_source(folder / "additional_chat_templates" / "tool_use.jinja")
        named = {"default": source, "tool_use": tool_use}
    for template in named.values():
        if not isinstance(template, str | None):
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: chat_template is {type(template).__name__}")
    default, with_tools = named.get("default"), named.get("tool_use")
    if default is None:
        return None
    try:
        tokens = {name: text for name in SPECIAL_NAMES if (text := token_text(config.get(name)))}
        return ChatTemplate(default, tokens, with_tools)
    except InvalidRequestError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _read_source(path: Path) -> str | None:
    if not path.exists():
        return None
    if not path.is_file() or path.stat().st_size > MAX_SOURCE * 4:
        raise CheckpointError(f"{path}: is not a regular file of at most {MAX_SOURCE * 4} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as UTF-8: {error}") from error


def _named_templates(found: Any) -> dict[str, Any]:
    """One template, or several with names, as a list of {"name", "template"} or as a dict."""
    if isinstance(found, list):
        return {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
    return found if isinstance(found, dict) else {"default": found}
