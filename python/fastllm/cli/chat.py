"""``fastllm chat``: a conversation in the terminal, streamed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fastllm.cli import options


def run(
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 0.95,
    top_k: options.TopK = 0,
    seed: options.Seed = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
    memory_budget: options.MemoryBudget = None,
) -> None:
    """Talk to a model. An empty line, Ctrl-D or "/quit" ends; "/reset" forgets the conversation."""
    from fastllm import LLM, SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    start: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with LLM(
        model,
        device=device,
        dtype=dtype,
        num_threads=threads,
        max_model_len=max_model_len,
        memory_budget=memory_budget,
    ) as llm:
        messages = list(start)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                break
            if line in ("", "/quit"):
                break
            if line == "/reset":
                messages = list(start)
                continue
            messages.append({"role": "user", "content": line})
            answer = ""
            for piece in llm.stream_chat(messages, params):
                answer += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\n")
            messages.append({"role": "assistant", "content": answer})
