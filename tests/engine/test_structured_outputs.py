"""What a grammar asks for is what comes out, and nobody else notices: not the neighbours, not the sequence's bits."""

import asyncio
import json
import random
import re
import time

import jsonschema
import pytest

from fastllm import LLM, AsyncLLM, InvalidRequestError, SamplingParams, StructuredOutputsParams

pytest.importorskip("llguidance", reason="the extra [structured] is not installed")

OPTIONS = {"max_model_len": 512, "max_num_seqs": 16, "kv_cache_tokens": 8192, "num_threads": 2}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"}, "flat": {"type": "boolean"}},
            "required": ["street"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "address"],
    "additionalProperties": False,
}
SCHEMAS = [
    PERSON,
    {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 99}, {"const": "none"}, {"type": "null"}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {
        "$defs": {"node": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/node"},
                                                           "maxItems": 1}]}},
        "$ref": "#/$defs/node",
    },
    {"type": "string", "format": "date"},
    {"type": "array", "prefixItems": [{"type": "integer", "multipleOf": 250, "minimum": 1, "maximum": 9000},
                                      {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 9}],
     "items": False, "minItems": 2},
]  # fmt: skip
LARK = 'start: "sum(" number ("," number)* ")"\nnumber: /[0-9]{1,3}/'


@pytest.fixture(scope="module")
def llm():
    with LLM(**OPTIONS) as engine:
        yield engine


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    yield
    if "llm" in request.fixturenames:
        engine = request.getfixturevalue("llm")
        structured = engine._runtime._structured
        for _ in range(500):
            num_grammars = structured.worker.num_grammars if structured is not None else 0
            num_pages = engine.info()["engine"]["num_pages_referenced"]
            if not num_grammars and not num_pages:
                return
            time.sleep(0.01)
        raise AssertionError(f"{num_grammars} grammars and {num_pages} pages of requests that have ended are kept")


def params(seed=0, **kinds):
    sampling = {"temperature": 1.0, "max_tokens": 200, "seed": seed}
    sampling.update({name: kinds.pop(name) for name in list(kinds) if name in SamplingParams.__annotations__})
    return SamplingParams(**sampling, structured_outputs=StructuredOutputsParams(**kinds))


def outputs(llm, prompt="The os module", runs=24, **kinds):
    """Texts of many seeds, and how each ended."""
    got = llm.generate([prompt] * runs, [params(seed, **kinds) for seed in range(runs)])
    return [output.outputs[0] for output in got]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_json_is_valid_under_its_schema(llm, schema):
    done = [out for out in outputs(llm, json=schema) if out.finish_reason == "stop"]
    assert len(done) >= 12  # a model that writes noise may not come to an end
    for out in done:
        jsonschema.validate(json.loads(out.text), schema)


def test_any_object(llm):
    for out in outputs(llm, json_object=True, max_tokens=400):
        if out.finish_reason == "stop":
            assert isinstance(json.loads(out.text), dict)
    compact = {"json": json.dumps(PERSON), "disable_any_whitespace": True}
    for out in outputs(llm, **compact):
        if out.finish_reason == "stop":
            assert out.text == json.dumps(json.loads(out.text), separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize(
    "pattern", ["[a-c]{3,9}x?", r"\d{3}-\d{4}", "(yes|no)( really)*!", "[^a-z]{4}", r"(\p{L}|é|日){1,5}", ".{1,20}"]
)
def test_a_regular_expression_matches_the_whole_text(llm, pattern):
    python = re.compile(pattern.replace(r"\p{L}", r"[^\W\d_]"))
    for out in outputs(llm, regex=pattern):
        assert out.finish_reason == "stop" or "*" in pattern
        if out.finish_reason == "stop":
            assert python.fullmatch(out.text), out.text


def test_choices_and_grammars(llm):
    choices = ["yes", "no", "not at all", "é日", "no way"]
    texts = {out.text for out in outputs(llm, runs=60, choice=choices)}
    assert texts <= set(choices) and len(texts) > 1
    for out in outputs(llm, grammar=LARK):
        if out.finish_reason == "stop":
            assert re.fullmatch(r"sum\([0-9]{1,3}(,[0-9]{1,3})*\)", out.text)
    gbnf = 'root ::= "a" digits\ndigits ::= [0-9]+ "."'
    assert all(re.fullmatch(r"a\d+\.", out.text) for out in outputs(llm, grammar=gbnf) if out.finish_reason == "stop")


def test_forced_text_ends_with_stop_and_needs_no_end_token(llm):
    for extra in ({}, {"ignore_eos": True}, {"min_tokens": 3}, {"temperature": 0.0}):
        (out,) = outputs(llm, runs=1, choice=["Only this, word for word."], **extra)
        assert (out.text, out.finish_reason, out.stop_reason) == ("Only this, word for word.", "stop", None)


def test_other_ends_still_hold(llm):
    (out,) = outputs(llm, runs=1, regex="a{50}", max_tokens=5)
    assert out.finish_reason == "length" and set(out.text) == {"a"} and len(out.token_ids) == 5
    (out,) = outputs(llm, runs=1, choice=["one two three"], stop=["two"])
    assert (out.text, out.finish_reason, out.stop_reason) == ("one ", "stop", "two")


def test_logprobs_are_those_of_the_model_and_n_sequences_differ(llm):
    (output,) = llm.generate("The os module", params(3, regex="[a-z]{20}", n=6, logprobs=2))
    texts = [c.text for c in output.outputs]
    assert len(set(texts)) == 6 and all(re.fullmatch("[a-z]{20}", text) for text in texts)
    for c in output.outputs:
        assert len(c.logprobs) == len(c.token_ids)
        # The raw logits know nothing of the grammar, so what was drawn need not be likely.
        assert any(entry[token].rank > 20 for token, entry in zip(c.token_ids, c.logprobs, strict=True))


def mix(rng):
    """Requests with and without a grammar."""
    kinds = [
        {"json": PERSON}, {"regex": "[a-z ]{60}"}, {"choice": ["left", "right"]}, {"grammar": LARK}, None, None, None
    ]  # fmt: skip
    requests = []
    for i in range(28):
        kind = kinds[i % len(kinds)]
        sampling = {"seed": i, "max_tokens": rng.randrange(8, 60), "n": rng.choice([1, 1, 3]), "logprobs": 0}
        prompt = "The " + "os " * rng.randrange(1, 60)
        requests.append((prompt, params(**sampling, **kind) if kind else SamplingParams(**sampling)))
    return requests


def results(outs):
    return [[(c.token_ids, c.text, c.finish_reason, c.cumulative_logprob) for c in out.outputs] for out in outs]


def test_alone_and_in_a_crowd_with_preemption_the_bits_are_the_same(llm):
    requests = mix(random.Random(5))
    prompts, sampling = [p for p, _ in requests], [s for _, s in requests]
    alone = [llm.generate(p, s)[0] for p, s in requests]
    assert results(llm.generate(prompts, sampling)) == results(alone)
    with LLM(max_model_len=256, max_num_seqs=8, kv_cache_tokens=256, max_num_batched_tokens=24, num_threads=2) as small:
        assert results(small.generate(prompts, sampling)) == results(alone)
        assert small.info()["engine"]["num_preemptions"] > 0


def test_a_slow_maker_of_masks_holds_up_nobody_else(llm, monkeypatch):
    worker = llm._runtime._structured_outputs().worker
    original = worker.next_mask
    quick = llm.generate("The os module", params(1, regex="[a-z]{12}"))[0]
    before = llm.info()["engine"]
    neighbour_finished = []

    def slow(*task):  # no mask before the neighbour has all of its tokens
        deadline = time.monotonic() + 100
        while llm.info()["engine"]["num_requests_finished"] == before["num_requests_finished"]:
            if time.monotonic() > deadline:
                return original(*task)
            time.sleep(0.001)
        neighbour_finished.append(True)
        return original(*task)

    monkeypatch.setattr(worker, "next_mask", slow)
    outs = llm.generate(
        ["The os module", "Once"], [params(1, regex="[a-z]{12}"), SamplingParams(max_tokens=100, ignore_eos=True)]
    )
    assert outs[0].outputs[0].token_ids == quick.outputs[0].token_ids
    assert llm.info()["engine"]["num_late_masks"] > before["num_late_masks"]
    assert len(outs[1].outputs[0].token_ids) == 100
    assert neighbour_finished


def test_what_goes_wrong_with_a_mask_ends_that_request_only(llm, monkeypatch):
    worker = llm._runtime._structured_outputs().worker
    original, calls = worker.next_mask, []

    def breaks(*task):
        calls.append(task)
        if len(calls) == 3:
            raise RuntimeError("broken")
        return original(*task)

    monkeypatch.setattr(worker, "next_mask", breaks)
    with pytest.raises(InvalidRequestError, match="structured_outputs: making a mask failed") as caught:
        llm.generate(["The", "The"], [params(1, regex="[a-z]{30}"), SamplingParams(max_tokens=40, ignore_eos=True)])
    failed, fine = (output.outputs[0] for output in caught.value.outputs)
    assert failed.finish_reason == "error" and fine.finish_reason == "length"
    assert outputs(llm, runs=1, choice=["ok"])[0].text == "ok"


def test_a_grammar_that_grows_too_large_on_its_way_says_so(llm):
    with pytest.raises(InvalidRequestError, match="structured_outputs: the grammar cannot go on"):
        for seed in range(10):
            llm.generate("The", params(seed, regex="(.{0,100}){0,190}", max_tokens=400))


def test_aborted_requests_leave_nothing(llm):
    async def main():
        async with AsyncLLM(**OPTIONS) as engine:
            for i in range(20):
                outs = engine.generate("The", params(i, regex="[a-z]{300}", n=2))
                async for _ in outs:
                    break
                await outs.aclose()
            while engine.stats()["num_running"] + engine.stats()["num_waiting"]:
                await asyncio.sleep(0.01)
            assert engine.stats()["num_pages_referenced"] == 0
            worker = engine._runtime._structured.worker
            while worker.num_grammars:
                await asyncio.sleep(0.01)
            # Closing in the middle ends those that wait for masks, too.
            tasks = [
                asyncio.ensure_future(anext(engine.generate("The", params(i, regex="[a-z]{300}")))) for i in (1, 2)
            ]
            await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(main(), 60))


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED = [
    ({}, "0 of json"),
    ({"json": {}, "regex": "a"}, "2 of json"),
    ({"json": "{"}, "not valid JSON"),
    ({"json": "5"}, "expected a JSON schema"),
    ({"json": {"type": "strin"}}, "Invalid type"),
    ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json": {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}}, "uniqueItems"),
    ({"json": {"oneOf": [{"type": "string"}, {"pattern": "a"}]}}, "oneOf"),
    ({"json": {"$ref": "http://example.com/schema"}}, "does not fetch"),
    ({"json": {"$ref": "#"}}, "allows no text"),
    ({"json": {"type": "string", "enum": []}}, "Unsatisfiable"),
    ({"json": nested(32)}, "more than 32 levels"),
    ({"json": {"enum": ["x" * 70_000]}}, "1 to 65536 are allowed"),
    ({"json": {"type": "string", "pattern": "(a{1000}){1000}"}}, "repeats written out"),
    ({"json": {"default": float("nan")}}, "not JSON"),
    ({"json": {"type": "integer", "multipleOf": 999_983}}, "least common multiple"),
    ({"json": {"type": "integer", "multipleOf": 2**30}}, "least common multiple"),
    ({"json": {"type": "integer", "multipleOf": 10**29 + 1}}, "least common multiple"),
    ({"json": {"type": "integer", "multipleOf": True}}, "multipleOf"),
    ({"json": {"type": "integer", "multipleOf": -999_983}}, "least common multiple"),
    ({"json": {"type": "integer", "multipleOf": 0}}, "invalid multiple of"),
    ({"json": {"type": "integer", "allOf": [{"multipleOf": p} for p in (97, 101, 103, 107)]}}, "least common multiple"),
    ({"grammar": 'start: %json {"type": "integer", "multipleOf": 999983}'}, "least common multiple"),
    ({"regex": ""}, "1 to 1024"),
    ({"regex": "a" * 1025}, "1 to 1024"),
    ({"regex": "(a"}, "invalid regex"),
    ({"regex": "(?=a)b"}, "look-ahead"),
    ({"regex": "(a{1000}){1000}"}, "repeats written out"),
    ({"regex": 5}, "expected a string"),
    ({"choice": []}, "1 to 1024"),
    ({"choice": "ab"}, "list of strings"),
    ({"choice": ["a", ""]}, "empty string"),
    ({"choice": ["a"] * 1025}, "1 to 1024"),
    ({"grammar": "start: unknown_rule"}, "unknown_rule"),
    ({"grammar": "start: A{900}\nA: B{900}\nB: /a{900}/"}, "their product"),
    ({"grammar": 'start: "a" %json {"type": "array", "uniqueItems": true}'}, "uniqueItems"),
    ({"grammar": 'start: <"> %json {"type": "integer", "multipleOf": 999983} "'}, "least common multiple"),
    ({"grammar": "start: %json 5"}, "expected a JSON schema"),
    ({"grammar": "start: %json"}, "not followed by"),
    ({"grammar": "start: @answer"}, ""),
    ({"grammar": "(" * 60_000}, ""),
]


@pytest.mark.parametrize(("kinds", "why"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_a_grammar_is_refused_before_it_runs(llm, kinds, why):
    with pytest.raises(InvalidRequestError, match=r"^structured_outputs: ") as caught:
        llm.generate("The", params(**kinds))
    assert why in str(caught.value) and len(str(caught.value)) < 400


def test_schemas_in_a_grammar_are_told_from_its_literals(llm):
    lark = r"""
    start: "%json {" /%json [x]/ "\"%json" %json {"const": "%json \"x\""} // %json
    """
    assert {one.text for one in outputs(llm, runs=2, grammar=lark)} == {r'%json {%json x"%json"%json \"x\""'}


def test_a_busy_machine_makes_no_grammar_too_slow(llm, monkeypatch):
    import llguidance

    matcher = llguidance.LLMatcher

    def preempted(*args, **kwargs):
        time.sleep(0.5)
        return matcher(*args, **kwargs)

    monkeypatch.setattr(llguidance, "LLMatcher", preempted)
    monkeypatch.setattr("fastllm.structured.compiler.MAX_COMPILE_S", 0.4)
    compiler = llm._runtime._structured_outputs().compiler
    assert compiler.submit(StructuredOutputsParams(choice=["busy"])).result()


def test_other_types_are_refused(llm):
    with pytest.raises(InvalidRequestError, match="structured_outputs: is dict"):
        llm.generate("The", SamplingParams(structured_outputs={"regex": "a"}))


def test_a_grammar_is_compiled_once(llm):
    compiler = llm._runtime._structured_outputs().compiler
    first = compiler.submit(StructuredOutputsParams(regex="[k-m]{3}")).result()
    assert compiler.submit(StructuredOutputsParams(regex="[k-m]{3}")).result() is first
    for i in range(300):
        compiler.submit(StructuredOutputsParams(choice=[f"word {i}"])).result()
    assert len(compiler._cache) <= 256
    assert compiler.submit(StructuredOutputsParams(regex="[k-m]{3}")).result() is not first
