"""Fuzzes one parser: python tests/fuzz/fuzz.py TARGET [--seconds 60]

With atheris (pip install atheris) inputs are guided by coverage of the Python code; without it they are random.

An input that shows a defect is written to tests/fuzz/seeds/ and is from then on part of the tests.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from pathlib import Path

from mutate import mutate
from targets import TARGETS, attempt, seeds

SEEDS = Path(__file__).parent / "seeds"


def keep(target: str, data: bytes) -> Path:
    SEEDS.mkdir(exist_ok=True)
    path = SEEDS / f"{target}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return path


def checked(target: str, data: bytes) -> None:
    try:
        attempt(target, data)
    except BaseException as e:
        if not isinstance(e, KeyboardInterrupt):
            print(f"{target}: {type(e).__name__}: {str(e)[:500]}\nkept as {keep(target, data)}", file=sys.stderr)
        raise


def with_mutations(target: str, seconds: float, seed: int) -> None:
    rng = random.Random(seed)
    good = seeds(target)
    end = time.monotonic() + seconds
    runs = 0
    while time.monotonic() < end:
        checked(target, mutate(rng, good))
        runs += 1
    print(f"{target}: {runs} inputs, seed {seed}, no defect")


def with_atheris(target: str, seconds: float, seed: int) -> None:
    import tempfile

    import atheris

    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(seeds(target)):
            (Path(corpus) / str(i)).write_bytes(data)
        options = [sys.argv[0], f"-max_total_time={int(seconds)}", f"-seed={seed}", "-timeout=10", corpus]
        atheris.instrument_all()
        atheris.Setup(options, lambda data: checked(target, data))
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        with_mutations(args.target, args.seconds, args.seed)
    else:
        with_atheris(args.target, args.seconds, args.seed)


if __name__ == "__main__":
    main()
