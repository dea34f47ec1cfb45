"""A bounded, repeatable part of the fuzzing: `make fuzz` goes on for longer and with coverage (see fuzz.py)."""

from __future__ import annotations

import random

import pytest
from mutate import mutate
from targets import TARGETS, attempt, seeds

SEED = 20261124
RUNS = 2000


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files_are_refused_or_read_rightly(target: str) -> None:
    rng = random.Random(f"{SEED}-{target}")
    good = seeds(target)
    for data in good:
        attempt(target, data)
    for run in range(RUNS):
        data = mutate(rng, good)
        try:
            attempt(target, data)
        except BaseException as e:
            pytest.fail(f"seed {SEED}, run {run}: {type(e).__name__}: {e}\n{data[:4000]!r}")
