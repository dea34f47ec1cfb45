"""Sampling parameters are declared once, in C++: the Python class agrees, and every wrong value is refused by name."""

import dataclasses
import math

import pytest

from fastllm import LLM, InvalidRequestError, SamplingParams, _core

TABLE = {row["name"]: row for row in _core.sampling_param_table()}
FIELDS = {field.name: field for field in dataclasses.fields(SamplingParams)}
VOCAB = 4096


@pytest.fixture(scope="module")
def llm():
    with LLM(max_model_len=128, max_num_seqs=8, kv_cache_tokens=1024) as engine:
        yield engine


def test_the_python_class_has_the_names_types_and_defaults_of_the_table():
    # What the text must be is made into masks in Python: the engine sees those.
    assert list(FIELDS) == [*TABLE, "structured_outputs"]
    annotations = {
        "int": "int",
        "float": "float",
        "bool": "bool",
        "list[str]": "str | Sequence[str]",
        "list[int]": "Sequence[int]",
        "list[list[int]]": "Sequence[str]",  # bad_words: the tokenizer makes ids of them
        "dict[int, float]": "Mapping[int, float]",
    }
    for name, row in TABLE.items():
        field = FIELDS[name]
        default = eval(row["default"], {"__builtins__": {}})
        assert field.default == {"[]": (), "{}": None}.get(row["default"], default), name
        optional = row["is_optional"] or row["type"] == "dict[int, float]"
        assert field.type == annotations[row["type"]] + (" | None" if optional else ""), name
        assert row["help"]


def test_the_docstring_describes_every_parameter():
    for name in FIELDS:
        assert f"\n        {name}: " in SamplingParams.__doc__, name


def test_defaults_pass_and_so_do_the_borders_of_every_range(llm):
    for name, row in TABLE.items():
        if row["type"] not in ("int", "float"):
            continue
        for border in (row["min"], row["max"]):
            if math.isinf(border) or (row["is_open"] and border == row["min"]):
                continue
            value = int(border) if row["type"] == "int" else border
            if name in ("max_tokens", "min_tokens") and value > 100:
                continue  # more than the model's context: refused for that
            params = SamplingParams(**{"max_tokens": 1, name: value})
            assert llm.generate("The", params)[0].finished, (name, value)


def wrong_values():
    """(name, value) for everything that the table says is wrong."""
    huge = 2**63
    cases = []
    for name, row in TABLE.items():
        kind, low, high = row["type"], row["min"], row["max"]
        wrong_types = [object(), b"bytes", 1j]
        if kind == "int":
            wrong_types += ["1", 1.5, True, [1], huge, -huge - 1, 2**200, float("nan"), {"a": 1}]
        elif kind == "float":
            wrong_types += ["1", True, [1.0], 10**400, {"a": 1}]
        elif kind == "bool":
            wrong_types += [1, 0, "yes", [True]]
        elif kind == "list[str]":
            wrong_types += [5, [5], ["a", None], "\ud800", {"a"}]
        elif kind == "dict[int, float]":
            wrong_types += [5, [1], {"5": 1.0}, {5: "1"}, {5: None}, {True: 1.0}, {huge: 1.0}]
        else:
            wrong_types += [5, "text", {"a": 1}]
        if kind.startswith("list[int]"):
            wrong_types += [["1"], [1.5], [None], [huge], [2**200]]
        if not row["is_optional"] and kind in ("int", "float", "bool"):
            wrong_types.append(None)
        cases += [(name, value) for value in wrong_types]
        if kind == "float":
            cases += [(name, value) for value in (float("nan"), float("inf"), -float("inf"))]
        if kind in ("int", "float") and not math.isinf(high):
            step = 1 if kind == "int" else 0.001
            cases += [(name, type(step)(high + step)), (name, type(step)(low - step))]
            if row["is_open"]:
                cases.append((name, low))
        if kind == "dict[int, float]":
            cases += [(name, {5: v}) for v in (low - 0.1, high + 0.1, float("nan"), float("inf"))]
            cases.append((name, dict.fromkeys(range(row["max_items"] + 1), 0.0)))
        if row["is_token_id"] and kind != "list[list[int]]":
            for bad in (-1, VOCAB, 2**31, 2**40, 2**63 - 1):
                cases.append((name, {bad: 1.0} if kind.startswith("dict") else [0, bad]))
        if kind == "list[int]" and row["max_items"] <= 1 << 16:
            cases.append((name, [1] * (row["max_items"] + 1)))
        if kind == "list[str]":
            cases += [(name, ["a"] * (row["max_items"] + 1)), (name, [""]), (name, "a" * (row["max_item_size"] + 1))]
        if name == "bad_words":
            cases += [(name, [5]), (name, [""]), (name, ["a"] * (row["max_items"] + 1)), (name, ["a b " * 300])]
    return cases


@pytest.mark.parametrize("name", TABLE)
def test_every_wrong_value_is_refused_with_the_name_of_the_parameter(name, llm):
    values = [value for n, value in wrong_values() if n == name]
    assert len(values) > 5
    for value in values:
        with pytest.raises(InvalidRequestError, match=name):
            llm.generate("The", SamplingParams(**{"max_tokens": 1, name: value}))
        with pytest.raises(InvalidRequestError, match=name):
            next(llm.stream("The", SamplingParams(**{"max_tokens": 1, name: value})))
    assert llm.generate("The", SamplingParams(max_tokens=1))[0].finished


def test_none_stands_for_no_limit_and_for_empty_lists(llm):
    unlimited = llm.generate("The", SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))[0]
    assert len(unlimited.prompt_token_ids) + len(unlimited.outputs[0].token_ids) == 128
    nothing = dict.fromkeys(("stop", "stop_token_ids", "bad_words", "banned_token_ids", "logit_bias", "seed"))
    assert llm.generate("The", SamplingParams(max_tokens=1, **nothing))[0].finished


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens = 5 is larger than max_tokens = 4"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"allowed_token_ids": [5, 6], "banned_token_ids": [6, 5]}, "leaves no token"),
        ({"banned_token_ids": list(range(VOCAB))}, "leaves no token"),
        ({"detokenize": False, "stop": "x"}, "stop strings need detokenize"),
        ({"max_tokens": 128}, "max_model_len is 128"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, text, llm):
    with pytest.raises(InvalidRequestError, match=text):
        llm.generate("The", SamplingParams(**changes))


@pytest.mark.parametrize("prompt", [[VOCAB], [-1], [2**31], [2**63], [2**200], ["1"], [1.5], [True], [None], [], ""])
def test_a_prompt_of_ids_that_the_model_has_not_is_refused(prompt, llm):
    with pytest.raises(InvalidRequestError, match="prompt"):
        llm.generate([{"prompt_token_ids": prompt}], SamplingParams(max_tokens=1))


@pytest.mark.parametrize(
    "prompt",
    [5.5, None, b"bytes", {"prompt": 5}, {"prompt": None}, {}, {"text": "x"}, {"prompt_token_ids": "12"}, [[]]],
)
def test_what_is_not_a_prompt_is_refused(prompt, llm):
    with pytest.raises(InvalidRequestError):
        llm.generate([prompt], SamplingParams(max_tokens=1))


def test_what_is_not_sampling_params_is_refused(llm):
    for wrong in ({"temperature": 1}, [{"temperature": 1}], "greedy", 5):
        with pytest.raises(InvalidRequestError, match="sampling_params"):
            llm.generate(["The"], wrong)
    with pytest.raises(InvalidRequestError, match="2 sampling_params for 1 prompts"):
        llm.generate(["The"], [SamplingParams()] * 2)


@pytest.mark.parametrize(
    "extra", [{"priority": 2**63}, {"priority": "1"}, {"cache_salt": 5}, {"cache_salt": "x" * 257}]
)
def test_the_other_arguments_are_checked_too(extra, llm):
    with pytest.raises(InvalidRequestError, match=next(iter(extra))):
        llm.generate("The", SamplingParams(max_tokens=1), **extra)


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    for wrong, right in (("temprature", "temperature"), ("max_token", "max_tokens"), ("topp", "top_p")):
        with pytest.raises(InvalidRequestError, match=f"'{wrong}'.*did you mean {right}"):
            SamplingParams.from_dict({wrong: 1})
        with pytest.raises(TypeError, match=wrong):
            SamplingParams(**{wrong: 1})
    with pytest.raises(InvalidRequestError, match=r"'zzz'.*known are n, temperature"):
        SamplingParams.from_dict({"zzz": 1})
    assert SamplingParams.from_dict({"top_k": 3}).replace(n=2) == SamplingParams(top_k=3, n=2)


def test_nothing_of_a_call_runs_if_one_of_its_parameters_is_wrong(llm):
    before = llm.info()["engine"]["num_generated_tokens"]
    with pytest.raises(InvalidRequestError):
        llm.generate(["The"] * 3, [SamplingParams(max_tokens=100)] * 2 + [SamplingParams(n=0)])
    stats = llm.info()["engine"]
    assert stats["num_generated_tokens"] - before < 200  # the first two were aborted, if they ran at all
