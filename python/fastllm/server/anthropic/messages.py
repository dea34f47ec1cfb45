"""``POST /v1/messages``, streamed or whole, and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fastllm import SamplingParams
from fastllm.errors import FastLLMError
from fastllm.server.answer import json_answer
from fastllm.server.anthropic.answers import AnthropicError, MessageAnswer, TokenCount
from fastllm.server.anthropic.blocks import CacheControl, Message, TextBlock, template_messages
from fastllm.server.block_answer import BlockAnswer
from fastllm.server.body import parse_body
from fastllm.server.context import RequestContext
from fastllm.server.conversation import Conversation
from fastllm.server.errors import ApiError, from_engine, invalid
from fastllm.server.openai.answers import AnyObject
from fastllm.server.openai.fields import Int, check_user, refuse_unless
from fastllm.server.openai.tools import NamedTool, Tool, function_tool, named_tool, template_tools
from fastllm.server.operation import operation
from fastllm.server.pieces import Block
from fastllm.server.sse import named_event


class ToolParam(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(msgspec.Struct, forbid_unknown_fields=True):
    user_id: str | None = None


class Thinking(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["disabled"]


class CountBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What makes the prompt."""

    messages: list[Message]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None


class MessagesBody(CountBody, forbid_unknown_fields=True, kw_only=True):
    max_tokens: Int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None

    # Extension.
    request_timeout: Annotated[float, msgspec.Meta(gt=0, le=86400)] | None = None


_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_NAMES = {"prompt": "messages", "stop": "stop_sequences", "structured_outputs": "tools"}


class _Message(BlockAnswer):
    """One request on its way from body to answer."""

    def __init__(self, context: RequestContext, body: MessagesBody) -> None:
        super().__init__(context)
        self.body = body
        self.model = context.check_model(body.model)
        self.id = f"msg_{context.request_id}"
        refuse_unless(body, service_tier=("auto", "standard_only"))
        check_user(body.metadata.user_id if body.metadata is not None else None, "metadata.user_id")
        values = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k", "max_tokens")}
        self.params = SamplingParams(
            **{name: value for name, value in values.items() if value is not None}, stop=body.stop_sequences or ()
        )

    def conversation(self) -> Conversation:
        body, choice = self.body, self.body.tool_choice
        return Conversation(
            self.context,
            template_messages(body.system, body.messages, self.context.config.max_messages),
            self.params,
            tools=_tools(body.tools),
            tool_choice=_choice(choice),
            one_call=choice is not None and bool(choice.disable_parallel_tool_use),
            names=dict(_NAMES),
        )

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.generation.num_prompt_tokens - self.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.num_cached_tokens,
            "output_tokens": self.generation.num_generated_tokens,
        }

    def _end(self) -> dict[str, Any]:
        """How the answer ended."""
        reason, stop = self.splitter.finish_reason, self.splitter.stop_reason
        if reason == "stop" and isinstance(stop, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        return {"stop_reason": _STOP_REASONS.get(reason or "", "end_turn"), "stop_sequence": None}

    def _message(self, content: list[dict[str, Any]], end: dict[str, Any]) -> dict[str, Any]:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.model}
        return {**head, "content": content, **end, "usage": self._usage()}

    def complete(self) -> dict[str, Any]:
        return self._message([_content(block) for block in self.splitter.blocks], self._end())

    def on_begin(self) -> Iterator[bytes]:
        message = self._message([], {"stop_reason": None, "stop_sequence": None})
        yield named_event({"type": "message_start", "message": message})

    def on_block(self, index: int, block: Block) -> Iterator[bytes]:
        empty = _content(Block(block.kind, "", block.name, block.call_id))
        yield named_event({"type": "content_block_start", "index": index, "content_block": empty})

    def on_text(self, index: int, block: Block, text: str) -> bytes:
        delta = {
            "thought": {"type": "thinking_delta", "thinking": text},
            "text": {"type": "text_delta", "text": text},
            "call": {"type": "input_json_delta", "partial_json": text},
        }[block.kind]
        return named_event({"type": "content_block_delta", "index": index, "delta": delta})

    def on_block_end(self, index: int, *, is_last: bool) -> Iterator[bytes]:
        yield named_event({"type": "content_block_stop", "index": index})

    def on_end(self) -> Iterator[bytes]:
        yield named_event({"type": "message_delta", "delta": self._end(), "usage": self._usage()})
        yield named_event({"type": "message_stop"})

    def error_event(self, error: ApiError) -> bytes:
        return named_event(self.context.error_body(error))


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": block.text, "citations": None}
    if block.kind == "thought":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    arguments = msgspec.json.decode(block.text) if block.text else {}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": arguments}


def _tools(tools: list[ToolParam] | None) -> list[Tool]:
    return [function_tool(tool.name, tool.description, tool.input_schema, strict=tool.strict) for tool in tools or ()]


def _choice(choice: ToolChoice | None) -> str | NamedTool | None:
    if choice is None:
        return None
    if (choice.name is not None) != (choice.type == "tool"):
        raise invalid('tool_choice.name: is needed with type "tool", and only there', "tool_choice.name")
    if choice.name is not None:
        return named_tool(choice.name)
    return {"any": "required"}.get(choice.type, choice.type)


@operation(MessageAnswer, body=MessagesBody, chunk=AnyObject, error=AnthropicError)
async def create_message(request: Request) -> Response:
    """The answer to a conversation, in Anthropic's dialect."""
    context = RequestContext.of(request)
    body = await parse_body(request, MessagesBody, context.config)
    return await _Message(context, body).respond(request, stream=body.stream, timeout_s=body.request_timeout)


@operation(TokenCount, body=CountBody, error=AnthropicError)
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a conversation has."""
    context = RequestContext.of(request)
    body = await parse_body(request, CountBody, context.config)
    context.check_model(body.model)
    messages = template_messages(body.system, body.messages, context.config.max_messages)
    variables: dict[str, Any] = (
        {"tools": template_tools(_tools(body.tools))} if body.tools and _choice(body.tool_choice) != "none" else {}
    )
    try:
        prompt = await context.llm.render_chat(messages, **variables)
    except FastLLMError as error:
        raise from_engine(error, dict(_NAMES)) from error
    return json_answer({"input_tokens": len(prompt)})
