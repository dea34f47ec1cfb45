"""A conversation on its way from body to answer, where the answer is a list of blocks and the stream has named events:
Anthropic's messages and OpenAI's responses. A dialect says how it begins, how a block begins, grows and ends, and how
it ends; this says when.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fastllm.server.answer import json_answer
from fastllm.server.context import RequestContext
from fastllm.server.conversation import Conversation
from fastllm.server.errors import ApiError
from fastllm.server.generation import Generation, until_gone
from fastllm.server.pieces import Block, Splitter
from fastllm.server.sse import EventStream


class BlockAnswer(abc.ABC):
    """See the head of this file. ``generation`` and ``splitter`` are there once the conversation has started."""

    generation: Generation
    splitter: Splitter

    def __init__(self, context: RequestContext) -> None:
        self.context = context

    # The dialect.

    @abc.abstractmethod
    def conversation(self) -> Conversation:
        """What is asked for. Raises ApiError."""

    @abc.abstractmethod
    def complete(self) -> dict[str, Any]:
        """The object of an answer that is not streamed."""

    @abc.abstractmethod
    def on_begin(self) -> Iterable[bytes]:
        """Events before the first block."""

    @abc.abstractmethod
    def on_block(self, index: int, block: Block) -> Iterable[bytes]:
        """A block has begun; it is shown empty."""

    @abc.abstractmethod
    def on_text(self, index: int, block: Block, text: str) -> bytes:
        """``text`` was added to it."""

    @abc.abstractmethod
    def on_block_end(self, index: int, *, is_last: bool) -> Iterable[bytes]:
        """It is whole."""

    @abc.abstractmethod
    def on_end(self) -> Iterable[bytes]:
        """Events after the last block."""

    @abc.abstractmethod
    def error_event(self, error: ApiError) -> bytes:
        """The last event of a stream that failed."""

    # What is the same in all.

    async def respond(self, request: Request, *, stream: bool | None, timeout_s: float | None) -> Response:
        """The answer, streamed or whole."""
        deadline = self.context.deadline(timeout_s)
        self.generation, (pipeline,) = await self.conversation().start()
        self.splitter = Splitter(pipeline)
        if stream:
            return EventStream(self.context, self._events(), deadline, last=b"", error_event=self.error_event)
        return json_answer(await until_gone(request.receive, self._whole, deadline))

    @property
    def num_cached_tokens(self) -> int:
        output = self.generation.latest[0]
        return output.metrics.num_cached_tokens if output is not None else 0

    async def _whole(self) -> dict[str, Any]:
        async with contextlib.aclosing(self.generation.deltas()) as batches:
            async for deltas in batches:
                self.splitter.feed_all(deltas)
        return self.complete()

    async def _events(self) -> AsyncGenerator[bytes, None]:
        blocks, has_begun = self.splitter.blocks, False
        async with contextlib.aclosing(self.generation.deltas()) as batches:
            async for deltas in batches:
                if not has_begun:
                    has_begun = True
                    for event in self.on_begin():
                        yield event
                for piece in self.splitter.feed_all(deltas):
                    # By identity: two blocks may say the same.
                    index = next(i for i, block in enumerate(blocks) if block is piece.block)
                    if piece.is_new:
                        if index:
                            for event in self.on_block_end(index - 1, is_last=False):
                                yield event
                        for event in self.on_block(index, piece.block):
                            yield event
                    yield self.on_text(index, piece.block, piece.text)
        if blocks:
            for event in self.on_block_end(len(blocks) - 1, is_last=True):
                yield event
        for event in self.on_end():
            yield event
