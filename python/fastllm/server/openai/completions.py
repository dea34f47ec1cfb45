"""``POST /v1/completions``: one or many prompts, streamed or whole."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fastllm.errors import FastLLMError
from fastllm.server.answer import json_answer
from fastllm.server.body import parse_body
from fastllm.server.context import RequestContext
from fastllm.server.errors import from_engine, invalid
from fastllm.server.generation import Delta, Generation, until_gone
from fastllm.server.openai.answers import CompletionAnswer
from fastllm.server.openai.fields import (
    Int,
    Prompts,
    SamplingFields,
    check_count,
    check_input,
    prompt_list,
    refuse_unless,
    sampling_params,
    wants_running_usage,
    wants_usage,
)
from fastllm.server.openai.logprobs import CompletionLogprobs, joined
from fastllm.server.operation import operation
from fastllm.server.sse import EventStream, event

DEFAULT_MAX_TOKENS = 16


class CompletionBody(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """``best_of`` and ``suffix`` are known, and refused unless they change nothing."""

    prompt: Prompts
    logprobs: Int | None = None
    echo: bool | None = None
    best_of: Int | None = None
    suffix: str | None = None


class _Completion:
    """One request on its way from body to answer."""

    def __init__(self, context: RequestContext, body: CompletionBody) -> None:
        self.context = context
        self.body = body
        self.model = context.check_model(body.model)
        self.id = f"cmpl-{context.request_id}"
        self.created = int(time.time())
        self.n = body.n or 1
        self.echo = bool(body.echo)
        refuse_unless(body, best_of=(body.n or 1,), suffix=("",))
        if self.echo and body.logprobs is not None and not context.config.enable_prompt_logprobs:
            raise invalid(
                "logprobs: together with echo this server must be started with --enable-prompt-logprobs", "logprobs"
            )
        # With echo, zero tokens may be asked for: the prompt's own log-probabilities. The engine generates one, which
        # is left out.
        self.drops_output = self.echo and body.max_tokens == 0
        max_tokens = 1 if self.drops_output else DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        self.params = sampling_params(
            body,
            max_tokens=max_tokens,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if self.echo else None,
        )

    async def prepare(self) -> None:
        """Token ids of the prompts."""
        many = prompt_list(self.body.prompt, "prompt", self.context.config.max_prompts)
        check_count(self.body.n, len(many), self.context.server.max_sequences)
        self.prompts: list[list[int]] = []
        filters = self.context.server.filters
        for prompt in many:
            if filters is not None:
                check_input(filters, prompt if isinstance(prompt, str) else self._decoded(prompt), "prompt")
            try:
                self.prompts.append(await self.context.llm.encode(prompt) if isinstance(prompt, str) else prompt)
            except FastLLMError as error:
                raise from_engine(error) from error
        self.texts: list[str] | None = None
        if self.echo:
            self.texts = [self._decoded(ids) for ids in self.prompts]
        self.generation = Generation(
            self.context,
            self.prompts,
            self.params,
            priority=self.body.priority,
            cache_salt=self.body.cache_salt,
            include_cost=bool(self.body.include_cost),
        )

    def _decoded(self, ids: list[int]) -> str:
        if not all(0 <= token < 2**31 for token in ids):
            raise invalid("prompt: contains what is not a token id", "prompt")
        return self.context.llm.decode(ids, skip_special_tokens=False)

    def envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def prompt_logprobs(self, prompt: int) -> list[Any] | None:
        output = self.generation.latest[prompt]
        return None if output is None else output.prompt_logprobs

    async def whole(self) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        choices = []
        for index, result in enumerate(await self.generation.all()):
            number = index // self.n
            text, pieces = "", []
            writer = self._writer()
            if self.texts is not None:
                text = self.texts[number]
                if writer is not None:
                    pieces.append(writer.add(self.prompts[number], self.prompt_logprobs(number) or []))
            if not self.drops_output:
                text += result.text
                if writer is not None:
                    pieces.append(writer.add(result.token_ids, result.logprobs or []))
            choices.append(
                {
                    "index": index,
                    "text": text,
                    "logprobs": joined(pieces) if pieces else None,
                    "finish_reason": "length" if self.drops_output else result.finish_reason,
                    "stop_reason": result.stop_reason,
                }
            )
        return {**self.envelope(choices), "usage": self._usage()}

    def _usage(self) -> dict[str, object]:
        usage = self.generation.usage()
        if self.drops_output:
            usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        return usage

    def _writer(self) -> CompletionLogprobs | None:
        count = self.body.logprobs
        return None if count is None else CompletionLogprobs(self.context.llm, count)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The chunks of a streamed answer."""
        total = len(self.prompts) * self.n
        writers = [self._writer() for _ in range(total)]
        echoed = [not self.echo] * total
        null_usage: dict[str, Any] = {"usage": None} if wants_usage(self.body) else {}
        async with contextlib.aclosing(self.generation.deltas()) as batches:
            async for deltas in batches:
                usage = {"usage": self._usage()} if wants_running_usage(self.body) else null_usage
                choices = [self._chunk(delta, writers[delta.index], echoed) for delta in deltas]
                # All that a step has brought is one write to the connection.
                yield b"".join(
                    event({**self.envelope([choice]), **usage}) for choice in choices if _says_something(choice)
                )
        if wants_usage(self.body):
            yield event({**self.envelope([]), "usage": self._usage()})

    def _chunk(self, delta: Delta, writer: CompletionLogprobs | None, echoed: list[bool]) -> dict[str, Any]:
        text, pieces = "", []
        if not echoed[delta.index]:
            echoed[delta.index] = True
            number = delta.index // self.n
            text = self.texts[number] if self.texts is not None else ""
            if writer is not None:
                pieces.append(writer.add(self.prompts[number], self.prompt_logprobs(number) or []))
        if not self.drops_output:
            text += delta.text
            if writer is not None and delta.token_ids:
                pieces.append(writer.add(delta.token_ids, delta.logprobs or []))
        reason = delta.finish_reason
        return {
            "index": delta.index,
            "text": text,
            "logprobs": joined(pieces) if pieces else None,
            "finish_reason": "length" if reason is not None and self.drops_output else reason,
            "stop_reason": delta.stop_reason,
        }


def _says_something(choice: dict[str, Any]) -> bool:
    return bool(choice["text"] or choice["logprobs"] or choice["finish_reason"])


@operation(CompletionAnswer, body=CompletionBody, chunk=CompletionAnswer)
async def create_completion(request: Request) -> Response:
    """Completions of one or many prompts."""
    context = RequestContext.of(request)
    body = await parse_body(request, CompletionBody, context.config)
    completion = _Completion(context, body)
    deadline = context.deadline(body.request_timeout)
    await completion.prepare()
    if body.stream:
        return EventStream(context, completion.events(), deadline)
    return json_answer(await until_gone(request.receive, completion.whole, deadline))
