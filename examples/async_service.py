"""A service that embeds the engine: 32 concurrent streams next to other work of the same event loop.

    python examples/async_service.py [MODEL]

Prints a line per finished stream, the throughput, and the CPU time that the idle engine uses afterwards (none).
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

from fastllm import AsyncLLM, SamplingParams

STREAMS = 32
PROMPTS = ("The os module", "A generator is", "To open a file,", "Exceptions are raised")


async def one_stream(llm: AsyncLLM, index: int) -> int:
    """Consumes one request; a real service would forward each new piece of text."""
    params = SamplingParams(temperature=0.8, max_tokens=48, seed=index)
    tokens = 0
    async for output in llm.generate(PROMPTS[index % len(PROMPTS)], params):
        tokens = len(output.outputs[0].token_ids)
        if output.finished:
            print(f"stream {index:2}: {output.outputs[0].text[:60]!r}")
    return tokens


async def heartbeat(beats: list[float]) -> None:
    """Other work of the loop: it must not be held up."""
    while True:
        beats.append(time.perf_counter())
        await asyncio.sleep(0.01)


async def main(model: str | None) -> None:
    async with AsyncLLM(model, max_num_seqs=STREAMS) as llm:
        beats: list[float] = []
        other_work = asyncio.create_task(heartbeat(beats))
        start = time.perf_counter()
        tokens = sum(await asyncio.gather(*(one_stream(llm, i) for i in range(STREAMS))))
        seconds = time.perf_counter() - start
        other_work.cancel()
        gaps = [later - earlier for earlier, later in itertools.pairwise(beats)]
        print(f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s")
        print(f"longest pause of the event loop: {1000 * max(gaps, default=0):.0f} ms")
        await asyncio.sleep(0.5)
        idle_start, cpu_start = time.perf_counter(), time.process_time()
        await asyncio.sleep(2)
        share = (time.process_time() - cpu_start) / (time.perf_counter() - idle_start)
        print(f"idle engine: {100 * share:.1f} % CPU")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
