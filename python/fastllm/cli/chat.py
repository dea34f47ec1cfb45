"""``fastllm chat``: a conversation in the terminal, streamed."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from fastllm.cli import options
from fastllm.errors import InvalidRequestError


def run(
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="A message that tells the model how to answer.")] = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 0.95,
    top_k: options.TopK = 0,
    seed: options.Seed = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    activation_mode: options.ActivationMode = "auto",
    packed_cache: options.PackedCache = None,
    kv_cache_dtype: options.KvCacheDtype = "auto",
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
    memory_budget: options.MemoryBudget = None,
) -> None:
    """Talk to a model. "/reset" forgets the conversation; "/quit" or Ctrl-D ends.

    Ctrl-C ends an answer; while you type, it ends the program. Without a terminal, each line of standard input is a
    message and standard output holds the answers alone: echo "What is the os module for?" | fastllm chat
    """
    from fastllm import LLM, SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    start: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with LLM(
        model,
        device=device,
        dtype=dtype,
        quantization=quantization,
        activation_mode=activation_mode,
        packed_cache=packed_cache,
        kv_cache_dtype=kv_cache_dtype,
        num_threads=threads,
        max_model_len=max_model_len,
        memory_budget=memory_budget,
        show_progress=sys.stderr.isatty(),
    ) as llm:
        messages = list(start)
        while (line := _next_line()) is not None and line != "/quit":
            if line == "/reset":
                messages = list(start)
            elif line:
                messages.append({"role": "user", "content": line})
                _answer(llm, messages, len(start), params)


def _next_line() -> str | None:
    try:
        line = input("> ") if sys.stdin.isatty() else sys.stdin.readline()
    except EOFError:
        print()
        return None
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not text in UTF-8: {error}") from error
    if not line and not sys.stdin.isatty():
        return None
    return line.strip()


def _answer(llm: Any, messages: list[dict[str, str]], num_kept: int, params: Any) -> None:
    """Streams an answer and adds it to the messages; the oldest turns go when the context is full."""
    notes = Console(stderr=True, soft_wrap=True, highlight=False)
    while True:
        answer = ""
        try:
            for piece in llm.stream_chat(messages, params):
                answer += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        except InvalidRequestError as error:
            if len(messages) == num_kept + 1:
                raise  # even alone it cannot be answered
            del messages[num_kept : num_kept + 2]
            notes.print(f"(without the oldest turn: {error})", markup=False)
            continue
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        sys.stdout.write("\n")
        sys.stdout.flush()
        messages.append({"role": "assistant", "content": answer})
        return
