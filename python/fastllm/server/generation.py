"""Requests on the engine: submitted together, merged into one stream of deltas, aborted when nobody wants them.

A request of the API is one engine request per prompt. Whatever ends its consumer (the client left, a deadline, an
error of a sibling) closes the generators, and closing a generator aborts its engine request within a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastllm import CompletionOutput, Logprob, RequestOutput, SamplingParams
from fastllm.errors import FastLLMError
from fastllm.server.errors import ApiError, from_engine, invalid
from fastllm.server.filters import FilterChain

if TYPE_CHECKING:
    from starlette.types import Receive

    from fastllm.server.context import RequestContext

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """What one sequence has got since the last delta of it."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None


@dataclasses.dataclass(slots=True)
class Result:
    """All that one sequence has got."""

    texts: list[str] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs += delta.logprobs
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason


class _Sequence:
    """Whether a sequence has ended for its consumer, and the filter that its text passes."""

    def __init__(self, filters: FilterChain | None) -> None:
        self.finished = False
        self._filter = filters.stream() if filters is not None else None

    def take(self, completion: CompletionOutput, index: int) -> Delta | None:
        """What is new; None if nothing is."""
        if self.finished:
            return None
        text, reason, stop_reason = completion.text, completion.finish_reason, completion.stop_reason
        if not text and not completion.token_ids and reason is None:
            return None
        if self._filter is not None:
            text, matched = self._filter.feed(text)
            if not matched and reason is not None:
                more, matched = self._filter.finish()
                text += more
            if matched:
                reason, stop_reason = "content_filter", None
        self.finished = reason is not None
        return Delta(index, text, completion.token_ids, completion.logprobs, reason, stop_reason)


class Generation:
    """The engine requests of one API request.

    Args:
        prompts: token ids of each; sequence i of prompt p has the index ``p * n + i``.
        include_cost: of usage(): what the request has cost.
        renamed: engine's parameter name -> the endpoint's, for error texts.
    """

    def __init__(
        self,
        context: RequestContext,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        priority: int | None = None,
        cache_salt: str | None = None,
        renamed: dict[str, str] | None = None,
        include_cost: bool = False,
    ) -> None:
        self._context = context
        context.params = params
        if context.config.trace_content:
            context.prompts = prompts
        self._prompts = prompts
        self._params = params
        self._renamed = renamed
        self._include_cost = include_cost
        self._priority = context.priority(priority)
        self._salt = context.cache_salt(cache_salt)
        self.latest: list[RequestOutput | None] = [None] * len(prompts)

    async def deltas(self) -> AsyncGenerator[list[Delta], None]:
        """New text as it comes. Raises ApiError; before the first item if the engine refuses a request."""
        sources = [self._one(i) for i in range(len(self._prompts))]
        source = sources[0] if len(sources) == 1 else _merged(sources)
        filters = self._context.server.filters
        if filters is not None and self._params.logprobs is not None:
            raise invalid("logprobs: not available on a server with content filters", "logprobs")
        sequences = [_Sequence(filters) for _ in range(len(self._prompts) * self._params.n)]
        async with contextlib.aclosing(source) as outputs:
            async for number, output in outputs:
                self.latest[number] = output
                self._context.observe(number, output)
                found = []
                for completion in output.outputs:
                    index = number * self._params.n + completion.index
                    delta = sequences[index].take(completion, index)
                    if delta is not None:
                        found.append(delta)
                if self._context.config.trace_content:
                    for delta in found:
                        self._context.texts[delta.index] = self._context.texts.get(delta.index, "") + delta.text
                if found:
                    yield found
                if filters is not None and all(sequence.finished for sequence in sequences):
                    return  # a filter may end a sequence before the engine does

    async def all(self) -> list[Result]:
        """Waits for the end of all; one result per sequence."""
        results = [Result() for _ in range(len(self._prompts) * self._params.n)]
        async with contextlib.aclosing(self.deltas()) as batches:
            async for deltas in batches:
                for delta in deltas:
                    results[delta.index].add(delta)
        return results

    async def _one(self, number: int) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        try:
            prompt = {"prompt_token_ids": self._prompts[number]}
            outputs = self._context.llm.generate(
                prompt, self._params, priority=self._priority, cache_salt=self._salt, deltas=True
            )
            failed = False
            with self._context.charged(len(self._prompts[number])):
                async with contextlib.aclosing(outputs) as stream:  # type: ignore[type-var]
                    async for output in stream:
                        failed = failed or any(c.finish_reason in ("abort", "error") for c in output.outputs)
                        yield number, output
        except FastLLMError as error:
            raise from_engine(error, self._renamed) from error
        if failed:
            raise ApiError(500, "the model failed on this request", code="engine_error")

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self._prompts)

    @property
    def num_generated_tokens(self) -> int:
        return sum(output.metrics.num_generated_tokens for output in self.latest if output is not None)

    def usage(self) -> dict[str, object]:
        """Counts so far, as OpenAI writes them."""
        generated = self.num_generated_tokens
        cached = sum(output.metrics.num_cached_tokens for output in self.latest if output is not None)
        cost = {"cost": self._context.cost.fields(self._context.price)} if self._include_cost else {}
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.num_prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
            **cost,
        }


async def _merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Items of all sources as they come. The first error ends all; a queue of one each keeps what waits small."""
    queue: asyncio.Queue[tuple[T | None, BaseException | None]] = asyncio.Queue(maxsize=len(sources))

    async def pump(source: AsyncGenerator[T, None]) -> None:
        try:
            async with contextlib.aclosing(source) as items:
                async for item in items:
                    await queue.put((item, None))
            await queue.put((None, None))
        except Exception as error:
            await queue.put((None, error))

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    try:
        running = len(tasks)
        while running:
            item, error = await queue.get()
            if error is not None:
                raise error
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class ClientGoneError(Exception):
    """The client has closed its connection."""


async def until_gone(
    receive: Receive,
    work: Callable[[], Coroutine[Any, Any, T]],
    deadline: float | None,
    watcher: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> T:
    """Runs ``work``, and cancels it when the client leaves, ``deadline`` (of time.monotonic()) passes, or ``watcher``
    ends.

    Raises:
        ClientGoneError, ApiError 504 after the deadline, or what ``watcher`` raised.
    """
    task = asyncio.create_task(work())
    watches = [asyncio.create_task(_wait_until_gone(receive))]
    if watcher is not None:
        watches.append(asyncio.create_task(watcher()))
    try:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        everything: list[asyncio.Task[Any]] = [task, *watches]
        await asyncio.wait(everything, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watches[0].done():
            raise ClientGoneError
        for watch in watches:
            if watch.done():
                watch.result()
        raise ApiError(504, "the request did not finish within its time limit", code="request_timeout")
    finally:
        for one in (task, *watches):
            one.cancel()
        await asyncio.gather(task, *watches, return_exceptions=True)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
