"""What a grammar costs others: the time between tokens of plain streams, beside streams with a grammar and beside the
same streams without one, interleaved.

    python benches/grammar_neighbours.py                                # the demo model
    python benches/grammar_neighbours.py --model DIR --rounds 3         # e.g. a shape written by benches/shapes.py

A round is both cases, in changing order; the ratio of their 99th percentiles is taken within a round, so that what else
the machine does, and how fast it is, falls out as far as it stays the same for the length of a round. The aim is a
median ratio of at most 1.05. Two equal cases differ as well (--null: no grammar in either): a median within the spread
of those says nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from typing import Any

from shapes import missing_tokenizer

from fastllm.bench_serve.client import Target, drive
from fastllm.bench_serve.report import percentile
from fastllm.bench_serve.run import started_server
from fastllm.bench_serve.workloads import Planned, Workload

# An array that does not end before max_tokens, of objects whose masks change with every token.
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "street": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
    },
    "required": ["name", "age", "street"],
    "additionalProperties": False,
}
GRAMMAR = {"structured_outputs": {"json": {"type": "array", "items": ITEM, "minItems": 1000}}}


def workload(args: argparse.Namespace, seed: int, extra: dict[str, Any]) -> Workload:
    rng = random.Random(seed)

    def prompt() -> list[int]:
        return [rng.randint(40, 250) for _ in range(args.prompt_tokens)]

    plain = [Planned(prompt(), args.max_tokens, group="plain") for _ in range(args.plain)]
    # A little longer, so that they are there until the last plain stream has ended.
    others = [Planned(prompt(), round(1.25 * args.max_tokens), group="others", extra=extra) for _ in range(args.others)]
    return Workload("neighbours", "all at once", [*others, *plain], args.plain + args.others)


def inter_token_ms(target: Target, one: Workload) -> dict[str, float]:
    """Percentiles of the plain streams."""
    records = asyncio.run(drive(target, one))
    assert all(record.outcome == "ok" for record in records), {record.outcome for record in records}
    gaps = [gap for record in records if record.planned.group == "plain" for gap in record.inter_token_s()]
    return {f"p{share}": 1e3 * (percentile(gaps, share) or 0.0) for share in (50, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--plain", type=int, default=6, help="streams that are measured")
    parser.add_argument("--others", type=int, default=2, help="streams with a grammar, or without")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--null", action="store_true", help="no grammar in either case")
    args = parser.parse_args()
    length = args.prompt_tokens + round(1.25 * args.max_tokens) + 1
    options = [f"--max-model-len={length}", f"--max-num-seqs={args.plain + args.others}", "--no-enable-prefix-caching"]
    seen: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    scratch = tempfile.TemporaryDirectory()
    if (tokenizer := missing_tokenizer(args.model, scratch.name)) is not None:
        options.append(f"--tokenizer={tokenizer}")
    with started_server([*([args.model] if args.model else []), *options]) as url:
        target = Target(url)
        for i in range(args.rounds + 1):  # the first is not counted: the grammar is compiled in it
            for case in ("without", "with") if i % 2 else ("with", "without"):
                extra = GRAMMAR if case == "with" and not args.null else {}
                found = inter_token_ms(target, workload(args, i, extra))
                if i > 0:
                    seen[case].append(found)
    ratios = {
        share: [b[share] / a[share] for a, b in zip(seen["without"], seen["with"], strict=True)]
        for share in ("p50", "p99")
    }
    print(
        json.dumps(
            {
                "inter_token_ms": {
                    case: {share: round(statistics.median(one[share] for one in rounds), 3) for share in ("p50", "p99")}
                    for case, rounds in seen.items()
                },
                "ratio_with_to_without": {
                    share: {"median": round(statistics.median(values), 3), "all": [round(v, 3) for v in values]}
                    for share, values in ratios.items()
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
