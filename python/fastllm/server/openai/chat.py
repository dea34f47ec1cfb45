"""``POST /v1/chat/completions``, streamed or whole."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

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
    refuse_unless,
    sampling_params,
    wants_running_usage,
    wants_usage,
)
from fastllm.server.openai.logprobs import chat_logprobs
from fastllm.server.openai.messages import Message, template_messages
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

    response_format: ResponseFormat | None = None
    parallel_tool_calls: bool | None = None
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
        check_count(self.body.n, 1, self.context.server.max_sequences)
        messages = template_messages(self.body.messages, self.context.config.max_messages)
        variables: dict[str, Any] = dict(self.body.chat_template_kwargs or {})
        if _OWN_VARIABLES & variables.keys() or not all(name.isidentifier() for name in variables):
            raise invalid("chat_template_kwargs: contains a name that is not free", "chat_template_kwargs")
        try:
            prompt = await self.context.llm.render_chat(messages, **variables)
        except FastLLMError as error:
            raise from_engine(error, self.renamed) from error
        self.generation = Generation(
            self.context,
            [prompt],
            self.params,
            priority=self.body.priority,
            cache_salt=self.body.cache_salt,
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
        (output,) = await self.generation.all()
        choices = [
            {
                "index": completion.index,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": None
                if completion.logprobs is None
                else chat_logprobs(self.context.llm, completion.token_ids, completion.logprobs, self.num_top),
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
            for completion in output.outputs
        ]
        return {**self.envelope("chat.completion", choices), "usage": self.generation.usage()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The chunks of a streamed answer: the role, the text, the reason of the end, and the usage if wanted."""
        begun = [False] * self.n
        extra: dict[str, Any] = {"usage": None} if wants_usage(self.body) else {}
        async with contextlib.aclosing(self.generation.deltas()) as batches:
            async for deltas in batches:
                if wants_running_usage(self.body):
                    extra = {"usage": self.generation.usage()}
                for delta in deltas:
                    if not begun[delta.index]:
                        begun[delta.index] = True
                        first = _choice(delta.index, {"role": "assistant", "content": "", "refusal": None}, None)
                        yield event({**self.envelope("chat.completion.chunk", [first]), **extra})
                    for choice in self._choices(delta):
                        yield event({**self.envelope("chat.completion.chunk", [choice]), **extra})
        if wants_usage(self.body):
            yield event({**self.envelope("chat.completion.chunk", []), "usage": self.generation.usage()})

    def _choices(self, delta: Delta) -> list[dict[str, Any]]:
        logprobs = None
        if delta.logprobs:
            logprobs = chat_logprobs(self.context.llm, delta.token_ids, delta.logprobs, self.num_top)
        found = []
        if delta.text or logprobs is not None:
            found.append(_choice(delta.index, {"content": delta.text}, logprobs))
        if delta.finish_reason is not None:
            last = _choice(delta.index, {}, None, delta.finish_reason)
            last["stop_reason"] = delta.stop_reason
            found.append(last)
        return found


def _choice(index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


async def create_chat_completion(request: Request) -> Response:
    context = RequestContext.of(request)
    body = await parse_body(request, ChatBody, context.config)
    chat = _Chat(context, body)
    deadline = context.deadline(body.request_timeout)
    await chat.prepare()
    if body.stream:
        return EventStream(context, chat.events(), deadline)
    return json_answer(await until_gone(request.receive, chat.whole, deadline))
