"""``GET /metrics``: Prometheus text. Names and buckets are vLLM's where vLLM has an equal; the rest is ``fastllm:``.

Requests are counted on the event loop as they are answered; the engine's counters are read when somebody asks.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

import fastllm
from fastllm import EmbeddingOutput, RequestOutput
from fastllm.server.context import RequestContext
from fastllm.server.histogram import Histogram
from fastllm.server.observer import Observer
from fastllm.server.operation import operation
from fastllm.server.state import ServerState

# vLLM's buckets.
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
         160.0, 640.0, 2560.0)  # fmt: skip
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_LATENCY = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
            960.0, 1920.0, 7680.0)  # fmt: skip
_N = (1, 2, 5, 10, 20)
# An engine on a small model is faster than vLLM's first bucket: the dashboard has finer ones.
_FINE = tuple(1e-5 * 1.25**i for i in range(70))


def _one_two_five(limit: int) -> tuple[int, ...]:
    """1, 2, 5, 10, ... up to ``limit``."""
    found, scale = [], 1
    while scale <= limit:
        found += [step * scale for step in (1, 2, 5) if step * scale <= limit]
        scale *= 10
    return tuple(found)


class Metrics(Observer):
    """Counts of one server since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.state: ServerState | None = None
        self.answers: Counter[tuple[str, str, str]] = Counter()
        self.finished_reasons: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0})
        self.outcomes: Counter[str] = Counter()
        self.key_tokens: Counter[tuple[str, str]] = Counter()
        self.device_s = self.kv_byte_s = 0.0
        self.amounts: dict[str, float] = {}
        self.ttft, self.itl, self.e2e = Histogram(_TTFT), Histogram(_ITL), Histogram(_LATENCY)
        self.fine_ttft, self.fine_itl = Histogram(_FINE), Histogram(_FINE)
        self.queue, self.prefill, self.decode, self.inference = (Histogram(_LATENCY) for _ in range(4))
        self.request_itl = Histogram(_ITL)
        self.prompt_tokens, self.generation_tokens, self.n = Histogram(()), Histogram(()), Histogram(_N)

    def attach(self, state: ServerState) -> None:
        """Tells the metrics whose they are; once."""
        self.state = state
        self.prompt_tokens = Histogram(_one_two_five(state.max_model_len))
        self.generation_tokens = Histogram(_one_two_five(state.max_model_len))
        self.registry.register(_Counters(self, state))
        ProcessCollector(registry=self.registry)

    # Observer.

    def first_output(self, context: RequestContext, output: RequestOutput, now: float) -> None:
        self.ttft.add(now - context.arrival)
        self.fine_ttft.add(now - context.arrival)

    def more_output(self, context: RequestContext, num_tokens: int, seconds: float) -> None:
        if num_tokens > 0:
            self.itl.add(seconds / num_tokens, num_tokens)
            self.fine_itl.add(seconds / num_tokens, num_tokens)

    def finished(self, context: RequestContext, output: RequestOutput, reasons: list[str], now: float) -> None:
        metrics = output.metrics
        self.finished_reasons.update(reasons)
        self.e2e.add(now - context.arrival)
        self.prompt_tokens.add(metrics.num_prompt_tokens)
        self.generation_tokens.add(metrics.num_generated_tokens)
        self.n.add(len(reasons))
        if metrics.inter_token_s is not None:
            self.request_itl.add(metrics.inter_token_s)
        if metrics.queued_s is not None and metrics.first_token_s is not None and metrics.total_s is not None:
            self.queue.add(metrics.queued_s)
            self.prefill.add(metrics.first_token_s - metrics.queued_s)
            self.decode.add(metrics.total_s - metrics.first_token_s)
            self.inference.add(metrics.total_s - metrics.queued_s)

    def embedded(self, context: RequestContext, output: EmbeddingOutput, now: float) -> None:
        self.finished_reasons["stop"] += 1
        self.e2e.add(now - context.arrival)
        self.prompt_tokens.add(output.metrics.num_prompt_tokens)

    def answered(self, context: RequestContext, method: str) -> None:
        self.answers[context.endpoint or "other", method, str(context.status)] += 1
        if context.outcome:
            self.outcomes[context.outcome] += 1
            if context.outcome in ("disconnected", "slow_client", "request_timeout"):
                self.finished_reasons["abort"] += 1
        cost = context.cost
        self.device_s += cost.device_s
        self.kv_byte_s += cost.kv_byte_s
        if (price := context.price) is not None:
            amount = price.amount(cost.device_s, cost.kv_byte_s)
            self.amounts[price.currency] = self.amounts.get(price.currency, 0.0) + amount
        if context.key is not None:
            self.key_tokens[context.key.name, "prompt"] += context.num_prompt_tokens
            self.key_tokens[context.key.name, "generation"] += context.num_generated_tokens


class _Counters(Collector):
    """Turns counts into metric families when they are asked for."""

    def __init__(self, metrics: Metrics, state: ServerState) -> None:
        self._metrics = metrics
        self._state = state
        self._model = state.config.served_model_names[0]
        info = state.llm.info()
        self._plan = info["memory"]
        self._page_size = int(self._plan["kv_tokens"]) // max(1, int(info["engine"]["num_pages"]))

    def collect(self) -> Iterator[Metric]:
        yield from self._engine()
        yield from self._requests()
        yield from self._server()

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counters(self, name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model_name", *labels])
        for key, value in sorted(values.items()):
            family.add_metric([self._model, *((key,) if isinstance(key, str) else key)], value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model], histogram.cumulative(), histogram.sum)
        return family

    def _engine(self) -> Iterator[Metric]:
        s = self._state.llm.stats()
        pages = max(1, s["num_pages"])
        yield self._gauge("vllm:num_requests_running", "Sequences in the batch.", s["num_running"])
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait.", s["num_waiting"])
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.",
                          s["num_pages_referenced"] / pages)  # fmt: skip
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up.", s["prefix_query_tokens"])
        yield self._counter("vllm:prefix_cache_hits", "Of these, found.", s["prefix_hit_tokens"])
        yield self._counter("vllm:num_preemptions", "Sequences that lost their pages.", s["num_preemptions"])
        yield self._counter("vllm:prompt_tokens", "Prompt tokens computed.", s["num_prompt_tokens"])
        yield self._counter("vllm:generation_tokens", "Tokens generated.", s["num_generated_tokens"])
        yield self._gauge("fastllm:kv_blocks_total", "KV pages.", s["num_pages"])
        yield self._gauge("fastllm:kv_blocks_used", "KV pages of live sequences.", s["num_pages_referenced"])
        yield self._gauge("fastllm:kv_blocks_cached", "Free KV pages kept for reuse.", s["num_pages_cached"])
        yield self._gauge("fastllm:kv_block_tokens", "Tokens of a KV page.", self._page_size)
        yield self._counter("fastllm:engine_steps", "Steps.", s["num_steps"])
        yield self._counter("fastllm:engine_failed_steps", "Steps that failed.", s["num_failed_steps"])
        yield self._counter("fastllm:engine_busy_seconds", "Time with work.", s["charged_s"])
        yield self._counter("fastllm:engine_aborted_seconds", "Of it, for requests that were aborted.", s["aborted_s"])
        parts = {part: s[f"{part}_s"] for part in ("schedule", "forward", "sample", "hand_over")}
        yield self._counters("fastllm:engine_step_seconds", "Time of steps by part.", ["part"], parts)
        yield self._counter("fastllm:engine_read_bytes", "Weights and K/V that steps had to read.", s["read_bytes"])
        if (bandwidth := self._state.bandwidth) is not None:
            yield self._gauge("fastllm:memory_bandwidth_bytes", "What the device reads per second.", bandwidth.limit)
            yield self._gauge("fastllm:memory_bandwidth_share", "Of it, reached in the last ten seconds' steps.",
                              bandwidth.share(s))  # fmt: skip
        yield self._counter("fastllm:nonfinite_rows", "Rows of logits with NaN or infinity.", s["num_nonfinite_rows"])
        yield self._gauge("fastllm:grammars", "Of requests that have not ended.", s["num_grammars"])
        yield self._counter("fastllm:grammar_masks", "Masks of structured outputs that were asked for.", s["num_masks"])
        yield self._counter(
            "fastllm:grammar_masks_late",
            "Of these, not there in time: a token was computed again.",
            s["num_late_masks"],
        )
        use = self._state.llm.expert_use()
        reads = {str(i): float(layer[:, 1].sum()) for i, layer in enumerate(use) if layer.any()}
        yield self._counters("fastllm:expert_reads", "Reads of an expert's weights.", ["layer"], reads)

    def _requests(self) -> Iterator[Metric]:
        m = self._metrics
        yield self._counters("vllm:request_success", "Sequences by the reason of their end.", ["finished_reason"],
                             dict(m.finished_reasons))  # fmt: skip
        for name, text, histogram in (
            ("vllm:time_to_first_token_seconds", "From the request to its first token.", m.ttft),
            ("vllm:inter_token_latency_seconds", "Between tokens.", m.itl),
            ("vllm:time_per_output_token_seconds", "The same under vLLM's older name.", m.itl),
            ("vllm:request_time_per_output_token_seconds", "A request's mean between tokens.", m.request_itl),
            ("vllm:e2e_request_latency_seconds", "From the request to its last token.", m.e2e),
            ("vllm:request_queue_time_seconds", "Until the first step.", m.queue),
            ("vllm:request_prefill_time_seconds", "From the first step to the first token.", m.prefill),
            ("vllm:request_decode_time_seconds", "From the first token to the last.", m.decode),
            ("vllm:request_inference_time_seconds", "From the first step to the last token.", m.inference),
            ("vllm:request_prompt_tokens", "Prompt tokens of a request.", m.prompt_tokens),
            ("vllm:request_generation_tokens", "Generated tokens of a request.", m.generation_tokens),
            ("vllm:request_params_n", "Sequences of a request.", m.n),
        ):
            yield self._histogram(name, text, histogram)

    def _server(self) -> Iterator[Metric]:
        m = self._metrics
        yield self._counters("fastllm:http_requests", "Answers by endpoint, method and status.",
                             ["endpoint", "method", "status"], dict(m.answers))  # fmt: skip
        yield self._counters("fastllm:request_outcomes", "Requests that did not end well, by kind.", ["kind"],
                             dict(m.outcomes))  # fmt: skip
        yield self._counters("fastllm:key_tokens", "Tokens by API key.", ["key", "kind"], dict(m.key_tokens))
        yield self._counter("fastllm:request_device_seconds", "The engine's time of answered requests.", m.device_s)
        yield self._counter("fastllm:request_kv_byte_seconds", "Their KV memory, times seconds.", m.kv_byte_s)
        yield self._counters("fastllm:request_cost", "Their price.", ["currency"], m.amounts)
        plan = GaugeMetricFamily("fastllm:memory_plan_bytes", "The memory plan.", labels=["model_name", "purpose"])
        for purpose in ("budget", "weight", "activation", "kv", "total"):
            plan.add_metric([self._model, purpose], float(self._plan[f"{purpose}_bytes"]))
        yield plan
        yield self._gauge("fastllm:ready", "1 while /ready says 200.",
                          float(self._state.is_ready and not self._state.is_draining))  # fmt: skip
        resident = resident_bytes() - float(self._plan["total_bytes"])
        yield self._gauge("fastllm:memory_over_plan_bytes", "Resident memory less the whole plan.", resident)
        yield self._gauge("fastllm:uptime_seconds", "Since the start.", time.time() - self._state.started)
        info = GaugeMetricFamily("fastllm:build_info", "Version.", labels=["model_name", "version"])
        info.add_metric([self._model, fastllm.__version__], 1)
        yield info


def expert_tokens_text(use: npt.NDArray[np.int64], model: str) -> bytes:
    """``fastllm:expert_tokens_total`` as text: thousands of series, for which prometheus-client takes a tenth of a
    second of the event loop, and this a few milliseconds."""
    name = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    lines = [
        f'fastllm:expert_tokens_total{{expert="{expert}",layer="{layer}",model_name="{name}"}} {tokens}'
        for layer, experts in enumerate(use[..., 0].tolist())
        if any(experts)
        for expert, tokens in enumerate(experts)
    ]
    about = "# HELP fastllm:expert_tokens_total Tokens that chose an expert."
    return "\n".join([about, "# TYPE fastllm:expert_tokens_total counter", *lines, ""]).encode()


def resident_bytes() -> float:
    """Memory of this process that is in RAM; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0.0


@operation(media_type="text/plain")
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    server = RequestContext.of(request).server
    assert isinstance(server.observer, Metrics)
    experts = expert_tokens_text(server.llm.expert_use(), server.config.served_model_names[0])
    text = generate_latest(server.observer.registry) + experts
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
