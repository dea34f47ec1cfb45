"""What a server may be told. Every limit has a default; a refusal names the limit."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import TYPE_CHECKING

from fastllm.errors import InvalidRequestError
from fastllm.server.cost import Price
from fastllm.server.filters import FilterChain
from fastllm.server.openai.tools import STYLES

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


@dataclasses.dataclass(frozen=True, slots=True)
class ApiKey:
    """Who may call, and how much. A limit of None is none.

    Attributes:
        name: what logs and metrics say instead of the key.
        secret: the key itself; never logged.
        requests_per_minute, tokens_per_minute: token buckets that hold one minute's worth.
        max_concurrent: requests at the same time.
        priority: of this key's requests in the engine; lower is served first. A request can only add to it.
        cache_salt: requests share cached prefixes only within the same salt; keys of the same salt share theirs.
    """

    name: str
    secret: str = dataclasses.field(repr=False)
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrent: int | None = None
    priority: int = 0
    cache_salt: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of the HTTP side; those of the engine are the arguments of ``AsyncLLM``.

    Attributes:
        metrics_port: /metrics is served there and not on ``port``, by ``fastllm serve``.
        served_model_names: what clients may write in ``model``; the first is reported.
        allowed_hosts: further names that the ``Host`` header may have when bound to a loopback address.
        allowed_origins: for CORS; empty: no CORS headers at all.
        request_timeout_s: from the request's arrival to its last byte; None: no limit.
        send_timeout_s: a client that takes nothing for so long is cut off.
        head_timeout_s, body_timeout_s: for the client to send head and body.
        drain_timeout_s: how long running requests may go on after SIGTERM.
        stall_timeout_s: no step for so long while requests wait or run: /health says 503.
        max_sequences_factor: n x prompts of one request is at most this many times ``max_num_seqs``.
        tool_call_parser: how the model writes calls: hermes, llama3_json, mistral, none; auto: by its chat template.
        reasoning_parser: "think" splits text between think tags off the answer; None does not.
        filters: content filters of prompts and answers.
        memory_bandwidth: bytes per second that the device reads at most; None: /metrics has no share of it.
        tracer_provider: of OpenTelemetry; None: no traces.
        trace_content: spans have prompts and answers too.
        prices: of each served model name; amounts are reported where there is one.
        strict_openai: refuse fields that are not known; False leaves them out and names them in the answer's header
            ``x-ignored-fields``. A field that is known with a value that is not supported is refused either way.
        enable_prompt_logprobs: allow ``echo`` together with ``logprobs``; costs a row of logits per prompt token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int | None = None
    served_model_names: tuple[str, ...] = ("fastllm-demo",)
    api_keys: tuple[ApiKey, ...] = ()
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    request_timeout_s: float | None = None
    send_timeout_s: float = 60.0
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    stall_timeout_s: float = 5.0
    max_connections: int = 1024
    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 32 << 10
    max_header_count: int = 100
    max_json_depth: int = 64
    max_prompts: int = 64
    max_embedding_inputs: int = 2048
    max_messages: int = 4096
    max_sequences_factor: int = 8
    strict_openai: bool = True
    enable_prompt_logprobs: bool = False
    tool_call_parser: str = "auto"
    reasoning_parser: str | None = None
    filters: FilterChain | None = None
    memory_bandwidth: float | None = None
    tracer_provider: TracerProvider | None = None
    trace_content: bool = False
    prices: dict[str, Price] = dataclasses.field(default_factory=dict)
    log_json: bool = False
    log_requests: bool = True

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.api_keys and not self.insecure:
            raise InvalidRequestError(
                f"host {self.host} can be reached from other machines and there is no API key: give --api-key-file, "
                "or --insecure to serve everybody"
            )
        if self.tool_call_parser not in (*STYLES, "auto", "none"):
            raise InvalidRequestError(f"tool_call_parser must be auto, none, {', '.join(STYLES)}")
        if self.reasoning_parser not in (None, "think"):
            raise InvalidRequestError("reasoning_parser must be think, or absent")
        if not self.served_model_names or not all(self.served_model_names):
            raise InvalidRequestError("served_model_name must not be empty")
        if unknown := self.prices.keys() - set(self.served_model_names):
            raise InvalidRequestError(f"prices: {min(unknown)} is not a name of the served model")
        names = [key.name for key in self.api_keys]
        if len(set(names)) != len(names) or len({key.secret for key in self.api_keys}) != len(names):
            raise InvalidRequestError("API keys: two have the same name or the same secret")
        for key in self.api_keys:
            if len(key.secret) < 8 or not key.secret.isascii() or not key.secret.isprintable() or " " in key.secret:
                raise InvalidRequestError(f"API key {key.name!r}: at least 8 printable ASCII characters, no spaces")
            if "/" in key.cache_salt:
                raise InvalidRequestError(f"API key {key.name!r}: cache_salt must not contain a slash")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(
                ("_s", "_bytes", "_count", "_depth", "_prompts", "_inputs", "_messages", "_factor", "_bandwidth")
            ) and (value is not None and not value > 0):
                raise InvalidRequestError(f"{field.name} = {value} must be positive")
        if self.trace_content and self.tracer_provider is None:
            raise InvalidRequestError("trace_content needs a tracer provider (--otlp-traces-endpoint)")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise InvalidRequestError("TLS needs both ssl_certfile and ssl_keyfile")


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
