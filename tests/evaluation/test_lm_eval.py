"""The adapter for lm-evaluation-harness runs a task of the user's on the demo model, with the engine's own figures.

The harness is in no extra: lm_eval 0.4.13 brings 44 packages of 618 MB. `pip install lm_eval` runs these tests, too.
"""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastllm import LLM, InvalidRequestError, SamplingParams

harness = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")


@pytest.fixture(scope="module")
def model() -> Any:
    import fastllm.lm_eval  # noqa: F401

    return (
        importlib.import_module("lm_eval.api.registry")
        .get_model("fastllm")
        .create_from_arg_string("num_threads=1,max_length=256")
    )


def _request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def _logprobs(llm: LLM, text: str) -> list[float]:
    out = llm.generate([text], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))[0]
    pairs = zip(out.prompt_token_ids, out.prompt_logprobs or [], strict=True)
    return [entry[token].logprob for token, entry in pairs if entry is not None]


def test_likelihoods_and_texts_are_those_of_the_engine(model: Any) -> None:
    with LLM(num_threads=1) as llm:
        greedy = llm.generate(["The os module"], SamplingParams(temperature=0, max_tokens=5))[0].outputs[0].text
        tail = _logprobs(llm, "The os module" + greedy)[len(llm.encode("The os module")) - 1 :]
        whole = _logprobs(llm, "The os module provides")
    found = model.loglikelihood(
        [_request("The os module", greedy), _request("The os module", " zqx")], disable_tqdm=True
    )
    assert found[0] == (pytest.approx(sum(tail)), True) and found[1][1] is False
    (rolling,) = model.loglikelihood_rolling([_request("The os module provides")], disable_tqdm=True)
    assert rolling < sum(whole) and math.isfinite(rolling)  # the first token counts too
    texts = model.generate_until(
        [_request("The os module", {"until": ["\n"], "max_gen_toks": 5}), _request("A", {"until": ["e"]})],
        disable_tqdm=True,
    )
    assert texts[0] == greedy.split("\n")[0] and "e" not in texts[1]


def test_a_long_text_is_cut_into_windows(model: Any) -> None:
    (long,) = model.loglikelihood_rolling([_request("The os module provides. " * 120)], disable_tqdm=True)
    assert math.isfinite(long) and long < 0


def test_every_stop_string_counts(model: Any) -> None:
    """The engine takes 16, tasks may have more."""
    (whole,) = model.generate_until([_request("The os module", {"max_gen_toks": 12})], disable_tqdm=True)
    middle = whole[len(whole) // 2 :][:2]
    until = [*(f"zqx{i}" for i in range(20)), middle]
    (cut,) = model.generate_until([_request("The os module", {"until": until, "max_gen_toks": 12})], disable_tqdm=True)
    assert middle and cut == whole.partition(middle)[0] != whole


def test_a_model_without_an_end_of_text_is_refused_where_it_needs_one(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_start_id", None)
    assert len(model.loglikelihood([_request("The os", " module")], disable_tqdm=True)) == 1
    with pytest.raises(InvalidRequestError, match="no end-of-text id"):
        model.loglikelihood([_request("", "The os")], disable_tqdm=True)
    with pytest.raises(InvalidRequestError, match="no end-of-text id"):
        model.loglikelihood_rolling([_request("The os module")], disable_tqdm=True)


def test_a_task_runs(tmp_path: Path) -> None:
    """A multiple-choice task from a local file, through the harness from end to end."""
    pytest.importorskip("datasets")
    import fastllm.lm_eval  # noqa: F401

    lines = [
        {"q": "The os", "choices": [" module", " zqxj"], "label": 0},
        {"q": "import", "choices": ["ed", " Zq"], "label": 0},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "tiny.yaml").write_text(
        f"""
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {{"test": "{tmp_path / "data.jsonl"}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
"""
    )
    tasks = importlib.import_module("lm_eval.tasks").TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = harness.simple_evaluate(
        model="fastllm", model_args="num_threads=1", tasks=["tiny_choice"], task_manager=tasks, bootstrap_iters=0
    )
    assert found["results"]["tiny_choice"]["acc,none"] == 1.0
