"""``POST /v1/chat/completions``, streamed or whole."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fastllm import Logprob
from fastllm.errors import FastLLMError
from fastllm.server.answer import json_answer
from fastllm.server.body import parse_body
from fastllm.server.context import RequestContext
from fastllm.server.errors import from_engine, invalid
from fastllm.server.generation import Delta, Generation, until_gone
from fastllm.server.openai.fields import (
    Int,
    SamplingFields,
    check_count,
    check_input,
    refuse_unless,
    sampling_params,
    wants_running_usage,
    wants_usage,
)
from fastllm.server.openai.logprobs import chat_logprobs
from fastllm.server.openai.messages import Message, template_messages
from fastllm.server.openai.pipeline import Pipeline
from fastllm.server.openai.reasoning import BEGIN
from fastllm.server.openai.tools import NamedTool, Tool, template_tools
from fastllm.server.sse import EventStream, event


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: str


class ChatBody(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """The fields in the second part are known, and refused unless they change nothing."""

    messages: list[Message]
    max_completion_tokens: Int | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    chat_template_kwargs: dict[str, str | bool | int | float | None] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    service_tier: str | None = None
    store: bool | None = None


# Names of template variables that are not a client's to set.
_OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "variables"})


class _Chat:
    """One request on its way from body to answer."""

    def __init__(self, context: RequestContext, body: ChatBody) -> None:
        self.context = context
        self.body = body
        self.model = context.check_model(body.model)
        self.id = f"chatcmpl-{context.request_id}"
        self.created = int(time.time())
        self.n = body.n or 1
        refuse_unless(
            body,
            modalities=(["text"],),
            service_tier=("auto", "default"),
            store=(False,),
        )
        if body.response_format is not None and body.response_format.type != "text":
            raise invalid(
                'response_format.type: only "text" is supported', "response_format.type", code="unsupported_parameter"
            )
        if body.top_logprobs is not None and not body.logprobs:
            raise invalid("top_logprobs: only together with logprobs = true", "top_logprobs")
        if body.max_completion_tokens is not None and body.max_tokens is not None:
            raise invalid("max_tokens: give only one of max_tokens and max_completion_tokens", "max_tokens")
        longest = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        self.num_top = body.top_logprobs or 0
        self.params = sampling_params(body, max_tokens=longest, logprobs=self.num_top if body.logprobs else None)
        self.renamed = {"prompt": "messages", "logprobs": "top_logprobs"}
        if body.max_completion_tokens is not None:
            self.renamed["max_tokens"] = "max_completion_tokens"

    async def prepare(self) -> None:
        """Token ids of the conversation."""
        server = self.context.server
        check_count(self.body.n, 1, server.max_sequences)
        messages = template_messages(self.body.messages, self.context.config.max_messages)
        if server.filters is not None:
            for i, message in enumerate(messages):
                check_input(server.filters, message["content"], f"messages[{i}].content")
        variables: dict[str, Any] = dict(self.body.chat_template_kwargs or {})
        if _OWN_VARIABLES & variables.keys() or not all(name.isidentifier() for name in variables):
            raise invalid("chat_template_kwargs: contains a name that is not free", "chat_template_kwargs")
        tools = chosen_tools(self.context, self.body.tools, self.body.tool_choice)
        if tools:
            variables["tools"] = tools
        try:
            prompt = await self.context.llm.render_chat(messages, **variables)
        except FastLLMError as error:
            raise from_engine(error, self.renamed) from error
        self.pipelines = pipelines(
            self.context, prompt, self.n, with_tools=bool(tools), one_call=self.body.parallel_tool_calls is False
        )
        if tools:
            # Markers of calls are special tokens in some models.
            self.params = self.params.replace(skip_special_tokens=False)
        self.generation = Generation(
            self.context,
            [prompt],
            self.params,
            priority=self.body.priority,
            cache_salt=self.body.cache_salt,
            include_cost=bool(self.body.include_cost),
            renamed=self.renamed,
        )

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": None,
        }

    async def whole(self) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        choices = []
        for index, result in enumerate(await self.generation.all()):
            pipeline = self.pipelines[index]
            parts = pipeline.feed(result.text, is_last=True)
            message: dict[str, Any] = {"role": "assistant", "content": parts.content, "refusal": None}
            if parts.reasoning:
                message["reasoning_content"] = parts.reasoning
            if parts.calls:
                message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in parts.calls]
                message["content"] = parts.content or None
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._logprobs(result.token_ids, result.logprobs),
                    "finish_reason": pipeline.finish_reason(result.finish_reason),
                    "stop_reason": result.stop_reason,
                }
            )
        return {**self.envelope("chat.completion", choices), "usage": self.generation.usage()}

    def _logprobs(self, token_ids: list[int], entries: list[dict[int, Logprob]] | None) -> dict[str, Any] | None:
        if entries is None:
            return None
        return chat_logprobs(self.context.llm, token_ids, entries, self.num_top)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The chunks of a streamed answer: the role, the text, the reason of the end, and the usage if wanted."""
        begun = [False] * self.n
        extra: dict[str, Any] = {"usage": None} if wants_usage(self.body) else {}
        async with contextlib.aclosing(self.generation.deltas()) as batches:
            async for deltas in batches:
                if wants_running_usage(self.body):
                    extra = {"usage": self.generation.usage()}
                choices = []
                for delta in deltas:
                    if not begun[delta.index]:
                        begun[delta.index] = True
                        first = {"role": "assistant", "content": "", "refusal": None}
                        choices.append(_choice(delta.index, first, None))
                    choices += self._choices(delta)
                # All that a step has brought is one write to the connection.
                yield b"".join(
                    event({**self.envelope("chat.completion.chunk", [choice]), **extra}) for choice in choices
                )
        if wants_usage(self.body):
            yield event({**self.envelope("chat.completion.chunk", []), "usage": self.generation.usage()})

    def _choices(self, delta: Delta) -> list[dict[str, Any]]:
        pipeline = self.pipelines[delta.index]
        parts = pipeline.feed(delta.text, is_last=delta.finish_reason is not None)
        found = []
        if parts.reasoning:
            found.append(_choice(delta.index, {"reasoning_content": parts.reasoning}, None))
        if parts.content or delta.logprobs:
            logprobs = self._logprobs(delta.token_ids, delta.logprobs) if delta.logprobs else None
            found.append(_choice(delta.index, {"content": parts.content}, logprobs))
        if parts.calls:
            found.append(_choice(delta.index, {"tool_calls": parts.calls}, None))
        if delta.finish_reason is not None:
            last = _choice(delta.index, {}, None, pipeline.finish_reason(delta.finish_reason))
            last["stop_reason"] = delta.stop_reason
            found.append(last)
        return found


def _choice(index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def chosen_tools(
    context: RequestContext, tools: list[Tool] | None, choice: str | NamedTool | None
) -> list[dict[str, Any]] | None:
    """The tools of the prompt; None: no calls are looked for. Raises ApiError 400."""
    if choice is not None and not tools:
        raise invalid("tool_choice: only together with tools", "tool_choice")
    if not tools:
        return None
    plain = template_tools(tools)
    if choice == "none":
        return None
    if choice not in (None, "auto"):
        raise invalid('tool_choice: only "auto" and "none" are supported', "tool_choice", code="unsupported_parameter")
    if context.server.tool_style is None:
        raise invalid("tools: this model's chat template has no tools", "tools", code="unsupported_parameter")
    return plain


def pipelines(
    context: RequestContext, prompt: list[int], n: int, *, with_tools: bool, one_call: bool = False
) -> list[Pipeline]:
    """One per sequence. A prompt that ends with an open think tag has begun the reasoning."""
    reasons = context.config.reasoning_parser is not None
    inside = reasons and context.llm.decode(prompt[-8:], skip_special_tokens=False).rstrip().endswith(BEGIN)
    style = context.server.tool_style if with_tools else None
    return [Pipeline(style, reasons=reasons, starts_inside=inside, one_call=one_call) for _ in range(n)]


async def create_chat_completion(request: Request) -> Response:
    context = RequestContext.of(request)
    body = await parse_body(request, ChatBody, context.config)
    chat = _Chat(context, body)
    deadline = context.deadline(body.request_timeout)
    await chat.prepare()
    if body.stream:
        return EventStream(context, chat.events(), deadline)
    return json_answer(await until_gone(request.receive, chat.whole, deadline))
