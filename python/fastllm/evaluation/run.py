"""An evaluation from beginning to end: distributions, greedy continuations, tasks, the verdict of a gate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastllm.errors import InvalidRequestError
from fastllm.evaluation.divergence import Divergence, compare
from fastllm.evaluation.gate import Term, check_is_measured, judge, parse_gate
from fastllm.evaluation.scoring import ScoredModel
from fastllm.evaluation.tasks import Task, read_tasks, run_tasks
from fastllm.llm import LLM
from fastllm.text.corpus import num_bytes, read_corpus, windows
from fastllm.text.tokenizer import Tokenizer

GREEDY_PROMPT = 32  # tokens of each prompt whose greedy continuation is followed

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclasses.dataclass(frozen=True, slots=True)
class EvalOptions:
    """What evaluate() measures.

    Args:
        data: text, JSONL or token ids that both models read; None measures tasks alone.
        tasks: multiple-choice and exact-match tasks as JSONL.
        window: tokens of context at most; None: what the model allows, up to 512.
        max_tokens: tokens of the data that are predicted at most; None: all.
        greedy: greedy continuations that are followed, and greedy_tokens: how far.
        gate: bounds, as ``kl<=0.02,top1>=0.97,ppl<=+1%``; None: no verdict.
        quantization, activation_mode, kv_cache_dtype: as of ``LLM``, for the model under test alone.
        device, dtype, num_threads, memory_budget: as of ``LLM``; the budget is that of each model.
    """

    data: str | Path | None = None
    tasks: str | Path | None = None
    window: int | None = None
    max_tokens: int | None = None
    greedy: int = 8
    greedy_tokens: int = 32
    gate: str | None = None
    quantization: str | None = None
    activation_mode: str = "auto"
    kv_cache_dtype: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    num_threads: int | None = None
    memory_budget: int | str | None = None

    def engine(self, *, is_original: bool) -> dict[str, Any]:
        names = ["device", "dtype", "num_threads", "memory_budget"]
        if not is_original:
            names += ["quantization", "activation_mode", "kv_cache_dtype"]
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """`figures`: what the gate reads and more; `by_position`: means over bins; `gate`: None without one, else
    {"terms": [...], "passed": bool}."""

    figures: dict[str, Any]
    by_position: list[dict[str, float]]
    gate: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def evaluate(
    model: str | Path | None, options: EvalOptions, *, against: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:  # fmt: skip
    """Measures `model`, and where `against` names its original, how far it is from it.

    Raises:
        InvalidRequestError: wrong options, data that cannot be read, models with different vocabularies, or a gate that
            asks for what is not measured.
    """
    terms, tasks = check(options, has_original=against is not None)
    told = progress or (lambda stage, done, total: None)
    figures: dict[str, Any] = {}
    by_position: list[dict[str, float]] = []
    if options.data is not None:
        found, more = _distributions(model, against, options, told)
        figures |= found.summary() | more
        by_position = found.by_position()
    if tasks:
        figures |= _run_tasks(model, against, tasks, options, told)
    if terms is None:
        return Evaluation(figures, by_position, None)
    verdicts = judge(terms, figures)
    gate = {
        "terms": [dataclasses.asdict(verdict) for verdict in verdicts],
        "passed": all(verdict.passed for verdict in verdicts),
    }
    return Evaluation(figures, by_position, gate)


def check(options: EvalOptions, *, has_original: bool) -> tuple[list[Term] | None, list[Task]]:
    """The gate's terms and the tasks. Raises InvalidRequestError for what is wrong whatever the model is."""
    terms = parse_gate(options.gate) if options.gate is not None else None
    tasks = read_tasks(Path(options.tasks)) if options.tasks is not None else []
    if options.data is None and not tasks:
        raise InvalidRequestError("nothing to evaluate: give data, tasks, or both")
    check_is_measured(terms or (), has_data=options.data is not None, has_tasks=bool(tasks), has_original=has_original)
    for name, least in (("window", 2), ("max_tokens", 1), ("greedy", 0), ("greedy_tokens", 1)):
        value = getattr(options, name)
        if value is not None and (type(value) is not int or value < least):
            raise InvalidRequestError(f"{name} = {value!r} must be an integer of at least {least}")
    return terms, tasks


def check_for_model(options: EvalOptions, tokenizer: Tokenizer | None, vocab_size: int, longest: int) -> None:
    """Raises InvalidRequestError for what a model with these cannot be measured on. `longest`: its context."""
    if options.window is not None and options.window > longest:
        raise InvalidRequestError(f"window = {options.window} exceeds the longest context of the model, {longest}")
    if options.tasks is not None and tokenizer is None:
        raise InvalidRequestError(f"{options.tasks}: tasks are text, and the model has no tokenizer")
    if options.data is not None:
        read_corpus(Path(options.data), tokenizer, vocab_size)


def _distributions(
    model: str | Path | None, against: str | Path | None, options: EvalOptions, told: Progress
) -> tuple[Divergence, dict[str, Any]]:
    assert options.data is not None
    with ScoredModel(model, window=options.window, **options.engine(is_original=False)) as tested:
        documents = read_corpus(Path(options.data), tested.tokenizer, tested.vocab_size)
        pieces = windows(documents, tested.window, options.max_tokens)
        total = sum(len(piece) - 1 for piece in pieces)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            told("comparing" if against is not None else "scoring", done, total)

        if against is None:
            found, more = compare(tested, None, pieces, advance), {}
        else:
            with ScoredModel(against, window=tested.window, **options.engine(is_original=True)) as original:
                if original.vocab_size != tested.vocab_size:
                    raise InvalidRequestError(
                        f"{original.folder} has a vocabulary of {original.vocab_size}, the model under test has "
                        f"{tested.vocab_size}: their distributions cannot be compared"
                    )
                found = compare(tested, original, pieces, advance)
                more = _greedy(tested, original, pieces, options, told)
        if tested.tokenizer is not None:
            counted = sum(num_bytes(piece[1:], tested.tokenizer) for piece in pieces)
            more["bits_per_byte"] = -sum(found.logprobs) / math.log(2) / counted
            if against is not None:
                more["bits_per_byte_original"] = -sum(found.reference_logprobs) / math.log(2) / counted
    return found, more


def first_divergence(tested: ScoredModel, prompt: Sequence[int], continuation: Sequence[int]) -> int:
    """How many tokens of the original's greedy continuation the model writes too. One pass: up to the first difference
    both have read the same."""
    agreed = 0
    for rows in tested.rows([*prompt, *continuation[:-1]], len(prompt) - 1):
        for token in rows.argmax(-1).tolist():
            if token != continuation[agreed]:
                return agreed
            agreed += 1
    return agreed


def _greedy(
    tested: ScoredModel, original: ScoredModel, pieces: Sequence[Sequence[int]], options: EvalOptions, told: Progress
) -> dict[str, Any]:
    length = min(GREEDY_PROMPT, tested.window - options.greedy_tokens)
    prompts = [piece[:length] for piece in pieces if length >= 1 and len(piece) >= length]
    step = max(1, len(prompts) // max(1, options.greedy))
    prompts = prompts[::step][: options.greedy]
    agreed = []
    for i, prompt in enumerate(prompts):
        told("continuing", i, len(prompts))
        agreed.append(first_divergence(tested, prompt, original.greedy(prompt, options.greedy_tokens)))
    if not agreed:
        return {}
    return {
        "greedy_prompts": len(agreed),
        "greedy_tokens": options.greedy_tokens,
        "greedy_agreed_mean": sum(agreed) / len(agreed),
        "greedy_identical": sum(count == options.greedy_tokens for count in agreed) / len(agreed),
    }


def _run_tasks(
    model: str | Path | None, against: str | Path | None, tasks: Sequence[Task], options: EvalOptions, told: Progress
) -> dict[str, Any]:
    with LLM(model, **options.engine(is_original=False)) as llm:
        found = run_tasks(llm, tasks, lambda done: told("tasks", done, len(tasks)))
    if against is not None:
        with LLM(against, **options.engine(is_original=True)) as llm:
            of_original = run_tasks(llm, tasks, lambda done: told("tasks of the original", done, len(tasks)))
        found |= {f"{name}_original": value for name, value in of_original.items() if name.endswith("acc")}
    return found
