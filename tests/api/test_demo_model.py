"""The model in the package is the trained one that docs/demo-model.md describes."""

import runpy
from pathlib import Path

import pytest

from fastllm import LLM
from fastllm.demo import DEMO_MODEL

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "figure"), [("main", 1.6038), ("draft", 2.2251)])
def test_bits_per_byte_of_the_held_out_text_are_those_of_the_document(name, figure):
    measure = runpy.run_path(str(ROOT / "tools" / "bits_per_byte.py"))["bits_per_byte"]
    text = (ROOT / "tests" / "data" / "heldout.txt").read_text()
    with LLM(Path(DEMO_MODEL).parent / name, max_num_seqs=16, enable_prefix_caching=False) as llm:
        assert measure(llm, text, 256) == pytest.approx(figure, abs=2e-3)
    assert f"**{figure:.3f}**" in (ROOT / "docs" / "demo-model.md").read_text()


def test_the_pair_shares_a_tokenizer_and_is_small():
    folder = Path(DEMO_MODEL).parent
    assert (folder / "main" / "tokenizer.json").read_bytes() == (folder / "draft" / "tokenizer.json").read_bytes()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10_000_000
