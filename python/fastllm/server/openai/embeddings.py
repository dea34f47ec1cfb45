"""``POST /v1/embeddings``: pooled hidden states of the model that also generates."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from fastllm import EmbeddingOutput
from fastllm.errors import FastLLMError
from fastllm.server.answer import json_answer
from fastllm.server.body import parse_body
from fastllm.server.context import RequestContext
from fastllm.server.errors import from_engine
from fastllm.server.generation import until_gone
from fastllm.server.openai.answers import EmbeddingsAnswer
from fastllm.server.openai.fields import Placement, Prompts, check_input, check_user, prompt_list
from fastllm.server.operation import operation


class EmbeddingsBody(Placement, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's fields, then the extensions ``pooling`` and ``normalize`` of ``LLM.embed``."""

    input: Prompts
    model: str | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
    pooling: Literal["last", "mean"] | None = None
    normalize: bool | None = None


class _Embeddings:
    """One request on its way from body to answer."""

    def __init__(self, context: RequestContext, body: EmbeddingsBody) -> None:
        self.context = context
        self.body = body
        self.model = context.check_model(body.model)
        check_user(body.user)
        self.inputs = prompt_list(body.input, "input", context.config.max_embedding_inputs)
        # As many at a time as a batch holds: a long list neither fills the queue nor keeps others out of it.
        self.places = asyncio.Semaphore(context.server.max_num_seqs)

    async def whole(self) -> dict[str, Any]:
        tasks = [asyncio.create_task(self._one(number)) for number in range(len(self.inputs))]
        try:
            outputs = await asyncio.gather(*tasks)
        except FastLLMError as error:
            raise from_engine(error, {"prompt": "input", "prompt_token_ids": "input"}) from error
        finally:
            for task in tasks:
                task.cancel()
        num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        usage: dict[str, Any] = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        if self.body.include_cost:
            usage["cost"] = self.context.cost.fields(self.context.price)
        data = [
            {"object": "embedding", "index": index, "embedding": self._encoded(output)}
            for index, output in enumerate(outputs)
        ]
        return {"object": "list", "data": data, "model": self.model, "usage": usage}

    async def _one(self, number: int) -> EmbeddingOutput:
        prompt, body, server = self.inputs[number], self.body, self.context.server
        async with self.places:
            if server.filters is not None:
                text = prompt if isinstance(prompt, str) else self.context.llm.decode(prompt, skip_special_tokens=False)
                check_input(server.filters, text, "input")
            ids = await self.context.llm.encode(prompt) if isinstance(prompt, str) else prompt
            with self.context.charged(len(ids)):
                output = await self.context.llm.embed(
                    ids,
                    pooling=body.pooling or "last",
                    normalize=body.normalize is not False,
                    dimensions=body.dimensions,
                    priority=self.context.priority(body.priority),
                    cache_salt=self.context.cache_salt(body.cache_salt),
                )
        self.context.observe_embedding(number, output)
        return output

    def _encoded(self, output: EmbeddingOutput) -> list[float] | str:
        if self.body.encoding_format == "base64":
            return base64.b64encode(output.embedding.astype(np.dtype("<f4")).tobytes()).decode()
        values: list[float] = output.embedding.tolist()
        return values


@operation(EmbeddingsAnswer, body=EmbeddingsBody)
async def create_embeddings(request: Request) -> Response:
    """Embeddings of one or many inputs, in their order."""
    context = RequestContext.of(request)
    body = await parse_body(request, EmbeddingsBody, context.config)
    embeddings = _Embeddings(context, body)
    return json_answer(await until_gone(request.receive, embeddings.whole, context.deadline(body.request_timeout)))
