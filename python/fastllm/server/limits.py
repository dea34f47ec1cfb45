"""What a key may use: token buckets for requests and tokens, and a number of requests at the same time."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence

from fastllm.server.config import ApiKey
from fastllm.server.context import RequestContext
from fastllm.server.errors import ApiError

# Only these paths count; looking at /metrics costs nothing.
_PREFIX = "/v1/"
_FREE = "/v1/models"


class Bucket:
    """Fills at ``per_minute`` and holds as much. The level may go below zero: tokens are taken afterwards."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60
        self._capacity = max(1.0, per_minute)
        self._level = self._capacity
        self._clock = clock
        self._seen = clock()

    def wait_s(self, amount: float) -> float:
        """Seconds until ``amount`` can be taken; 0: now."""
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._seen) * self._rate)
        self._seen = now
        missing = min(amount, self._capacity) - self._level
        return 0.0 if missing <= 1e-9 else missing / self._rate

    def take(self, amount: float) -> None:
        self._level -= amount


class _Use:
    def __init__(self, key: ApiKey, clock: Callable[[], float]) -> None:
        self.running = 0
        self.requests = Bucket(key.requests_per_minute, clock) if key.requests_per_minute else None
        self.tokens = Bucket(key.tokens_per_minute, clock) if key.tokens_per_minute else None


class Limiter:
    """The use of all keys."""

    def __init__(self, keys: Sequence[ApiKey], clock: Callable[[], float] = time.monotonic) -> None:
        self._use = {key.name: _Use(key, clock) for key in keys}

    @contextlib.asynccontextmanager
    async def admit(self, context: RequestContext, path: str) -> AsyncIterator[None]:
        """Around a request. Raises ApiError 429 with Retry-After."""
        key = context.key
        if key is None or not path.startswith(_PREFIX) or path.startswith(_FREE):
            yield
            return
        use = self._use[key.name]
        if key.max_concurrent is not None and use.running >= key.max_concurrent:
            raise _too_many(f"this key may have {key.max_concurrent} requests at a time", 1)
        for bucket, what in ((use.requests, "requests"), (use.tokens, "tokens")):
            if bucket is not None and (wait := bucket.wait_s(1)) > 0:
                raise _too_many(f"this key has used its {what} per minute", wait)
        if use.requests is not None:
            use.requests.take(1)
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1
            if use.tokens is not None:
                use.tokens.take(context.num_prompt_tokens + context.num_generated_tokens)


def _too_many(message: str, wait_s: float) -> ApiError:
    return ApiError(429, message, code="rate_limit_exceeded", retry_after_s=max(1, math.ceil(wait_s)))
