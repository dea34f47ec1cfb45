"""``GET /dashboard``: a small live page without external assets, and the numbers that it shows."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from fastllm.server.answer import json_answer
from fastllm.server.context import RequestContext
from fastllm.server.metrics import Metrics
from fastllm.server.openai.answers import AnyObject
from fastllm.server.operation import operation

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@operation(media_type="text/html")
async def page(request: Request) -> Response:
    """A live page without external assets."""
    html = resources.files("fastllm.server").joinpath("dashboard.html").read_bytes()
    return Response(html, media_type="text/html", headers={"content-security-policy": _POLICY})


@operation(AnyObject)
async def data(request: Request) -> Response:
    """Counters and percentiles since the start; the page makes rates of them."""
    server = RequestContext.of(request).server
    assert isinstance(server.observer, Metrics)
    stats = server.llm.stats()
    shares = (0.5, 0.95, 0.99)
    return json_answer(
        {
            "model": server.config.served_model_names[0],
            "running": stats["num_running"],
            "waiting": stats["num_waiting"],
            "pages": stats["num_pages"],
            "pages_used": stats["num_pages_referenced"],
            "pages_cached": stats["num_pages_cached"],
            "prompt_tokens": stats["num_prompt_tokens"],
            "generated_tokens": stats["num_generated_tokens"],
            "prefix_queries": stats["prefix_query_tokens"],
            "prefix_hits": stats["prefix_hit_tokens"],
            "read_bytes": stats["read_bytes"],
            "forward_s": stats["forward_s"],
            "memory_bandwidth": server.config.memory_bandwidth,
            "preemptions": stats["num_preemptions"],
            "requests": stats["num_requests"],
            "ttft_s": server.observer.fine_ttft.percentiles(shares),
            "itl_s": server.observer.fine_itl.percentiles(shares),
            "trouble": server.trouble(),
        }
    )
