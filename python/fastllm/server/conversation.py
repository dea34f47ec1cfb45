"""A conversation on its way to the engine: what the chat endpoints of all dialects have in common.

Messages and tools become a prompt; what must come out becomes a grammar; the text that comes is split into reasoning,
content and calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastllm import SamplingParams
from fastllm.errors import FastLLMError
from fastllm.server.context import RequestContext
from fastllm.server.errors import from_engine, invalid
from fastllm.server.generation import Generation
from fastllm.server.openai.fields import check_count, check_input
from fastllm.server.openai.pipeline import Pipeline
from fastllm.server.openai.reasoning import BEGIN
from fastllm.server.openai.tool_grammar import after_reasoning, forced_calls, strict_calls
from fastllm.server.openai.tools import NamedTool, Tool, template_tools

# Names of template variables that are not a client's to set.
_OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "variables"})


@dataclasses.dataclass(slots=True)
class Conversation:
    """What a client asks for, in plain terms.

    Attributes:
        messages: as chat templates read them.
        tool_choice: "auto", "none", "required", or the name of a function in an object as OpenAI writes it.
        names: the engine's parameter name -> the endpoint's, for error texts.
        has_own_messages: the client's have the same indices and fields as ``messages``.
    """

    context: RequestContext
    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    tools: Sequence[Tool] = ()
    tool_choice: str | NamedTool | None = None
    one_call: bool = False
    variables: Mapping[str, Any] | None = None
    priority: int | None = None
    cache_salt: str | None = None
    include_cost: bool = False
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    has_own_messages: bool = False

    async def start(self) -> tuple[Generation, list[Pipeline]]:
        """The request for the engine, and what splits the text of each sequence. Raises ApiError."""
        server, params = self.context.server, self.params
        check_count(params.n, 1, server.max_sequences)
        variables: dict[str, Any] = dict(self.variables or {})
        if _OWN_VARIABLES & variables.keys() or not all(name.isidentifier() for name in variables):
            raise invalid("chat_template_kwargs: contains a name that is not free", "chat_template_kwargs")
        tools = self._tools()
        if tools:
            variables["tools"] = template_tools(tools)
        self._filter(variables)
        reasons = self.context.config.reasoning_parser is not None
        if tools or reasons:
            # Markers of calls and of thoughts are special tokens in some models.
            params = dataclasses.replace(params, skip_special_tokens=False)
        try:
            prompt = await self.context.llm.render_chat(self.messages, **variables)
        except FastLLMError as error:
            raise from_engine(error, self.names) from error
        is_inside = reasons and self.context.llm.decode(prompt[-8:], skip_special_tokens=False).rstrip().endswith(BEGIN)
        params = self._constrained(params, tools, reasons=reasons, is_inside=is_inside)
        style = server.tool_style if tools else None
        pipelines = [
            Pipeline(
                style,
                reasons=reasons,
                names={tool.function.name for tool in tools},
                starts_inside=is_inside,
                one_call=self.one_call,
                token_bytes=self.context.llm.token_bytes,
            )
            for _ in range(params.n)
        ]
        generation = Generation(
            self.context,
            [prompt],
            params,
            priority=self.priority,
            cache_salt=self.cache_salt,
            include_cost=self.include_cost,
            renamed=self.names,
        )
        return generation, pipelines

    def _filter(self, variables: Mapping[str, Any]) -> None:
        """Every text of the client that the template sees passes the content filters."""
        filters = self.context.server.filters
        if filters is None:
            return
        whole = self.names.get("prompt", "messages")
        for i, message in enumerate(self.messages):
            for field, value in message.items():
                where = f"{whole}[{i}].{field}" if self.has_own_messages else whole
                for text in () if field == "role" else _texts(value):
                    check_input(filters, text, where)
        for name, value in variables.items():
            for text in (name, *_texts(value)):
                check_input(filters, text, "tools" if name == "tools" else "chat_template_kwargs")

    def _tools(self) -> Sequence[Tool]:
        """The tools of the prompt; (): no calls are looked for."""
        choice = self.tool_choice
        if not self.tools:
            if choice not in (None, "none"):
                raise invalid("tool_choice: only together with tools", "tool_choice")
            return ()
        template_tools(self.tools)  # checks them, whether they are used or not
        if isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in self.tools}:
            raise invalid("tool_choice: names a function that is not in tools", "tool_choice")
        if choice == "none":
            return ()
        if self.context.server.tool_style is None:
            raise invalid("tools: this model's chat template has no tools", "tools", code="unsupported_parameter")
        return self.tools

    def _constrained(
        self, params: SamplingParams, tools: Sequence[Tool], *, reasons: bool, is_inside: bool
    ) -> SamplingParams:
        """Adds the grammar of calls that must come or must be strict; all of it behind the reasoning."""
        style, literal = self.context.server.tool_style, self.context.server.literals.__getitem__
        functions = [tool.function for tool in tools]
        structured = params.structured_outputs
        forced = self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)
        if tools and style is not None and (forced or any(function.strict for function in functions)):
            if structured is not None:
                raise invalid(
                    "tool_choice: calls that must come or are strict, and another format for the answer, exclude each "
                    "other",
                    "tool_choice",
                )
            if isinstance(self.tool_choice, NamedTool):
                name = self.tool_choice.function.name
                functions = [function for function in functions if function.name == name]
            if forced:
                one_call = self.one_call or isinstance(self.tool_choice, NamedTool)
                structured = forced_calls(style, functions, literal, one_call=one_call)
            elif style.bare:
                raise invalid(
                    'tools: strict functions need tool_choice "required" or a named one with this model',
                    "tools",
                    code="unsupported_parameter",
                )
            else:
                structured = strict_calls(style, functions, literal)
            self.names["structured_outputs"] = "tools"
        if structured is None:
            return params
        if reasons:
            structured = after_reasoning(structured, literal, is_inside=is_inside)
        return dataclasses.replace(params, structured_outputs=structured)


def _texts(value: Any) -> Iterator[str]:
    """The strings and numbers in data, as a template may write them."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
        elif one is not None and not isinstance(one, bool):
            yield str(one)
