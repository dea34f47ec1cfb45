"""fastllm eval: rows are the engine's, figures are their definitions in float64, the gate reads what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fastllm import LLM, InvalidRequestError, SamplingParams
from fastllm.checkpoint.resolve import resolve
from fastllm.cli import app
from fastllm.demo import DEMO_DRAFT_MODEL, DEMO_MODEL
from fastllm.evaluation.divergence import compare
from fastllm.evaluation.gate import judge, parse_gate
from fastllm.evaluation.run import EvalOptions, evaluate, first_divergence
from fastllm.evaluation.scoring import ScoredModel
from fastllm.evaluation.tasks import read_tasks, run_tasks
from fastllm.text.corpus import read_corpus, windows

HELDOUT = Path(__file__).parents[1] / "data" / "heldout.txt"
IDS = [100 + i * 31 % 3000 for i in range(150)]


@pytest.fixture(scope="module")
def main_model() -> Any:
    with ScoredModel(DEMO_MODEL, window=256, num_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def draft_model() -> Any:
    with ScoredModel(DEMO_DRAFT_MODEL, window=256, num_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def engine() -> Any:
    with LLM(DEMO_MODEL, num_threads=1) as llm:
        yield llm


def _all_rows(model: ScoredModel, ids: list[int], first: int = 0) -> np.ndarray:
    return np.concatenate([rows.copy() for rows in model.rows(ids, first)])


def test_rows_are_those_of_the_engine(main_model: ScoredModel, engine: LLM) -> None:
    rows = _all_rows(main_model, IDS[:-1]).astype(np.float64)
    output = engine.generate([IDS], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=5))[0]
    largest = rows.max(1, keepdims=True)
    logprobs = rows - largest - np.log(np.exp(rows - largest).sum(1, keepdims=True))
    for i, entry in enumerate((output.prompt_logprobs or [])[1:]):
        assert entry is not None
        for token, found in entry.items():
            # What the engine promises of a log-probability (csrc/ops/sampling_algorithm.h).
            assert found.logprob == pytest.approx(logprobs[i, token], rel=1e-6)


def test_rows_do_not_depend_on_how_a_sequence_is_cut(main_model: ScoredModel) -> None:
    whole = _all_rows(main_model, IDS)
    assert np.array_equal(_all_rows(main_model, IDS, 70), whole[70:])
    assert np.array_equal(_all_rows(main_model, IDS, len(IDS) - 1), whole[-1:])
    main_model._scorer.clear()
    row = np.empty((1, main_model.vocab_size), np.float32)
    for i, token in enumerate(IDS[:70]):
        main_model._scorer.append([token], row)
        assert np.array_equal(row[0], whole[i])


def test_greedy_continuations_are_those_of_the_engine(
    main_model: ScoredModel, draft_model: ScoredModel, engine: LLM
) -> None:
    for begin in (0, 40, 90):
        prompt = IDS[begin : begin + 20]
        expected = engine.generate([prompt], SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))[0]
        tokens = main_model.greedy(prompt, 24)
        assert tokens == expected.outputs[0].token_ids
        other = draft_model.greedy(prompt, 24)
        agreed = next((i for i in range(24) if tokens[i] != other[i]), 24)
        assert first_divergence(draft_model, prompt, tokens) == agreed
        assert first_divergence(main_model, prompt, tokens) == 24


def test_what_a_scorer_cannot_hold_is_refused(main_model: ScoredModel) -> None:
    scorer = main_model._scorer
    rows = np.empty((1, main_model.vocab_size), np.float32)
    scorer.clear()
    with pytest.raises(InvalidRequestError, match="token_ids contains 4096"):
        scorer.append([4096], rows)
    with pytest.raises(InvalidRequestError, match="at most"):
        scorer.append([1] * 5000, rows)
    with pytest.raises(InvalidRequestError, match="logits has shape"):
        scorer.append([1], np.empty((2, main_model.vocab_size), np.float32))
    with pytest.raises(InvalidRequestError, match="logits has shape"):
        scorer.append([1], np.empty((1, 7), np.float32))
    assert scorer.num_tokens == 0
    with pytest.raises(InvalidRequestError, match="window = 5000"):
        ScoredModel(DEMO_MODEL, window=5000)


def test_figures_are_their_definitions(main_model: ScoredModel, draft_model: ScoredModel) -> None:
    pieces = [IDS[:50], IDS[50:140]]
    found = compare(draft_model, main_model, pieces)
    kl, agrees, nll, nll_original = [], [], [], []
    for piece in pieces:
        a, b = (_all_rows(m, piece[:-1]).astype(np.float64) for m in (main_model, draft_model))
        log_p, log_q = (x - np.logaddexp.reduce(x, axis=1)[:, None] for x in (a, b))
        kl += (np.exp(log_p) * (log_p - log_q)).sum(1).tolist()
        agrees += (a.argmax(1) == b.argmax(1)).tolist()
        at = np.arange(len(piece) - 1), np.asarray(piece[1:])
        nll += (-log_q[at]).tolist()
        nll_original += (-log_p[at]).tolist()
    assert np.allclose(found.kl, kl, rtol=1e-4, atol=2e-6)
    assert found.agrees == agrees and found.positions == [*range(1, 50), *range(1, 90)]
    summary = found.summary()
    assert summary["ppl"] == pytest.approx(math.exp(np.mean(nll)), rel=1e-5)
    assert summary["ppl_original"] == pytest.approx(math.exp(np.mean(nll_original)), rel=1e-5)
    assert summary["kl_p99"] == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert summary["top1"] == np.mean(agrees)
    bins = found.by_position(bins=8)
    counts = [sum(row["position"] <= p < row["position"] + 12 for p in found.positions) for row in bins]
    assert sum(counts) == 138
    assert np.average([row["kl"] for row in bins], weights=counts) == pytest.approx(np.mean(kl), rel=1e-4)


def test_a_model_is_at_distance_zero_from_itself(main_model: ScoredModel) -> None:
    found = compare(main_model, _Copy(main_model), [IDS])
    assert set(found.kl) == {0.0} and all(found.agrees) and found.perplexity == found.reference_perplexity


class _Copy:
    def __init__(self, model: ScoredModel) -> None:
        self._model = model

    def rows(self, token_ids: Any, first_row: int = 0) -> Any:
        return iter([rows.copy() for rows in self._model.rows(token_ids, first_row)])


def test_bits_per_byte_are_those_of_the_documented_measurement(tmp_path: Path) -> None:
    text = HELDOUT.read_text(encoding="utf-8")[:6000]
    (tmp_path / "text.txt").write_text(text)
    found = evaluate(None, EvalOptions(data=tmp_path / "text.txt", window=256))
    with LLM() as llm:
        ids = llm.encode(text)
        bits = 0.0
        for begin in range(0, len(ids) - 1, 256):
            out = llm.generate([ids[begin : begin + 257]], SamplingParams(max_tokens=1, prompt_logprobs=0))[0]
            for token, entry in zip(out.prompt_token_ids[1:], (out.prompt_logprobs or [])[1:], strict=True):
                bits -= (entry or {})[token].logprob / math.log(2)
        num_bytes = len(text.encode()) - len(llm.decode(ids[:1]).encode())
    assert found.figures["bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-5)
    assert found.figures["tokens"] == len(ids) - 1 and found.gate is None


def test_bytes_of_a_text_are_counted_once_wherever_it_is_cut(tmp_path: Path, main_model: ScoredModel) -> None:
    text = "Grüße 🙂 aus Ελλάδα: 你好 " * 3
    (tmp_path / "text.txt").write_text(text)
    assert main_model.tokenizer is not None
    ids = main_model.tokenizer.encode(text)
    for window in (2, 3, 7):
        figures = evaluate(None, EvalOptions(data=tmp_path / "text.txt", window=window)).figures
        bits = math.log2(figures["ppl"]) * (len(ids) - 1)
        counted = len(text.encode()) - len(main_model.tokenizer.byte_table.bytes(ids[0]))
        assert bits / figures["bits_per_byte"] == pytest.approx(counted, rel=1e-6)


def test_each_token_of_a_document_is_predicted_once() -> None:
    documents = [list(range(10)), list(range(100, 103)), [7, 8]]
    for length in (1, 2, 3, 4, 9, 100):
        pieces = windows(documents, length)
        assert all(2 <= len(piece) <= length + 1 for piece in pieces)
        assert [t for piece in pieces for t in piece[1:]] == [*range(1, 10), 101, 102, 8]
    assert sum(len(piece) - 1 for piece in windows(documents, 4, 6)) == 6


def test_corpora_in_all_their_forms(tmp_path: Path, main_model: ScoredModel) -> None:
    def read(name: str, content: str) -> list[list[int]]:
        (tmp_path / name).write_text(content)
        return read_corpus(tmp_path / name, main_model.tokenizer, 4096)

    assert main_model.tokenizer is not None
    words = main_model.tokenizer.encode("The os module")
    assert read("a.txt", "The os module") == [words]
    assert read("a.jsonl", '{"text": "The os module"}\n\n"The os module"\n[5, 6]\n{"token_ids": [7, 8, 9]}') == [
        words, words, [5, 6], [7, 8, 9],
    ]  # fmt: skip
    assert read("a.json", "[1, 2, 3]") == [[1, 2, 3]] and read("b.json", "[[1, 2], [3, 4]]") == [[1, 2], [3, 4]]
    for name, content, finding in (
        ("c.jsonl", '{"text": 5}', "c.jsonl:1"), ("c.jsonl", "\n{", "not valid JSON"), ("c.json", "[1, -1]", "token 1"),
        ("c.json", "[1, 4096]", "4096"), ("c.json", "[1, true]", "token 1"), ("c.txt", "", "no document"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequestError, match=finding):
            read(name, content)


# The gate.

FIGURES = {
    "kl": 0.01,
    "kl_p99": 0.2,
    "top1": 0.98,
    "ppl": 10.05,
    "ppl_original": 10.0,
    "acc": 0.70,
    "acc_original": 0.71,
}


@pytest.mark.parametrize(
    "text, passed, excess",
    [
        ("kl<=0.02", True, 0), ("kl<=0.01", True, 0), ("kl<=0.005", False, 0.005), ("kl_p99 <= .1", False, 0.1),
        ("top1>=0.97", True, 0), ("top1>=99%", False, 0.01), ("ppl<=10.1", True, 0), ("ppl<=+1%", True, 0),
        ("ppl<=+0.1%", False, 0.04), ("acc>=-2%", True, 0), ("acc>=-1%", False, 0.0029), ("acc>=7e-1", True, 0),
    ],
)  # fmt: skip
def test_gate_terms(text: str, passed: bool, excess: float) -> None:
    (verdict,) = judge(parse_gate(text), FIGURES)
    assert verdict.passed is passed and verdict.excess == pytest.approx(excess)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_fails(value: float) -> None:
    (verdict,) = judge(parse_gate("kl<=1e9"), {"kl": value})
    assert not verdict.passed


@pytest.mark.parametrize("text", ["", "kl", "kl<0.1", "kl>=0.1", "top1<=1", "kld<=1", "kl<=+1%", "ppl<=+1", "kl<=x,",
                                  "kl<=nan", "kl<=1 2"])  # fmt: skip
def test_a_gate_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="gate term"):
        parse_gate(text)


def test_a_gate_for_what_is_not_measured_is_refused_at_once(tmp_path: Path) -> None:
    """Before a model is opened: there is none here."""
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "a", "answer": "b"}')
    data, tasks = {"data": HELDOUT}, {"tasks": tmp_path / "tasks.jsonl"}
    for text, given, missing in (
        ("kl<=1", data, "the original"), ("ppl<=+1%", data, "the original"), ("acc>=0.5", data, "tasks"),
        ("ppl<=9,acc>=-1%", data | tasks, "the original"), ("top1>=0.9", tasks, "data and the original"),
        ("ppl<=9", tasks, "data"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequestError, match=f"gate term .* needs evaluation {missing}"):
            evaluate(tmp_path / "none", EvalOptions(**given, gate=text))


# Tasks.


def test_tasks_are_scored_by_the_engine(tmp_path: Path, engine: LLM) -> None:
    greedy = engine.generate(["The os module"], SamplingParams(temperature=0, max_tokens=6, stop=["\n"]))[0]
    answer = greedy.outputs[0].text.strip()
    lines = [
        {"prompt": "The os module", "choices": [greedy.outputs[0].text, " zqx zqx zqx"], "answer": 0},
        {"prompt": "The os module", "choices": [greedy.outputs[0].text, " zqx zqx zqx"], "answer": 1},
        {"prompt": "The os module", "answer": f" {answer} ", "max_tokens": 6},
        {"prompt": "The os module", "answer": "no", "max_tokens": 6},
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    told: list[int] = []
    found = run_tasks(engine, read_tasks(tmp_path / "tasks.jsonl"), told.append)
    assert told == [0, 2, 4]
    assert found == {"acc": 0.5, "choice_acc": 0.5, "choice_count": 2, "exact_acc": 0.5, "exact_count": 2}


@pytest.mark.parametrize("line", ["5", "{}", '{"prompt": "a"}', '{"prompt": "a", "choices": ["b"], "answer": 0}',
                                  '{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "{", '{"prompt": 1}',
                                  '{"prompt": "a", "answer": "b", "max_tokens": 0}'])  # fmt: skip
def test_tasks_that_are_none_are_refused_by_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' + line)
    with pytest.raises(InvalidRequestError, match=r"t\.jsonl:2"):
        read_tasks(tmp_path / "t.jsonl")


# The command.


def _fastllm(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})


def test_the_commands_know_the_demo_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ("eval", "demo", "--against", "demo", "--data", HELDOUT, "--max-tokens", 32, "--greedy", 0)
    done = _fastllm(*shared, "--plot", tmp_path / "plot.svg", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["figures"]["kl"] == 0.0
    assert resolve("demo") == resolve(None) == DEMO_MODEL
    # A folder of the user's is what a path says.
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("demo").resolve() == tmp_path / "demo"
    assert resolve(None) == DEMO_MODEL


def test_the_command_shows_judges_and_plots(tmp_path: Path) -> None:
    shared = ("eval", DEMO_DRAFT_MODEL, "--against", DEMO_MODEL, "--data", HELDOUT, "--max-tokens", 200, "--greedy", 1)
    done = _fastllm(*shared, "--gate", "kl<=0.02,top1>=0.1", "--plot", tmp_path / "plot.svg")
    assert done.exit_code == 1
    assert "gate kl<=0.02" in done.stdout and "FAILED by" in done.stdout and "gate top1>=0.1" in done.stdout
    assert "perplexity" in done.stdout and "original" in done.stdout
    picture = (tmp_path / "plot.svg").read_text()
    assert picture.startswith("<svg") and "KL divergence" in picture and "polyline" in picture

    done = _fastllm(*shared, "--gate", "kl<=100", "--json")
    assert done.exit_code == 0
    values = json.loads(done.stdout)
    assert values["gate"]["passed"] is True and values["figures"]["tokens"] == 200
    assert _fastllm("eval").exit_code == 2
    assert _fastllm("eval", "--data", HELDOUT, "--gate", "kl<=1").exit_code == 2  # against what?
    assert _fastllm("eval", "--data", tmp_path / "none.txt").exit_code == 2
