"""OpenTelemetry: one span for each request that an endpoint of the model has taken, by the GenAI conventions.

The span is made when the request has ended, with the times that it had: while it runs, tracing does nothing. It
continues the caller's trace (``traceparent``). Queue, prefill and decode are attributes, under vLLM's names, and
events. Needs the extra ``[otel]``; without a tracer provider nothing here is imported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from opentelemetry import propagate
from opentelemetry.trace import SpanKind, StatusCode, TracerProvider
from starlette.types import Scope

import fastllm
from fastllm import RequestMetrics
from fastllm.server.context import RequestContext

_OPERATIONS = {
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/embeddings": "embeddings",
}
# Attribute under gen_ai.request -> the engine's parameter.
_PARAMS = {"top_p": "top_p", "temperature": "temperature", "max_tokens": "max_tokens", "seed": "seed", "top_k": "top_k",
           "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty",
           "choice.count": "n"}  # fmt: skip


def exporting_provider(endpoint: str) -> TracerProvider:
    """A provider that sends spans in batches to a collector's OTLP/HTTP URL, from a thread of its own, and what is left
    when the process ends. ``OTEL_*`` variables set the rest: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER,
    OTEL_EXPORTER_OTLP_HEADERS and so on."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # What OTEL_SERVICE_NAME says comes first.
    resource = Resource({SERVICE_NAME: "fastllm"}).merge(Resource.create())
    provider = SdkTracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


class Tracing:
    """Makes the spans of one server. ``with_content``: also what was asked and answered, as the model reads it."""

    def __init__(self, provider: TracerProvider, *, with_content: bool) -> None:
        self._tracer = provider.get_tracer("fastllm.server", fastllm.__version__)
        self._with_content = with_content

    def answered(self, context: RequestContext, scope: Scope) -> None:
        """Called once a request has been answered, or its client has gone."""
        operation = _OPERATIONS.get(context.endpoint)
        if operation is None:
            return
        end = time.time_ns()
        begin = end - _ns(time.monotonic() - context.arrival)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span(
            f"{operation} {context.model}".rstrip(),
            propagate.extract(headers),
            SpanKind.SERVER,
            dict(_attributes(context, scope, operation)),
            start_time=begin,
        )
        if span.is_recording():
            times = _times(list(context.engine.values()))
            span.set_attributes({f"gen_ai.latency.{name}": value for name, value in times.items()})
            if "time_in_queue" in times:
                # The engine's clock begins when it has got the request: after reading, checking and the template.
                arrival = end - _ns(times.get("e2e", 0.0)) if "e2e" in times else begin
                span.add_event("scheduled", timestamp=arrival + _ns(times["time_in_queue"]))
                if "time_to_first_token" in times:
                    span.add_event("first_token", timestamp=arrival + _ns(times["time_to_first_token"]))
            if self._with_content:
                span.set_attributes(_content(context))
            if context.status >= 500 or (context.status == 200 and context.outcome not in ("", "disconnected")):
                span.set_status(StatusCode.ERROR, context.outcome)
        span.end(end)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _attributes(context: RequestContext, scope: Scope, operation: str) -> Iterator[tuple[str, Any]]:
    yield "gen_ai.operation.name", operation
    yield "gen_ai.provider.name", "fastllm"
    if context.model:
        yield "gen_ai.request.model", context.model
        yield "gen_ai.response.model", context.model
    yield "gen_ai.request.id", context.request_id
    if context.params is not None:
        for name, parameter in _PARAMS.items():
            if (value := getattr(context.params, parameter)) is not None:
                yield f"gen_ai.request.{name}", value
    yield "gen_ai.usage.input_tokens", context.num_prompt_tokens
    yield "gen_ai.usage.output_tokens", context.num_generated_tokens
    if cached := sum(metrics.num_cached_tokens for metrics in context.engine.values()):
        yield "gen_ai.usage.cache_read.input_tokens", cached
    if reasons := [reason for number in sorted(context.reasons) for reason in context.reasons[number]]:
        yield "gen_ai.response.finish_reasons", reasons
    yield "http.request.method", scope["method"]
    yield "http.route", context.endpoint
    yield "http.response.status_code", context.status
    if context.outcome:
        yield "error.type", context.outcome
    if context.key is not None:
        yield "fastllm.key.name", context.key.name


def _times(metrics: list[RequestMetrics]) -> dict[str, float]:
    """Seconds of a request's phases; of several prompts, from the first to be served until the last has ended."""
    queued = [one.queued_s for one in metrics if one.queued_s is not None]
    first = [one.first_token_s for one in metrics if one.first_token_s is not None]
    total = [one.total_s for one in metrics if one.total_s is not None]
    found: dict[str, float] = {}
    if queued:
        found["time_in_queue"] = min(queued)
        if first:
            found["time_to_first_token"] = min(first)
            found["time_in_model_prefill"] = min(first) - min(queued)
        if len(total) == len(metrics):
            found["e2e"] = max(total)
            if first:
                found["time_in_model_decode"] = max(total) - min(first)
    return found


def _content(context: RequestContext) -> dict[str, str]:
    """Prompts as the chat template has rendered them, and texts as they left."""

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"type": "text", "content": text}]}

    prompts = [message("user", context.llm.decode(ids, skip_special_tokens=False)) for ids in context.prompts]
    texts = [message("assistant", text) for _, text in sorted(context.texts.items())]
    return {
        "gen_ai.input.messages": json.dumps(prompts, ensure_ascii=False),
        "gen_ai.output.messages": json.dumps(texts, ensure_ascii=False),
    }
