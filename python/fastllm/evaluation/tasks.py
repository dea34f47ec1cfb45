"""Tasks of the user's, one JSON object a line:

{"prompt": "...", "choices": ["a", "b"], "answer": 0}    multiple choice: the most likely choice, by its mean
                                                          log-probability per byte
{"prompt": "...", "answer": "...", "max_tokens": 32}      exact match: the greedy continuation up to a line break,
                                                          without blanks at its ends
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastllm.errors import InvalidRequestError
from fastllm.evaluation.likelihood import encode_pair, loglikelihoods
from fastllm.llm import LLM
from fastllm.params import SamplingParams

MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Choice:
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Exact:
    prompt: str
    answer: str
    max_tokens: int


Task = Choice | Exact


def read_tasks(path: Path) -> list[Task]:
    """Raises InvalidRequestError with the number of the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    tasks: list[Task] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            tasks.append(_task(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{path}:{number}: {str(error)[:200]}") from None
    if not tasks:
        raise InvalidRequestError(f"{path}: holds no task")
    return tasks


def _task(value: Any) -> Task:
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise ValueError('expected an object with "prompt" and "answer"')
    prompt, answer = value["prompt"], value.get("answer")
    if "choices" in value:
        choices = value["choices"]
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
            raise ValueError('"choices" must be at least two strings')
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise ValueError(f'"answer" must be the index of a choice, 0 to {len(choices) - 1}')
        return Choice(prompt, tuple(choices), answer)
    limit = value.get("max_tokens", MAX_ANSWER_TOKENS)
    if not prompt or not isinstance(answer, str) or type(limit) is not int or not 1 <= limit <= 65536:
        raise ValueError('expected "answer" as a string (or "choices"), and "max_tokens" as a positive integer')
    return Exact(prompt, answer, limit)


def run_tasks(llm: LLM, tasks: Sequence[Task], told: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
    """Shares of right answers: over all as "acc", and of each kind. `told` hears how many tasks are done."""
    choices = [task for task in tasks if isinstance(task, Choice)]
    exact = [task for task in tasks if isinstance(task, Exact)]
    told(0)
    right = {"choice": _run_choices(llm, choices)}
    told(len(choices))
    right["exact"] = _run_exact(llm, exact)
    told(len(tasks))
    found: dict[str, Any] = {"acc": sum(map(sum, right.values())) / len(tasks)}
    for kind, results in right.items():
        if results:
            found[f"{kind}_acc"] = sum(results) / len(results)
            found[f"{kind}_count"] = len(results)
    return found


def _run_choices(llm: LLM, tasks: Sequence[Choice]) -> list[bool]:
    if not tasks:
        return []
    pairs = [encode_pair(llm.encode, task.prompt, choice) for task in tasks for choice in task.choices]
    scores = iter(loglikelihoods(llm, pairs))
    right = []
    for task in tasks:
        means = [next(scores)[0] / len(choice.encode("utf-8", "replace")) for choice in task.choices]
        right.append(means.index(max(means)) == task.answer)
    return right


def _run_exact(llm: LLM, tasks: Sequence[Exact]) -> list[bool]:
    if not tasks:
        return []
    params = [SamplingParams(temperature=0, max_tokens=task.max_tokens, stop=["\n"]) for task in tasks]
    outputs = llm.generate([task.prompt for task in tasks], params, use_tqdm=False)
    return [output.outputs[0].text.strip() == task.answer.strip() for output, task in zip(outputs, tasks, strict=True)]
