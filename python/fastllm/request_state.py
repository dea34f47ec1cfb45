"""What a request has given so far: deltas of the engine in, outputs out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastllm.errors import InvalidRequestError
from fastllm.outputs import CompletionOutput, EmbeddingOutput, Logprob, RequestMetrics, RequestOutput
from fastllm.params import SamplingParams

POOLINGS = ("last", "mean")


@dataclasses.dataclass(frozen=True, slots=True)
class Pooling:
    """How an embedding is made of hidden states; see ``LLM.embed``."""

    kind: str = "last"
    normalize: bool = True
    dimensions: int | None = None

    def check(self, hidden_size: int) -> None:
        """Raises InvalidRequestError naming what is wrong."""
        if self.kind not in POOLINGS:
            raise InvalidRequestError(f"pooling must be {' or '.join(POOLINGS)}, not this")
        if not isinstance(self.normalize, bool):
            raise InvalidRequestError("normalize must be True or False")
        n = self.dimensions
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= hidden_size):
            raise InvalidRequestError(f"dimensions must be an integer from 1 to {hidden_size}, the model's hidden size")


class EmbeddingState:
    """The embedding of one prompt."""

    def __init__(self, request_id: int, prompt: str | None, prompt_token_ids: list[int], pooling: Pooling) -> None:
        self.request_id = request_id
        self.finished = False
        self.error: Exception | None = None
        self._prompt = prompt
        self._prompt_token_ids = prompt_token_ids
        self._pooling = pooling
        self._delta: Any = None

    def add(self, delta: Any) -> None:
        """Takes the native RequestDelta."""
        self._delta = delta
        self.finished = True
        self.error = delta.error

    def output(self) -> EmbeddingOutput:
        """After the end; empty if it failed. Dimensions are cut first, so that a cut vector has length 1 too."""
        values = np.frombuffer(self._delta.embedding, np.float32)[: self._pooling.dimensions]
        if self._pooling.normalize:
            length = float(np.sqrt(np.sum(np.square(values, dtype=np.float64))))
            values = (values / length).astype(np.float32) if length > 0 else values
        native = self._delta.metrics
        return EmbeddingOutput(
            request_id=str(self.request_id),
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            embedding=values,
            metrics=_metrics(native, 0, len(self._prompt_token_ids), [(native.device_s, native.kv_page_s)]),
        )


class RequestState:
    """Collects the deltas of one request into a RequestOutput."""

    def __init__(
        self, request_id: int, prompt: str | None, prompt_token_ids: list[int], params: SamplingParams
    ) -> None:
        self.request_id = request_id
        self._prompt = prompt
        self._prompt_token_ids = prompt_token_ids
        self._completions = [_Completion(index, params.logprobs is not None) for index in range(params.n)]
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if params.prompt_logprobs is not None:
            self._prompt_logprobs = [None]
        self._metrics: Any = None
        # Each sequence has its own, so far.
        self._costs = [(0.0, 0.0)] * params.n
        self.error: Exception | None = None

    def add(self, delta: Any) -> None:
        """Takes one native RequestDelta."""
        self._metrics = delta.metrics
        self._costs[delta.index] = (delta.metrics.device_s, delta.metrics.kv_page_s)
        if self._prompt_logprobs is not None:
            self._prompt_logprobs.extend(_logprob_dict(entry) for entry in delta.prompt_logprobs)
        if delta.error is not None:
            self.error = delta.error
        self._completions[delta.index].add(delta)

    @property
    def finished(self) -> bool:
        return all(c.finish_reason is not None for c in self._completions)

    @property
    def num_generated_tokens(self) -> int:
        return sum(len(c.token_ids) for c in self._completions)

    def text(self, index: int = 0) -> str:
        return "".join(self._completions[index].pieces)

    def output(self) -> RequestOutput:
        """The request as it is now."""
        return self._output([c.output() for c in self._completions])

    def new_output(self) -> RequestOutput:
        """What has come since the last call: sequences without news are left out, the others have only what is new."""
        return self._output([c.new_output() for c in self._completions if c.has_news])

    def _output(self, outputs: list[CompletionOutput]) -> RequestOutput:
        return RequestOutput(
            request_id=str(self.request_id),
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=None if self._prompt_logprobs is None else list(self._prompt_logprobs),
            outputs=outputs,
            finished=self.finished,
            metrics=_metrics(self._metrics, self.num_generated_tokens, len(self._prompt_token_ids), self._costs),
        )


class _Completion:
    def __init__(self, index: int, wants_logprobs: bool) -> None:
        self.index = index
        self.pieces: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] | None = [] if wants_logprobs else None
        self.cumulative_logprob = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.has_news = False
        self._num_taken_pieces = self._num_taken_tokens = 0

    def add(self, delta: Any) -> None:
        self.has_news = True
        if delta.text:
            self.pieces.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        if self.logprobs is not None:
            for entry in delta.logprobs:
                self.logprobs.append(_logprob_dict(entry))
                self.cumulative_logprob += entry.logprob
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_reason = delta.stop_reason

    def output(self) -> CompletionOutput:
        return CompletionOutput(
            index=self.index,
            text="".join(self.pieces),
            token_ids=list(self.token_ids),
            logprobs=None if self.logprobs is None else list(self.logprobs),
            cumulative_logprob=None if self.logprobs is None else self.cumulative_logprob,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def new_output(self) -> CompletionOutput:
        text = "".join(self.pieces[self._num_taken_pieces :])
        token_ids = self.token_ids[self._num_taken_tokens :]
        logprobs = None if self.logprobs is None else self.logprobs[self._num_taken_tokens :]
        self._num_taken_pieces, self._num_taken_tokens = len(self.pieces), len(self.token_ids)
        self.has_news = False
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            cumulative_logprob=None if self.logprobs is None else self.cumulative_logprob,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


def _logprob_dict(entry: Any) -> dict[int, Logprob]:
    """The token itself first, then the most likely ones."""
    found = {entry.token: Logprob(entry.logprob, entry.rank)}
    for rank, (token, logprob) in enumerate(entry.top, start=1):
        found.setdefault(token, Logprob(logprob, rank))
    return found


def _metrics(native: Any, num_generated: int, num_prompt: int, costs: Sequence[tuple[float, float]]) -> RequestMetrics:
    if native is None:
        return RequestMetrics(None, None, None, None, num_prompt, 0, 0, 0)

    def since_arrival(moment: float) -> float | None:
        return moment - native.arrival_s if moment > 0 else None

    first, last = since_arrival(native.first_token_s), since_arrival(native.last_token_s)
    steps = num_generated - 1
    return RequestMetrics(
        queued_s=since_arrival(native.first_scheduled_s),
        first_token_s=first,
        total_s=last,
        inter_token_s=(last - first) / steps if first is not None and last is not None and steps > 0 else None,
        num_prompt_tokens=native.num_prompt_tokens,
        num_cached_tokens=native.num_cached_tokens,
        num_generated_tokens=num_generated,
        num_preemptions=native.num_preemptions,
        device_s=sum(device_s for device_s, _ in costs),
        kv_page_s=sum(kv_page_s for _, kv_page_s in costs),
    )
