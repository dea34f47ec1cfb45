"""``POST /v1/chat/completions``, streamed or whole."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from fastllm import Logprob
from fastllm.server.answer import json_answer
from fastllm.server.body import parse_body
from fastllm.server.context import RequestContext
from fastllm.server.conversation import Conversation
from fastllm.server.errors import invalid
from fastllm.server.generation import Delta, until_gone
from fastllm.server.openai.answers import ChatAnswer, ChatChunk
from fastllm.server.openai.fields import (
    Int,
    SamplingFields,
    refuse_unless,
    sampling_params,
    wants_running_usage,
    wants_usage,
)
from fastllm.server.openai.logprobs import chat_logprobs
from fastllm.server.openai.messages import Message, template_messages
from fastllm.server.openai.response_format import ResponseFormat, wanted_format
from fastllm.server.openai.tools import NamedTool, Tool
from fastllm.server.operation import operation
from fastllm.server.sse import EventStream, event


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
        if body.top_logprobs is not None and not body.logprobs:
            raise invalid("top_logprobs: only together with logprobs = true", "top_logprobs")
        if body.max_completion_tokens is not None and body.max_tokens is not None:
            raise invalid("max_tokens: give only one of max_tokens and max_completion_tokens", "max_tokens")
        longest = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        self.num_top = body.top_logprobs or 0
        self.names = {"prompt": "messages", "logprobs": "top_logprobs"}
        if body.max_completion_tokens is not None:
            self.names["max_tokens"] = "max_completion_tokens"
        self.params = sampling_params(body, max_tokens=longest, logprobs=self.num_top if body.logprobs else None)
        if body.response_format is not None and body.response_format.type != "text":
            if body.structured_outputs is not None:
                raise invalid(
                    "structured_outputs: give only one of structured_outputs and response_format", "structured_outputs"
                )
            self.params = self.params.replace(structured_outputs=wanted_format(body.response_format))
            self.names["structured_outputs"] = "response_format"

    async def prepare(self) -> None:
        """Makes the request for the engine."""
        body = self.body
        conversation = Conversation(
            self.context,
            template_messages(body.messages, self.context.config.max_messages),
            self.params,
            tools=body.tools or (),
            tool_choice=body.tool_choice,
            one_call=body.parallel_tool_calls is False,
            variables=body.chat_template_kwargs,
            priority=body.priority,
            cache_salt=body.cache_salt,
            include_cost=bool(body.include_cost),
            names=self.names,
            has_own_messages=True,
        )
        self.generation, self.pipelines = await conversation.start()

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
            thought, content = (
                "".join(part.text for part in parts if part.kind == kind) for kind in ("thought", "text")
            )
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if thought:
                message["reasoning_content"] = thought
            calls = [part.call for part in parts if part.call is not None]
            if calls:
                message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
                message["content"] = content or None
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
        logprobs = self._logprobs(delta.token_ids, delta.logprobs) if delta.logprobs else None
        found = []
        for part in pipeline.feed(delta.text, is_last=delta.finish_reason is not None):
            if part.kind == "thought":
                found.append(_choice(delta.index, {"reasoning_content": part.text}, None))
            elif part.kind == "text":
                found.append(_choice(delta.index, {"content": part.text}, logprobs))
                logprobs = None
            else:
                found.append(_choice(delta.index, {"tool_calls": [part.call]}, None))
        if logprobs is not None:
            found.append(_choice(delta.index, {"content": ""}, logprobs))
        if delta.finish_reason is not None:
            last = _choice(delta.index, {}, None, pipeline.finish_reason(delta.finish_reason))
            last["stop_reason"] = delta.stop_reason
            found.append(last)
        return found


def _choice(index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


@operation(ChatAnswer, body=ChatBody, chunk=ChatChunk)
async def create_chat_completion(request: Request) -> Response:
    """The answer to a conversation."""
    context = RequestContext.of(request)
    body = await parse_body(request, ChatBody, context.config)
    chat = _Chat(context, body)
    deadline = context.deadline(body.request_timeout)
    await chat.prepare()
    if body.stream:
        return EventStream(context, chat.events(), deadline)
    return json_answer(await until_gone(request.receive, chat.whole, deadline))
