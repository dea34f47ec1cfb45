"""``fastllm serve``: an OpenAI-compatible HTTP server. Flags have vLLM's names where vLLM has them."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastllm.cli import options
from fastllm.errors import InvalidRequestError

_NEEDS = "fastllm serve needs the server extra: pip install 'fastllm-runtime[server]'"


def _take_config(context: typer.Context, path: Path | None) -> Path | None:
    """Options from a YAML file: those of the command line, with - or _; the command line wins."""
    if path is None:
        return None
    try:
        from fastllm.server.settings import read_yaml
    except ImportError:
        raise typer.BadParameter(_NEEDS) from None
    try:
        values = read_yaml(path)
    except InvalidRequestError as error:  # options are read before the command runs
        raise typer.BadParameter(str(error)) from None
    known = {parameter.name for parameter in context.command.params}
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path}: expected option: value lines")
    found = {str(name).replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(found.keys() - known | found.keys() & {"config", "api_key"}):
        raise typer.BadParameter(f"{path}: not an option here: {', '.join(unknown)}")
    context.default_map = {**(context.default_map or {}), **found}
    return path


def run(
    model: Annotated[
        str | None, typer.Argument(help='Checkpoint directory or hub id; the demo model if absent or "demo".')
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with these options.", is_eager=True, callback=_take_config),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics on this port instead.", min=1, max=65535)
    ] = None,
    served_model_name: Annotated[list[str] | None, typer.Option(help="Names that clients use; several.")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="A key; other users can see it here.", envvar="FASTLLM_API_KEY", show_envvar=True)
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="Keys with names and limits; see docs/server.md.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without a key.")] = False,
    allowed_host: Annotated[list[str] | None, typer.Option(help="Further names for the Host header.")] = None,
    allowed_origins: Annotated[list[str] | None, typer.Option(help="Origins for CORS; none by default.")] = None,
    ssl_certfile: Annotated[str | None, typer.Option(help="TLS certificate.")] = None,
    ssl_keyfile: Annotated[str | None, typer.Option(help="TLS key.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Directory of another tokenizer.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    activation_mode: options.ActivationMode = "auto",
    packed_cache: options.PackedCache = None,
    kv_cache_dtype: options.KvCacheDtype = "auto",
    max_model_len: options.MaxModelLen = None,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences in a batch at most.")] = 64,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens of one step at most.")] = None,
    memory_budget: options.MemoryBudget = None,
    kv_cache_tokens: Annotated[int | None, typer.Option(help="Size of the KV cache in tokens.")] = None,
    enable_prefix_caching: Annotated[bool, typer.Option(help="Reuse the KV cache of equal beginnings.")] = True,
    threads: options.Threads = None,
    seed: Annotated[int, typer.Option(help="Of requests that bring none.")] = 0,
    load_format: Annotated[str, typer.Option(help='"auto", or "dummy" for random weights.')] = "auto",
    max_queue: Annotated[int, typer.Option(help="Waiting requests at most; more get 503.")] = 512,
    scheduler: Annotated[str, typer.Option(help='"continuous", or "static" to compare.')] = "continuous",
    request_timeout: Annotated[float | None, typer.Option(help="Seconds for a whole request; none by default.")] = None,
    send_timeout: Annotated[float, typer.Option(help="Seconds until a client that reads nothing is cut off.")] = 60.0,
    drain_timeout: Annotated[float, typer.Option(help="Seconds for running requests after SIGTERM.")] = 30.0,
    stall_timeout: Annotated[float, typer.Option(help="Seconds without a step until /health says 503.")] = 5.0,
    max_body_bytes: Annotated[int, typer.Option(help="Size of a request's body at most.")] = 4 << 20,
    max_connections: Annotated[int, typer.Option(help="Open connections at most.")] = 1024,
    strict_openai: Annotated[bool, typer.Option(help="Refuse fields that are not known; else leave them out.")] = True,
    enable_prompt_logprobs: Annotated[
        bool, typer.Option("--enable-prompt-logprobs", help="Allow echo + logprobs.")
    ] = False,
    tool_call_parser: Annotated[str, typer.Option(help="hermes, llama3_json, mistral, none, auto.")] = "auto",
    reasoning_parser: Annotated[str | None, typer.Option(help='"think": split off text in think tags.')] = None,
    filter_words: Annotated[Path | None, typer.Option(help="File of words that neither come in nor go out.")] = None,
    filter_regex: Annotated[list[str] | None, typer.Option(help="The same as regular expression; several.")] = None,
    content_filter: Annotated[list[str] | None, typer.Option(help="Filter of one's own, module:Class.")] = None,
    require_gate: Annotated[
        bool, typer.Option("--require-gate", help="Serve only a checkpoint whose quantization report passed its gate.")
    ] = False,
    memory_bandwidth: Annotated[
        float | None, typer.Option(help="GB/s that the device reads; measured on the processor, none on others.")
    ] = None,
    price_file: Annotated[Path | None, typer.Option(help="Prices by model name; see docs/server.md.")] = None,
    otlp_traces_endpoint: Annotated[
        str | None, typer.Option(help="Send traces to this OTLP/HTTP URL, e.g. http://localhost:4318/v1/traces.")
    ] = None,
    trace_content: Annotated[bool, typer.Option("--trace-content", help="Traces have prompts and answers.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Logs as JSON lines.")] = False,
    disable_log_requests: Annotated[bool, typer.Option("--disable-log-requests", help="No line per request.")] = False,
) -> None:
    """Serve a model over HTTP: /v1/completions, /v1/chat/completions, /metrics and more (docs/server.md).

    Examples: fastllm serve

    fastllm serve Qwen/Qwen3-0.6B --port 9000 --memory-budget 6GiB
    """
    try:
        from fastllm.server.app import create_app
        from fastllm.server.config import ApiKey, ServerConfig
        from fastllm.server.filters import load_filters
        from fastllm.server.log import set_up_logs
        from fastllm.server.run import serve
        from fastllm.server.settings import check_gate, read_api_keys, read_prices
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == "fastllm":
            raise
        raise InvalidRequestError(_NEEDS) from None
    from fastllm import AsyncLLM

    keys: tuple[ApiKey, ...] = read_api_keys(api_key_file) if api_key_file is not None else ()
    if api_key is not None:
        keys = (*keys, ApiKey("default", api_key))
    # Programs that this process may start have no use for it.
    os.environ.pop("FASTLLM_API_KEY", None)
    server_config = ServerConfig(
        host=host,
        port=port,
        metrics_port=metrics_port,
        served_model_names=tuple(served_model_name or [_name_of(model)]),
        api_keys=keys,
        insecure=insecure,
        allowed_hosts=tuple(name.lower() for name in allowed_host or ()),
        allowed_origins=tuple(allowed_origins or ()),
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        request_timeout_s=request_timeout,
        send_timeout_s=send_timeout,
        drain_timeout_s=drain_timeout,
        stall_timeout_s=stall_timeout,
        max_body_bytes=max_body_bytes,
        max_connections=max_connections,
        strict_openai=strict_openai,
        enable_prompt_logprobs=enable_prompt_logprobs,
        tool_call_parser=tool_call_parser,
        reasoning_parser=reasoning_parser,
        filters=load_filters(word_file=filter_words, patterns=filter_regex or (), names=content_filter or ()),
        memory_bandwidth=memory_bandwidth * 1e9 if memory_bandwidth is not None else None,
        tracer_provider=_tracer_provider(otlp_traces_endpoint) if otlp_traces_endpoint is not None else None,
        trace_content=trace_content,
        prices=read_prices(price_file) if price_file is not None else {},
        log_json=log_json,
        log_requests=not disable_log_requests,
    )
    engine: dict[str, Any] = {
        "tokenizer": tokenizer,
        "revision": revision,
        "device": device,
        "dtype": dtype,
        "quantization": quantization,
        "activation_mode": activation_mode,
        "packed_cache": packed_cache,
        "kv_cache_dtype": kv_cache_dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "memory_budget": memory_budget,
        "kv_cache_tokens": kv_cache_tokens,
        "enable_prefix_caching": enable_prefix_caching,
        "num_threads": threads,
        "seed": seed,
        "load_format": load_format,
        "max_queue": max_queue,
        "scheduler": scheduler,
        "show_progress": sys.stderr.isatty(),
    }
    if require_gate:
        check_gate(model, revision, engine)
    llm = AsyncLLM(model, **engine)
    try:
        llm.decode([0])  # a model without a tokenizer is refused here, and not by the first request
        if memory_bandwidth is None:
            server_config = dataclasses.replace(server_config, memory_bandwidth=llm.measure_read_bandwidth())
        set_up_logs(as_json=log_json)
        serve(create_app(llm, server_config), lambda host, port: _announce(llm, server_config, host, port))
    finally:
        llm.close()


def _tracer_provider(endpoint: str) -> Any:
    try:
        from fastllm.server.tracing import exporting_provider

        return exporting_provider(endpoint)
    except ImportError:
        raise InvalidRequestError(
            "--otlp-traces-endpoint needs the otel extra: pip install 'fastllm-runtime[server,otel]'"
        ) from None


def _name_of(model: str | None) -> str:
    if model is None:
        return "fastllm-demo"
    return Path(model).resolve().name if Path(model).is_dir() else model


def _announce(llm: Any, config: Any, host: str, port: int) -> None:
    """Where it listens, what memory it takes, and a line to try."""
    from fastllm.memory import MemoryPlan

    console = Console(stderr=True, highlight=False)
    scheme = "https" if config.ssl_certfile else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    plan = {name: value for name, value in llm.info()["memory"].items() if name != "total_bytes"}
    console.print(f"{config.served_model_names[0]} on {url}", markup=False, soft_wrap=True)
    console.print(MemoryPlan(**plan).table(), markup=False, soft_wrap=True)
    key = " -H 'Authorization: Bearer KEY'" if config.api_keys else ""
    console.print(
        f"""curl {url}/v1/completions{key} -H 'content-type: application/json' """
        """-d '{"prompt": "The os module", "max_tokens": 32}'""",
        markup=False,
        soft_wrap=True,
    )
