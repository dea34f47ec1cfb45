"""The asyncio interface: the same engine, one awaitable stream per request.

One poller thread per event loop takes the results of a step from the native channel and wakes the loop once. What a
slow consumer does not take is merged, so memory per request is bounded by its own output.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastllm.errors import EngineClosedError
from fastllm.outputs import EmbeddingOutput, RequestOutput
from fastllm.params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fastllm.request_state import EmbeddingState, RequestState
    from fastllm.runtime import EngineOptions, Prompt

# Results wake the poller at once; this only bounds how long it takes to notice that its loop is gone.
_POLL_S = 0.5


class _LoopPoller:
    """Serves the requests of one event loop. Created in the loop's thread; `_serve` runs in its own, which ends with
    the engine, with `stop()`, or after the loop has gone."""

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = engine.open_channel()
        self._engine = engine
        # Weak: the pollers hang on their loops, so a loop that nobody needs any more takes its poller along.
        self._loop = weakref.ref(loop)
        weakref.finalize(loop, self.stop).atexit = False
        self._streams: dict[int, _Stream] = {}
        self._has_work = threading.Event()
        self._stopped = False
        threading.Thread(target=self._serve, name="fastllm-poller", daemon=True).start()

    def register(self, stream: _Stream) -> None:
        self._streams[stream.state.request_id] = stream
        self._has_work.set()

    def forget(self, stream: _Stream) -> None:
        self._streams.pop(stream.state.request_id, None)

    def wake(self) -> None:
        """Lets it see that the engine has ended."""
        self._has_work.set()

    def stop(self) -> None:
        """Nobody is there any more to take results."""
        self._stopped = True
        self._has_work.set()

    def _serve(self) -> None:
        while not self._stopped:
            self._has_work.wait()  # idle: no wake-ups at all
            deltas: Sequence[Any] = []
            failure: Exception | None = None
            is_over = False
            try:
                deltas = self.channel.poll(_POLL_S)
                if not deltas and self.channel.is_closed:
                    deltas = self.channel.poll(0)  # what came before it was closed
                    failure = EngineClosedError("the engine was closed before this request had finished")
                    is_over = True
            except Exception as error:  # ends the requests that are here; those that come later are served
                failure = error
            if not self._hand_over(deltas, failure):
                self._abort_all()
                return
            if is_over:
                return
            if not self._streams:
                self._has_work.clear()
                if self._streams or self._stopped or self.channel.is_closed:  # in between
                    self._has_work.set()

    def _hand_over(self, deltas: Sequence[Any], failure: Exception | None) -> bool:
        """False if the loop is gone."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        if deltas or failure is not None:
            try:
                loop.call_soon_threadsafe(self._deliver, deltas, failure)
            except RuntimeError:  # closed since
                return False
        return True

    def _abort_all(self) -> None:
        for request_id in list(self._streams):
            self._engine.abort(request_id)

    def _deliver(self, deltas: Sequence[Any], failure: Exception | None) -> None:
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None:
                stream.state.add(delta)
                stream.changed.set()
        if failure is not None:
            for stream in self._streams.values():
                if not stream.state.finished:
                    stream.state.error = failure
                    stream.changed.set()


class _Stream:
    def __init__(self, state: RequestState | EmbeddingState) -> None:
        self.state = state
        self.changed = asyncio.Event()


class AsyncLLM:
    """``LLM`` for asyncio. Same arguments; ``generate`` is an async generator.

    >>> async with AsyncLLM() as llm:
    ...     async for output in llm.generate("The os module", SamplingParams(max_tokens=16)):
    ...         print(output.outputs[0].text)

    Requests may come from several event loops in several threads. Ending or cancelling the consumer aborts its request.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        from fastllm.runtime import Runtime  # not above: importing the package stays quick and starts no thread

        self._runtime = Runtime(model, _engine_options(options))
        self._pollers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopPoller] = weakref.WeakKeyDictionary()
        self._pollers_lock = threading.Lock()
        weakref.finalize(self, _stop_all, self._pollers).atexit = False

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        deltas: bool = False,
    ) -> AsyncIterator[RequestOutput]:
        """Yields the request's output as it grows; the last one has ``finished`` set.

        With ``deltas`` each output has only what is new since the one before: text, token_ids and logprobs of the
        sequences that have grown or ended. A long answer then costs the same per token as a short one.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError: before the first output.
        """
        loop = asyncio.get_running_loop()
        poller = self._poller(loop)
        params = sampling_params if sampling_params is not None else SamplingParams()
        # Tokenizing a long prompt takes a while: not on the event loop. Submitting is quick and must be here: results
        # are delivered in this thread, so none can come between submit and register.
        grammar = None
        if isinstance(params, SamplingParams) and params.structured_outputs is not None:
            grammar = await asyncio.wrap_future(self._runtime.compile(params.structured_outputs))
        request = await loop.run_in_executor(None, self._runtime.prepare, prompt, params, grammar)
        state = self._runtime.submit_prepared(request, poller.channel, priority=priority, cache_salt=cache_salt)
        with self._consuming(state, poller) as stream:
            finished = False  # as the consumer knows it: the request may end while it is busy with what came before
            while not finished:
                await stream.changed.wait()
                stream.changed.clear()
                if state.error is not None:
                    raise state.error
                output = state.new_output() if deltas else state.output()
                finished = output.finished
                yield output

    async def embed(
        self,
        prompt: Prompt,
        *,
        pooling: str = "last",
        normalize: bool = True,
        dimensions: int | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> EmbeddingOutput:
        """The embedding of one prompt; see ``LLM.embed``. Cancelling it aborts its request."""
        from fastllm.request_state import Pooling

        loop = asyncio.get_running_loop()
        poller = self._poller(loop)
        how = Pooling(pooling, normalize, dimensions)
        request = await loop.run_in_executor(None, self._runtime.prepare_embedding, prompt, how)
        state = self._runtime.submit_embedding(request, poller.channel, priority=priority, cache_salt=cache_salt)
        with self._consuming(state, poller) as stream:
            await stream.changed.wait()
        if state.error is not None:
            raise state.error
        return state.output()

    @contextlib.contextmanager
    def _consuming(self, state: RequestState | EmbeddingState, poller: _LoopPoller) -> Iterator[_Stream]:
        """While somebody waits for its results; a request that has not ended by then is aborted."""
        stream = _Stream(state)
        poller.register(stream)
        try:
            yield stream
        finally:
            poller.forget(stream)
            if not state.finished:
                self._runtime.engine.abort(state.request_id)

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        **template_variables: Any,
    ) -> AsyncIterator[RequestOutput]:
        """``generate`` for a conversation."""
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(
            None, lambda: self._runtime.render_chat(messages, variables=template_variables)
        )
        async for output in self.generate(prompt, sampling_params):
            yield output

    def abort(self, request_id: str) -> None:
        """Ends a request within one step; its consumer gets a last output with ``finish_reason`` "abort".

        Ids that are unknown or have finished are ignored.
        """
        if request_id.isascii() and request_id.isdigit() and len(request_id) <= 18:  # others name no request
            self._runtime.engine.abort(int(request_id))

    def info(self) -> dict[str, Any]:
        """See ``LLM.info``."""
        return self._runtime.info()

    def stats(self) -> dict[str, Any]:
        """The engine's counters: running and waiting requests, pages, steps, tokens. Cheap; also after ``close()``."""
        return {**self._runtime.engine.stats(), "num_grammars": self._runtime.num_grammars}

    def expert_use(self) -> npt.NDArray[np.int64]:
        """See ``LLM.expert_use``."""
        return self._runtime.expert_use()

    def measure_read_bandwidth(self) -> float | None:
        """See ``LLM.measure_read_bandwidth``."""
        return self._runtime.measure_read_bandwidth()

    @property
    def chat_template(self) -> str | None:
        """The Jinja text of the model's chat template, if it has one."""
        template = self._runtime.chat_template
        return None if template is None else template.source

    @property
    def is_closed(self) -> bool:
        """True after ``close()``, or after the engine has ended by itself."""
        return bool(self._runtime.engine.is_closed)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, computed beside the event loop."""
        tokenizer = self._runtime._tokenizer()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, lambda: tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self._runtime._tokenizer().decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token id stands for; empty for an id that the tokenizer does not have."""
        return self._runtime._tokenizer().byte_table.bytes(token_id)

    async def render_chat(
        self, messages: Sequence[Mapping[str, Any]], /, *, add_generation_prompt: bool = True, **template_variables: Any
    ) -> list[int]:
        """Token ids of a conversation by the model's chat template, rendered beside the event loop.

        ``self`` and ``messages`` are positional only: a variable of a template may have any name.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            None,
            lambda: self._runtime.render_chat(
                messages, add_generation_prompt=add_generation_prompt, variables=template_variables
            ),
        )

    def close(self) -> None:
        """Ends the engine; consumers get EngineClosedError."""
        self._runtime.close()
        with self._pollers_lock:
            for poller in list(self._pollers.values()):
                poller.wake()  # not stop(): it has yet to hand over the ends of the requests

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def _poller(self, loop: asyncio.AbstractEventLoop) -> _LoopPoller:
        with self._pollers_lock:
            if self._runtime.engine.is_closed:
                raise EngineClosedError("this engine was closed")
            poller = self._pollers.get(loop)
            if poller is None:
                for other in [other for other in self._pollers if other.is_closed()]:
                    self._pollers.pop(other).stop()
                poller = self._pollers[loop] = _LoopPoller(self._runtime.engine, loop)
            return poller


def _stop_all(pollers: Mapping[asyncio.AbstractEventLoop, _LoopPoller]) -> None:
    for poller in list(pollers.values()):
        poller.stop()


def _engine_options(options: Mapping[str, Any]) -> EngineOptions:
    from fastllm.runtime import EngineOptions

    try:
        return EngineOptions(**options)
    except TypeError as error:
        raise TypeError(f"AsyncLLM: {error}; the options are those of LLM") from None
