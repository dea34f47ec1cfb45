"""Bits per byte of a text under a model: -sum(log2 p(token)) / bytes, each token given up to WINDOW tokens before it.

    python tools/bits_per_byte.py tests/data/heldout.txt                                  # the demo model
    python tools/bits_per_byte.py tests/data/heldout.txt --model python/fastllm/demo/draft

The text is cut into windows of WINDOW + 1 tokens that overlap by one, so each token but the first is scored once.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from fastllm import LLM, SamplingParams


def bits_per_byte(llm: LLM, text: str, window: int) -> float:
    """Cross-entropy of the text in bits per byte of its UTF-8."""
    ids = llm.encode(text)
    windows = [ids[i : i + window + 1] for i in range(0, len(ids) - 1, window)]
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    bits = 0.0
    for output in llm.generate(windows, params):
        entries = output.prompt_logprobs or []
        for token, entry in zip(output.prompt_token_ids[1:], entries[1:], strict=True):
            bits -= (entry or {})[token].logprob / math.log(2)
    return bits / len(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="file of UTF-8 text")
    parser.add_argument("--model", default=None, help="checkpoint; the demo model if absent")
    parser.add_argument("--dtype", default="auto", help='"auto", "float32", "bfloat16", "float16"')
    parser.add_argument("--window", type=int, default=256, help="tokens of context at most")
    args = parser.parse_args()
    with LLM(args.model, dtype=args.dtype, max_num_seqs=16, enable_prefix_caching=False) as llm:
        score = bits_per_byte(llm, args.text.read_text(encoding="utf-8"), args.window)
    print(f"{score:.4f} bits per byte")


if __name__ == "__main__":
    main()
