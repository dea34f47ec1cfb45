"""``fastllm generate``: text from a prompt, or from a file or standard input with one prompt a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fastllm.cli import options
from fastllm.errors import InvalidRequestError


def run(
    prompt: Annotated[
        str | None, typer.Argument(help='The prompt; "-", or none with a pipe, reads one a line from standard input.')
    ] = None,
    model: options.Model = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="One prompt a line, generated as a batch.")] = None,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: options.Seed = None,
    n: Annotated[int, typer.Option(help="Sequences per prompt.")] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="End the text before this; may be given several times.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text of one prompt as it comes.")] = False,
    json_output: options.Json = False,
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
    """Generate text: each prompt and what follows it.

    Examples:

    fastllm generate "The os module provides" --max-tokens 64 --stream

    fastllm generate --file prompts.txt --temperature 0.8 --seed 1 --n 4

    fastllm generate --json < prompts.txt > results.jsonl

    With --json, one object a line and prompt: prompt, outputs (text, token_ids, finish_reason, stop_reason),
    prompt_tokens, generated_tokens.
    """
    from fastllm import LLM, SamplingParams

    prompts = _prompts(prompt, file)
    if stream and (json_output or len(prompts) > 1 or n > 1):
        raise InvalidRequestError("--stream shows one text; leave it out with --json, --n or several prompts")
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
        quantization=quantization,
        activation_mode=activation_mode,
        packed_cache=packed_cache,
        kv_cache_dtype=kv_cache_dtype,
        num_threads=threads,
        max_model_len=max_model_len,
        memory_budget=memory_budget,
        show_progress=sys.stderr.isatty(),
    ) as llm:
        if stream:
            shown = prompts[0]  # with the first piece: a refused request prints nothing
            for piece in llm.stream(prompts[0], params):
                sys.stdout.write(shown + piece)
                sys.stdout.flush()
                shown = ""
            sys.stdout.write(shown + "\n")
            return
        for output in llm.generate(prompts, params, use_tqdm=sys.stderr.isatty()):
            if json_output:
                record: dict[str, Any] = {
                    "prompt": output.prompt,
                    "outputs": [
                        {
                            "text": c.text,
                            "token_ids": c.token_ids,
                            "finish_reason": c.finish_reason,
                            "stop_reason": c.stop_reason,
                        }
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
    if prompt is not None and file is not None:
        raise InvalidRequestError("give either a prompt or --file, not both")
    if prompt is None and file is None:
        if sys.stdin.isatty():
            raise InvalidRequestError('no prompt; for example: fastllm generate "The os module provides"')
        prompt = "-"
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"{file}: {error}") from error
    elif prompt == "-":
        try:
            lines = sys.stdin.read().splitlines()
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"standard input is not text in UTF-8: {error}") from error
    else:
        return [prompt or ""]
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise InvalidRequestError("no prompts: every line is empty")
    return prompts
