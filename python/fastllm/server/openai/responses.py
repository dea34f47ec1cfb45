"""``POST /v1/responses``, streamed or whole. Nothing is stored: a conversation is sent whole each time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fastllm import SamplingParams
from fastllm.server.block_answer import BlockAnswer
from fastllm.server.body import parse_body
from fastllm.server.context import RequestContext
from fastllm.server.conversation import Conversation
from fastllm.server.errors import ApiError, invalid
from fastllm.server.openai.answers import AnyObject
from fastllm.server.openai.fields import Int, StructuredOutputs, check_user, refuse_unless
from fastllm.server.openai.response_answers import ResponseAnswer
from fastllm.server.openai.response_format import NamedSchema, schema_format
from fastllm.server.openai.response_items import template_messages
from fastllm.server.openai.tools import FunctionSpec, function_tool, named_tool
from fastllm.server.operation import operation
from fastllm.server.pieces import Block
from fastllm.server.sse import named_event

MAX_METADATA = 16


class FunctionTool(FunctionSpec, forbid_unknown_fields=True, kw_only=True):
    type: Literal["function"]


class FunctionChoice(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    name: str


class TextFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    format: TextFormat | None = None
    verbosity: None = None


class Reasoning(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Comes back from clients that send a response's own fields."""

    effort: None = None
    summary: None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None


class ResponsesBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields in the second part are known, and refused unless they change nothing; then come extensions."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    store: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    truncation: str | None = None
    include: list[str] | None = None
    reasoning: Reasoning | None = None
    service_tier: str | None = None
    top_logprobs: Int | None = None

    top_k: Int | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    request_timeout: Annotated[float, msgspec.Meta(gt=0, le=86400)] | None = None


_SAMPLING = ("temperature", "top_p", "top_k", "seed", "ignore_eos")


class _Response(BlockAnswer):
    """One request on its way from body to answer."""

    def __init__(self, context: RequestContext, body: ResponsesBody) -> None:
        super().__init__(context)
        self.body = body
        self.model = context.check_model(body.model)
        self.id = f"resp_{context.request_id}"
        self.created = int(time.time())
        self._numbers = itertools.count()
        refuse_unless(
            body,
            store=(False,),
            previous_response_id=(),
            background=(False,),
            truncation=("disabled",),
            include=([],),
            service_tier=("auto", "default"),
            top_logprobs=(0,),
        )
        for name in ("user", "safety_identifier", "prompt_cache_key"):
            check_user(getattr(body, name), name)
        metadata = body.metadata or {}
        if len(metadata) > MAX_METADATA or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
            raise invalid(f"metadata: at most {MAX_METADATA} names of 64 characters with texts of 512", "metadata")
        self.names = {"prompt": "input", "max_tokens": "max_output_tokens"}
        values = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or ()
        self.params = SamplingParams(**values, max_tokens=body.max_output_tokens, stop=stop)
        wanted = body.text.format if body.text is not None else None
        if body.structured_outputs is not None:
            if wanted is not None and wanted.type != "text":
                raise invalid(
                    "structured_outputs: give only one of structured_outputs and text.format", "structured_outputs"
                )
            self.params = self.params.replace(structured_outputs=body.structured_outputs.params())
        elif wanted is not None and wanted.type != "text":
            self.params = self.params.replace(structured_outputs=_format(wanted))
            self.names["structured_outputs"] = "text.format"

    def conversation(self) -> Conversation:
        body, choice = self.body, self.body.tool_choice
        return Conversation(
            self.context,
            template_messages(body.instructions, body.input, self.context.config.max_messages),
            self.params,
            tools=[
                function_tool(tool.name, tool.description, tool.parameters, strict=tool.strict)
                for tool in body.tools or ()
            ],
            tool_choice=named_tool(choice.name) if isinstance(choice, FunctionChoice) else choice,
            one_call=body.parallel_tool_calls is False,
            names=self.names,
        )

    # The object.

    def response(self, status: str, error: ApiError | None = None) -> dict[str, Any]:
        """The response as it is now; its items only at the end."""
        body, is_end = self.body, status != "in_progress"
        if status == "completed" and self._cut_by():
            status = "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None if error is None else {"code": error.code or "server_error", "message": error.message},
            "incomplete_details": {"reason": self._cut_by()} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": self._items(status) if is_end else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": self.params.temperature,
            "text": {"format": body.text.format if body.text and body.text.format else {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": self.params.top_p,
            "truncation": "disabled",
            "usage": self._usage() if is_end else None,
            "user": body.user,
        }

    def _cut_by(self) -> str | None:
        """Why the answer is not whole, if it is not."""
        reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
        return reasons.get(self.splitter.finish_reason or "")

    def _usage(self) -> dict[str, Any]:
        generated, prompt = self.generation.num_generated_tokens, self.generation.num_prompt_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.num_cached_tokens},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": self.splitter.num_thought_tokens},
            "total_tokens": prompt + generated,
        }

    def _items(self, status: str) -> list[dict[str, Any]]:
        last = len(self.splitter.blocks) - 1
        return [
            self._item(i, block, "incomplete" if i == last and status != "completed" else "completed")
            for i, block in enumerate(self.splitter.blocks)
        ]

    def _item(self, index: int, block: Block, status: str) -> dict[str, Any]:
        """An output item. While it is in progress it is empty."""
        is_empty = status == "in_progress"
        item: dict[str, Any] = {"id": self._item_id(index, block), "status": status}
        if block.kind == "call":
            arguments = "" if is_empty else block.text
            return {
                "type": "function_call", **item, "call_id": block.call_id, "name": block.name, "arguments": arguments
            }  # fmt: skip
        content = [] if is_empty else [_part(block.kind, block.text)]
        if block.kind == "thought":
            return {"type": "reasoning", **item, "summary": [], "content": content}
        return {"type": "message", **item, "role": "assistant", "content": content}

    def _item_id(self, index: int, block: Block) -> str:
        prefix = {"call": "fc", "thought": "rs", "text": "msg"}[block.kind]
        return f"{prefix}_{self.context.request_id}_{index}"

    def complete(self) -> dict[str, Any]:
        return self.response("completed")

    # The stream.

    def _event(self, kind: str, **fields: Any) -> bytes:
        return named_event({"type": kind, "sequence_number": next(self._numbers), **fields})

    def on_begin(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self.response("in_progress"))
        yield self._event("response.in_progress", response=self.response("in_progress"))

    def on_block(self, index: int, block: Block) -> Iterator[bytes]:
        item = self._item(index, block, "in_progress")
        yield self._event("response.output_item.added", output_index=index, item=item)
        if block.kind != "call":
            where = {"item_id": item["id"], "output_index": index, "content_index": 0}
            yield self._event("response.content_part.added", **where, part=_part(block.kind, ""))

    def on_text(self, index: int, block: Block, text: str) -> bytes:
        where = {"item_id": self._item_id(index, block), "output_index": index}
        if block.kind == "call":
            return self._event("response.function_call_arguments.delta", **where, delta=text)
        if block.kind == "thought":
            return self._event("response.reasoning_text.delta", **where, content_index=0, delta=text)
        return self._event("response.output_text.delta", **where, content_index=0, delta=text, logprobs=[])

    def on_block_end(self, index: int, *, is_last: bool) -> Iterator[bytes]:
        block = self.splitter.blocks[index]
        where = {"item_id": self._item_id(index, block), "output_index": index}
        if block.kind == "call":
            fields = {**where, "name": block.name, "arguments": block.text}
            yield self._event("response.function_call_arguments.done", **fields)
        else:
            kind = "response.reasoning_text.done" if block.kind == "thought" else "response.output_text.done"
            logprobs: dict[str, Any] = {} if block.kind == "thought" else {"logprobs": []}
            yield self._event(kind, **where, content_index=0, text=block.text, **logprobs)
            part = _part(block.kind, block.text)
            yield self._event("response.content_part.done", **where, content_index=0, part=part)
        item = self._item(index, block, "incomplete" if is_last and self._cut_by() else "completed")
        yield self._event("response.output_item.done", output_index=index, item=item)

    def on_end(self) -> Iterator[bytes]:
        end = self.response("completed")
        yield self._event(f"response.{end['status']}", response=end)

    def error_event(self, error: ApiError) -> bytes:
        return self._event("response.failed", response=self.response("failed", error))


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "thought":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _format(wanted: TextFormat) -> Any:
    if wanted.type == "json_object":
        return StructuredOutputs(json_object=True).params()
    if wanted.name is None:
        raise invalid("text.format.name: this field is required", "text.format.name", code="missing_required_parameter")
    named = NamedSchema(name=wanted.name, schema=wanted.schema, strict=wanted.strict)
    return schema_format(named, "text.format")


@operation(ResponseAnswer, body=ResponsesBody, chunk=AnyObject)
async def create_response(request: Request) -> Response:
    """The answer to a conversation that is sent whole."""
    context = RequestContext.of(request)
    body = await parse_body(request, ResponsesBody, context.config)
    return await _Response(context, body).respond(request, stream=body.stream, timeout_s=body.request_timeout)
