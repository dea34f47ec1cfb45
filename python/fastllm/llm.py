"""The blocking interface: prompts in, texts out, batched by the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastllm.errors import EngineClosedError, FastLLMError, InvalidRequestError, QueueFullError
from fastllm.outputs import EmbeddingOutput, RequestOutput
from fastllm.params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fastllm.request_state import EmbeddingState, RequestState
    from fastllm.runtime import Prompt
    from fastllm.work import WorkPerToken

    State = RequestState | EmbeddingState

# How long a wait for results lasts before Python gets to look for signals (Ctrl-C).
_POLL_S = 0.05


class LLM:
    """A model and its engine in this process.

    Use it as a context manager, or call ``close()``. All methods may be called from any thread; calls made at the same
    time share batches.

    Args:
        model: checkpoint directory or hub id; None and ``"demo"`` are the small model of the package.
        tokenizer: directory of another tokenizer.
        skip_tokenizer_init: load no tokenizer: prompts are token ids, and outputs have no text.
        device: ``"auto"``, ``"cpu"``, ``"cpu:<level>"`` (scalar, avx2, avx512, vnni, bf16) or ``"reference"``.
        dtype: type of the weights: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"``, ``"float16"``.
        quantization: ``"int4"`` or ``"int8"`` rounds float weights to integers while they are loaded; with a group
            size ``"int4-g32"``, ``"int4-g64"``, ``"int4-g128"`` or ``"int4-row"`` (and so for int8). The embedding and
            the head have 8 bits in both. Checkpoints that are quantized already need no option: what a packed format
            holds exactly stays packed.
        activation_mode: how activations meet integer weights: ``"a8"`` one byte, ``"a8r"`` a second byte where a group
            has an outlier, ``"a15"`` two bytes, ``"bf16"``, ``"f32"``; ``"auto"`` is ``"a8r"``, on CUDA
            ``"bf16"``, and ``"f32"`` is not there. ``"fp8"`` rounds the activations of fp8 matrices to e4m3 (CUDA;
            their ``"auto"`` is ``"bf16"``). Or modes by pattern over the matrices, ``{"*.down": "a15"}``.
        kv_cache_dtype: type of the KV cache; ``"auto"`` is the type of the weights. ``"int8"`` halves the memory of
            ``"bfloat16"``, and so does ``"fp8"`` (e4m3), on CUDA alone; docs/quality.md has what they cost.
        max_model_len: longest sequence, prompt and output, in tokens; None is the model's own limit.
        max_num_seqs: sequences in a batch at most.
        max_num_batched_tokens: tokens of one step at most; longer prompts are cut into chunks. None: up to 512.
        memory_budget: bytes, or for example ``"4GiB"``: weights, activations and KV cache together. None: at most
            80 % of the memory that is free now.
        enable_prefix_caching: reuse the KV cache of equal beginnings.
        load_format: ``"auto"``, or ``"dummy"`` for random weights from ``config.json`` alone.
        packed_cache: directory for weights as they lie in memory, written by the first start and read by the next ones
            at the speed of the disk; None keeps none. A file that is stale or damaged is written anew.
        kv_cache_tokens: size of the KV cache in tokens, instead of what the budget leaves.
        num_threads: CPU threads; None: from affinity, cgroup quota and cores.
        seed: of requests that bring none.
        max_queue: waiting requests at most; more raise QueueFullError.
        scheduler: ``"continuous"``: requests join and leave the batch in every step; ``"static"``: the next batch
            begins when all of this one has ended (for comparison: slower, same texts).
        revision: of a hub id.
        show_progress: a progress bar while weights are loaded.

    Raises:
        CheckpointError: a file is missing or wrong. UnsupportedModelError: architecture or feature not known.
        OutOfMemoryError: the plan does not fit the budget. InvalidRequestError: a wrong argument.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        tokenizer: str | Path | None = None,
        skip_tokenizer_init: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        activation_mode: str | Mapping[str, str] = "auto",
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int | None = None,
        memory_budget: int | str | None = None,
        enable_prefix_caching: bool = True,
        load_format: str = "auto",
        packed_cache: str | Path | None = None,
        kv_cache_tokens: int | None = None,
        num_threads: int | None = None,
        seed: int = 0,
        max_queue: int = 512,
        scheduler: str = "continuous",
        revision: str | None = None,
        show_progress: bool = False,
    ) -> None:
        # Here and not above: importing the package stays quick and starts no thread (NumPy's does).
        from fastllm.runtime import EngineOptions, Runtime

        self._runtime = Runtime(
            model,
            EngineOptions(
                tokenizer=tokenizer,
                skip_tokenizer_init=skip_tokenizer_init,
                device=device,
                dtype=dtype,
                quantization=quantization,
                activation_mode=activation_mode,
                kv_cache_dtype=kv_cache_dtype,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                memory_budget=memory_budget,
                enable_prefix_caching=enable_prefix_caching,
                load_format=load_format,
                packed_cache=packed_cache,
                kv_cache_tokens=kv_cache_tokens,
                num_threads=num_threads,
                seed=seed,
                max_queue=max_queue,
                scheduler=scheduler,
                revision=revision,
                show_progress=show_progress,
            ),
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Generates for one or many prompts and waits for all.

        Args:
            prompts: a string, a list of token ids, ``{"prompt_token_ids": [...]}``, or a list of these. Special tokens
                written in a string are read as such, as Hugging Face tokenizers do.
            sampling_params: one for all, or one per prompt; None is ``SamplingParams()``.
            priority: lower is served first.
            cache_salt: requests share cached prefixes only within the same salt.
            use_tqdm: show a progress bar.

        Returns:
            One output per prompt, in order.

        Raises:
            InvalidRequestError: a prompt or parameter is wrong; nothing of the call is generated then.
            InternalError, OutOfMemoryError: a request failed while it ran. The others went on: ``error.outputs`` has
                the outputs of all.
        """
        items = _as_list(prompts)
        params = _params_for(items, sampling_params)
        return self._generate(items, params, priority, cache_salt, use_tqdm)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: str = "last",
        normalize: bool = True,
        dimensions: int | None = None,
        priority: int = 0,
        cache_salt: str = "",
        use_tqdm: bool = False,
    ) -> list[EmbeddingOutput]:
        """Embeddings of prompts, from the same weights, batches and KV cache as ``generate``.

        Args:
            prompts: as in ``generate``.
            pooling: of the final hidden states (normed, before the output head): ``"last"`` takes that of the last
                token, ``"mean"`` the mean over all tokens. What the model was trained for is on its card.
            normalize: to length 1, after ``dimensions``.
            dimensions: only the first so many of the model's ``info()["hidden_size"]``; None keeps all. Meant for
                models that were trained for it (Matryoshka).
            priority: lower is served first.
            cache_salt: prompts share cached prefixes only within the same salt. A mean needs the hidden states of all
                tokens, so it finds nothing in the cache, but leaves its own there.
            use_tqdm: show a progress bar.

        Raises:
            InvalidRequestError: a prompt or parameter is wrong. InternalError: the model gave NaN or infinity.
        """
        from fastllm.request_state import Pooling

        runtime, how = self._runtime, Pooling(pooling, normalize, dimensions)
        items = _as_list(prompts)
        submissions = (
            partial(
                runtime.submit_embedding,
                runtime.prepare_embedding(item, how),
                priority=priority,
                cache_salt=cache_salt,
            )
            for item in items
        )
        return self._run(submissions, len(items), use_tqdm)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answers one conversation, or many: lists of ``{"role": ..., "content": ...}``.

        Args:
            messages: a conversation or a list of conversations.
            sampling_params: one for all, or one per conversation; None is ``SamplingParams()``.
            add_generation_prompt: end the prompt with the beginning of an answer.
            chat_template_kwargs: data that the model's template reads (``tools``, ``documents``, ``enable_thinking``).
            use_tqdm: show a progress bar.

        Raises:
            InvalidRequestError: the template refuses the conversation, or a parameter is wrong.
        """
        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
            raise InvalidRequestError(f"messages must be a list, not {type(messages).__name__}")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts: list[Prompt] = [
            self._runtime.render_chat(
                conversation,  # type: ignore[arg-type]
                add_generation_prompt=add_generation_prompt,
                variables=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        return self._generate(prompts, _params_for(prompts, sampling_params), 0, "", use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[str]:
        """Yields the text of one prompt as it is generated. Leaving the loop aborts the request."""
        params = sampling_params if sampling_params is not None else SamplingParams()
        if isinstance(params, SamplingParams) and params.n != 1:
            raise InvalidRequestError(f"stream() gives one text; n = {params.n}")
        channel = self._runtime.engine.open_channel()
        state = self._runtime.submit(prompt, params, channel)
        try:
            while not state.finished:
                for delta in _poll(channel):
                    state.add(delta)
                    if delta.text:
                        yield delta.text
            if state.error is not None:
                raise state.error
        finally:
            if not state.finished:
                self._runtime.engine.abort(state.request_id)

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], sampling_params: SamplingParams | None = None
    ) -> Iterator[str]:
        """``stream()`` for a conversation."""
        return self.stream(self._runtime.render_chat(messages), sampling_params)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds."""
        return self._runtime.encode(text)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self._runtime.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def info(self) -> dict[str, Any]:
        """Each decision that ``None`` or ``"auto"`` left to the library, the memory plan, the engine's counters."""
        return self._runtime.info()

    def expert_use(self) -> npt.NDArray[np.int64]:
        """How much each expert of a mixture was used so far: [layers, experts, 2].

        The first number is that of the tokens that chose the expert, the second how often its weights were read: once
        in each step that had such a token. Zeros for layers without experts; without layers for models without any.
        Up to a second old while the engine runs. Cheap; also after ``close()``.
        """
        return self._runtime.expert_use()

    def measure_read_bandwidth(self) -> float | None:
        """Bytes per second at which the engine's threads read the weights where they lie: from memory, or from the
        processor's cache if they fit into it. Takes a few passes over at most 384 MB; for an engine without work. None
        on devices that have memory of their own.
        """
        return self._runtime.measure_read_bandwidth()

    def work_per_token(self) -> WorkPerToken:
        """Operations and bytes of one token; ``fastllm bench`` compares with them."""
        return self._runtime.work_per_token()

    def close(self) -> None:
        """Ends the engine thread and frees everything. Pending requests end with EngineClosedError."""
        self._runtime.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _generate(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        priority: int,
        cache_salt: str,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        runtime = self._runtime
        submissions = (
            partial(runtime.submit_prepared, runtime.prepare(prompt, one), priority=priority, cache_salt=cache_salt)
            for prompt, one in zip(prompts, params, strict=True)
        )
        return self._run(submissions, len(prompts), use_tqdm)

    def _run(self, submissions: Iterable[Callable[[Any], State]], total: int, use_tqdm: bool) -> list[Any]:
        """The outputs of requests, each submitted by a call with the channel for its results."""
        engine = self._runtime.engine
        channel = engine.open_channel()
        states: list[State] = []
        try:
            with _Collector(channel, total, use_tqdm) as collector:
                for submit in submissions:
                    while True:
                        try:
                            state = submit(channel)
                            break
                        except QueueFullError:
                            collector.poll()  # a call may have more prompts than the queue has places
                    states.append(state)
                    collector.add(state)
                while collector.pending:
                    collector.poll()
        except BaseException:
            # Also KeyboardInterrupt: nothing of this call goes on.
            for state in states:
                engine.abort(state.request_id)
            raise
        outputs: list[Any] = [state.output() for state in states]
        for state in states:
            if state.error is not None:
                if isinstance(state.error, FastLLMError):
                    state.error.outputs = outputs
                raise state.error
        return outputs


def _poll(channel: Any) -> list[Any]:
    """Waits a moment for results; Python sees signals between two calls.

    Raises:
        EngineClosedError: the engine has ended and there is nothing left.
    """
    deltas: list[Any] = channel.poll(_POLL_S)
    if not deltas and channel.is_closed:
        deltas = channel.poll(0)  # what came before it was closed
        if not deltas:
            raise EngineClosedError("the engine was closed before this request had finished")
    return deltas


class _Collector:
    """Takes results off a channel and hands them to the requests of one call."""

    def __init__(self, channel: Any, total: int, show_progress: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._channel = channel
        self._states: dict[int, State] = {}
        self.pending: set[int] = set()
        self._bar = Progress(console=Console(stderr=True), transient=True, disable=not show_progress)
        self._task = self._bar.add_task("generating", total=total)

    def __enter__(self) -> _Collector:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def add(self, state: State) -> None:
        self._states[state.request_id] = state
        self.pending.add(state.request_id)

    def poll(self) -> None:
        """Waits a moment for results."""
        for delta in _poll(self._channel):
            state = self._states[delta.request_id]
            state.add(delta)
            if state.finished and delta.request_id in self.pending:
                self.pending.remove(delta.request_id)
                self._bar.advance(self._task)


def _as_list(prompts: Any) -> list[Prompt]:
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if isinstance(prompts, (bytes, bytearray)) or not isinstance(prompts, Iterable):
        raise InvalidRequestError(f"prompts must be a string, token ids, or a list of these: {type(prompts).__name__}")
    items = list(prompts)
    if items and all(hasattr(item, "__index__") for item in items):
        return [items]  # token ids of one prompt
    return items


def _params_for(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * len(prompts)
    if isinstance(params, (str, Mapping)) or not isinstance(params, Sequence):
        raise InvalidRequestError(f"sampling_params must be a SamplingParams or a list, not {type(params).__name__}")
    if len(params) != len(prompts):
        raise InvalidRequestError(f"{len(params)} sampling_params for {len(prompts)} prompts; give one, or one each")
    return params
