"""``POST /tokenize`` and ``POST /detokenize``, in vLLM's shape."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fastllm.errors import FastLLMError
from fastllm.server.answer import json_answer
from fastllm.server.body import parse_body
from fastllm.server.context import RequestContext
from fastllm.server.errors import from_engine, invalid
from fastllm.server.openai.answers import DetokenizeAnswer, TokenizeAnswer
from fastllm.server.openai.fields import TokenId
from fastllm.server.openai.logprobs import token_text
from fastllm.server.openai.messages import Message, template_messages
from fastllm.server.operation import operation


class TokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    tokens: list[TokenId]


@operation(TokenizeAnswer, body=TokenizeBody)
async def tokenize(request: Request) -> Response:
    """Token ids of a text or a conversation."""
    context = RequestContext.of(request)
    body = await parse_body(request, TokenizeBody, context.config)
    context.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt: give either prompt or messages", "prompt")
    try:
        if body.messages is not None:
            messages = template_messages(body.messages, context.config.max_messages)
            tokens = await context.llm.render_chat(
                messages, add_generation_prompt=body.add_generation_prompt is not False
            )
        else:
            tokens = await context.llm.encode(
                body.prompt or "", add_special_tokens=body.add_special_tokens is not False
            )
    except FastLLMError as error:
        raise from_engine(error) from error
    answer = {"count": len(tokens), "max_model_len": context.server.max_model_len, "tokens": tokens}
    answer["token_strs"] = (
        [token_text(context.llm.token_bytes(token)) for token in tokens] if body.return_token_strs else None
    )
    return json_answer(answer)


@operation(DetokenizeAnswer, body=DetokenizeBody)
async def detokenize(request: Request) -> Response:
    """Text of token ids."""
    context = RequestContext.of(request)
    body = await parse_body(request, DetokenizeBody, context.config)
    context.check_model(body.model)
    try:
        return json_answer({"prompt": context.llm.decode(body.tokens, skip_special_tokens=False)})
    except FastLLMError as error:
        raise from_engine(error) from error
