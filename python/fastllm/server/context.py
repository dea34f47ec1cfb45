"""What a request carries: its id, key and times, and the server that it came to."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from fastllm import AsyncLLM, EmbeddingOutput, RequestMetrics, RequestOutput, SamplingParams
from fastllm.errors import FastLLMError
from fastllm.server.config import ApiKey, ServerConfig
from fastllm.server.cost import Cost, Price
from fastllm.server.errors import ApiError, invalid

if TYPE_CHECKING:
    from fastllm.server.state import ServerState


@dataclasses.dataclass(slots=True)
class RequestContext:
    """Lives in the ASGI scope from the first middleware to the last byte."""

    server: ServerState
    request_id: str
    arrival: float = dataclasses.field(default_factory=time.monotonic)
    key: ApiKey | None = None
    endpoint: str = ""
    speaks_anthropic: bool = False
    status: int = 0
    is_complete: bool = False
    outcome: str = ""
    ignored_fields: list[str] = dataclasses.field(default_factory=list)  # only without strict_openai
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    # Of each engine request: time and tokens at its last output, for the inter-token times.
    _last: dict[int, tuple[float, int]] = dataclasses.field(default_factory=dict)
    price: Price | None = None
    model: str = ""
    params: SamplingParams | None = None
    # Of each engine request: times, counts and cost at its last output, and why its sequences have ended.
    engine: dict[int, RequestMetrics] = dataclasses.field(default_factory=dict)
    reasons: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    # Only with trace_content: the prompts' token ids, and the text of each sequence.
    prompts: Sequence[Sequence[int]] = ()
    texts: dict[int, str] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(request: Request) -> RequestContext:
        context = request.scope["fastllm.context"]
        assert isinstance(context, RequestContext)
        return context

    def error_body(self, error: ApiError) -> dict[str, Any]:
        """The JSON object of an error in the dialect of the endpoint."""
        return error.anthropic_body(self.request_id) if self.speaks_anthropic else error.body()

    @property
    def llm(self) -> AsyncLLM:
        return self.server.llm

    @property
    def config(self) -> ServerConfig:
        return self.server.config

    def check_model(self, name: str | None) -> str:
        """The name to report. 404 for a model that is not served."""
        names = self.config.served_model_names
        self.price = self.config.prices.get(name if name is not None else names[0])
        if name is not None and name not in names:
            raise ApiError(
                404,
                "model: this model is not served here; GET /v1/models lists what is",
                param="model",
                code="model_not_found",
            )
        self.model = name if name is not None else names[0]
        return self.model

    def deadline(self, timeout_s: float | None) -> float | None:
        """The earlier of the server's and the request's own time limit, on time.monotonic()."""
        limits = [limit for limit in (self.config.request_timeout_s, timeout_s) if limit is not None]
        return self.arrival + min(limits) if limits else None

    def priority(self, own: int | None) -> int:
        """In the engine: that of the key, and what the request adds. Raises ApiError 400."""
        if self.key is None:
            return own or 0
        if own is not None and own < 0:
            raise invalid("priority: with an API key 0 or more is allowed; lower is served first", "priority")
        return self.key.priority + (own or 0)

    def cache_salt(self, own: str | None) -> str:
        """A key's own salt comes first, and has no slash: no client can reach the prefixes of another key."""
        scope, own = self.key.cache_salt if self.key else "", own or ""
        return f"{scope}/{own}" if scope or own else ""

    @contextlib.contextmanager
    def charged(self, num_prompt_tokens: int) -> Iterator[None]:
        """Around an engine request: its prompt counts from the beginning, unless the engine refuses it."""
        self.num_prompt_tokens += num_prompt_tokens
        try:
            yield
        except FastLLMError:
            self.num_prompt_tokens -= num_prompt_tokens
            raise

    @property
    def cost(self) -> Cost:
        """What the request has taken so far."""
        device_s = sum(metrics.device_s for metrics in self.engine.values())
        page_s = sum(metrics.kv_page_s for metrics in self.engine.values())
        return Cost(device_s, page_s * self.server.page_bytes)

    def observe_embedding(self, number: int, output: EmbeddingOutput) -> None:
        """Counts one embedding."""
        self.engine[number] = output.metrics
        self.server.observer.embedded(self, output, time.monotonic())

    def observe(self, number: int, output: RequestOutput) -> None:
        """Counts one output of an engine request; it has what is new."""
        now = time.monotonic()
        tokens = output.metrics.num_generated_tokens
        before = self._last.get(number)
        self._last[number] = (now, tokens)
        self.engine[number] = output.metrics
        if before is None:
            self.num_generated_tokens += tokens
            self.server.observer.first_output(self, output, now)
        else:
            self.num_generated_tokens += tokens - before[1]
            self.server.observer.more_output(self, tokens - before[1], now - before[0])
        for completion in output.outputs:
            if completion.finish_reason is not None:
                self.reasons.setdefault(number, []).append(completion.finish_reason)
        if output.finished:
            self.server.observer.finished(self, output, self.reasons.get(number, []), now)
