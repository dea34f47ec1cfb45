"""Logs: a line per request with its id and counts. Never a prompt, an answer or a key."""

from __future__ import annotations

import json
import logging
import sys
import time

from starlette.types import Scope

from fastllm.server.context import RequestContext

_requests = logging.getLogger("fastllm.server.request")


def log_request(context: RequestContext, scope: Scope) -> None:
    """One line. The path is the route's, not what the client wrote."""
    _requests.info(
        "request",
        extra={
            "fields": {
                "id": context.request_id,
                "method": scope["method"],
                "path": context.endpoint or "other",
                "status": context.status,
                "outcome": context.outcome or "ok",
                "key": context.key.name if context.key else None,
                "prompt_tokens": context.num_prompt_tokens,
                "generated_tokens": context.num_generated_tokens,
                **_cost_fields(context),
                "seconds": round(time.monotonic() - context.arrival, 4),
            }
        },
    )


def _cost_fields(context: RequestContext) -> dict[str, object]:
    """Of requests that reached the engine."""
    cost = context.cost.fields(context.price)
    return cost if cost["device_seconds"] else {}


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        text = super().format(record)
        return text + "".join(f" {name}={value}" for name, value in fields.items() if value is not None)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logs(*, as_json: bool) -> None:
    """Sends the server's and uvicorn's logs to standard error. For the command, not for apps that embed the server."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Plain("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("fastllm.server", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if name == "fastllm.server" else logging.WARNING)
