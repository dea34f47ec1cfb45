"""What LLM(quantization=...) costs: next-token distributions against the same model in its own type.

python tools/rounding_quality.py tests/data/heldout.txt                  # the table of docs/quality.md
python tools/rounding_quality.py TEXT --model FOLDER int4 int4-g64:a15   # one row per format[:activation mode]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastllm import LLM
from fastllm.evaluation.divergence import compare
from fastllm.evaluation.scoring import ScoredModel

ROWS = ["int8:f32", "int8", "int8-row", "int4-g32", "int4-g64", "int4:f32", "int4:a15", "int4:a8", "int4"]


def bytes_held(model: str | None, quantization: str | None) -> int:
    with LLM(model, quantization=quantization, skip_tokenizer_init=True, kv_cache_tokens=256) as llm:
        return sum(llm.info()["weights"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="file of UTF-8 text")
    parser.add_argument("rows", nargs="*", default=ROWS, help="formats, with an activation mode behind a colon")
    parser.add_argument("--model", default=None, help="checkpoint; the demo model if absent")
    parser.add_argument("--window", type=int, default=256, help="tokens of context at most")
    args = parser.parse_args()
    print(
        "| quantization | activations | bytes | KL mean | KL p99 | top-1 | perplexity |\n|---|---|---|---|---|---|---|"
    )
    size = bytes_held(args.model, None)
    with ScoredModel(args.model, window=args.window) as original:
        if original.tokenizer is None:
            parser.error("the model has no tokenizer")
        ids = original.tokenizer.encode(args.text.read_text(encoding="utf-8"))
        windows = [ids[i : i + args.window + 1] for i in range(0, len(ids) - 1, args.window)]
        for row in args.rows:
            quantization, _, mode = row.partition(":")
            share = bytes_held(args.model, quantization) / size
            with ScoredModel(
                args.model, window=args.window, quantization=quantization, activation_mode=mode or "auto"
            ) as model:
                found = compare(model, original, windows).summary()
            print(
                f"| `{quantization}` | `{mode or 'auto'}` | {share:.3f} | {found['kl']:.5f} | {found['kl_p99']:.4f} | "
                f"{100 * found['top1']:.1f} % | {100 * (found['ppl'] / found['ppl_original'] - 1):+.2f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
