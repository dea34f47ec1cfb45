"""``fastllm generate``: text from a prompt, or from a file (or standard input) with one prompt a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fastllm.cli import options
from fastllm.errors import InvalidRequestError


def run(
    prompt: Annotated[str | None, typer.Argument(help='The prompt; "-" reads prompts from standard input.')] = None,
    model: options.Model = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="One prompt a line, generated as a batch.")] = None,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: options.Seed = None,
    n: Annotated[int, typer.Option(help="Sequences per prompt.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="Stop string; may be given several times.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text as it comes (one prompt).")] = False,
    json_output: options.Json = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
    memory_budget: options.MemoryBudget = None,
) -> None:
    """Generate text.

    Examples: fastllm generate "The os module provides" --max-tokens 64

    fastllm generate --file prompts.txt --json > out.jsonl
    """
    from fastllm import LLM, SamplingParams

    prompts = _prompts(prompt, file)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        n=n,
        stop=tuple(stop or ()),
    )
    with LLM(
        model,
        device=device,
        dtype=dtype,
        num_threads=threads,
        max_model_len=max_model_len,
        memory_budget=memory_budget,
    ) as llm:
        if stream and len(prompts) == 1 and not json_output:
            sys.stdout.write(prompts[0])
            for piece in llm.stream(prompts[0], params):
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\n")
            return
        for output in llm.generate(prompts, params, use_tqdm=sys.stderr.isatty()):
            if json_output:
                record: dict[str, Any] = {
                    "prompt": output.prompt,
                    "outputs": [
                        {"text": c.text, "token_ids": c.token_ids, "finish_reason": c.finish_reason}
                        for c in output.outputs
                    ],
                    "prompt_tokens": output.metrics.num_prompt_tokens,
                    "generated_tokens": output.metrics.num_generated_tokens,
                }
                print(json.dumps(record, ensure_ascii=False))
            else:
                for completion in output.outputs:
                    print(f"{output.prompt}{completion.text}")


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    if (prompt is None) == (file is None):
        raise InvalidRequestError('give either a prompt (or "-" for standard input) or --file')
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"{file}: {error}") from error
    elif prompt == "-":
        lines = sys.stdin.read().splitlines()
    else:
        return [prompt or ""]
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise InvalidRequestError("no prompts: every line is empty")
    return prompts
