"""Which texts the grammars of calls let through, asked of llguidance itself."""

import json

import llguidance
import pytest

from fastllm import StructuredOutputsParams
from fastllm.demo import DEMO_MODEL
from fastllm.server.openai.tool_grammar import after_reasoning, forced_calls, strict_calls
from fastllm.server.openai.tools import STYLES, Call, FunctionSpec, ToolParser
from fastllm.structured.compiler import _ll_tokenizer
from fastllm.structured.grammar import grammar_text
from fastllm.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(DEMO_MODEL)
IM_END = TOKENIZER.encode("<|im_end|>")[0]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTIONS = [FunctionSpec(name="weather", parameters=CITY, strict=True), FunctionSpec(name="time")]
GOOD, OTHER = '{"name": "weather", "arguments": {"city":"Bern"}}', '{"name": "time", "arguments": {"zone": 3}}'
BAD = '{"name": "weather", "arguments": {"town":"Bern"}}'


@pytest.fixture(scope="module")
def accepts():
    tokenizer = _ll_tokenizer(TOKENIZER, 4096, [0])

    def check(params, text):
        matcher = llguidance.LLMatcher(tokenizer, grammar_text(params), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = TOKENIZER.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return check


def hermes(*objects):
    return "\n".join(f"<tool_call>\n{o}\n</tool_call>" for o in objects)


@pytest.mark.parametrize(
    ("style", "texts", "wrong"),
    [
        ("hermes", [hermes(GOOD), hermes(OTHER, GOOD)], ["", "hm " + hermes(GOOD), hermes(BAD), GOOD]),
        ("mistral", [f"[TOOL_CALLS][{GOOD}]", f"[TOOL_CALLS][{GOOD}, {OTHER}]"],
         [f"[TOOL_CALLS][{BAD}]", "[TOOL_CALLS][]"]),
        ("llama3_json", [GOOD.replace("arguments", "parameters")], [GOOD, "It is"]),
    ],
)  # fmt: skip
def test_forced_calls(accepts, style, texts, wrong):
    many = forced_calls(STYLES[style], FUNCTIONS, json.dumps, one_call=False)
    one = forced_calls(STYLES[style], FUNCTIONS, json.dumps, one_call=True)
    assert all(accepts(many, text) for text in texts)
    assert [accepts(one, text) for text in texts] == [True, False][: len(texts)]
    assert not any(accepts(many, text) for text in wrong)


def call_of(style, *objects):
    return hermes(*objects) if style == "hermes" else f"[TOOL_CALLS][{', '.join(objects)}]"


@pytest.mark.parametrize("style", ["hermes", "mistral"])
def test_strict_calls_leave_text_alone_and_are_read_by_the_parser(accepts, style):
    params = strict_calls(STYLES[style], FUNCTIONS, json.dumps)
    good, other = call_of(style, GOOD), call_of(style, OTHER)
    texts = {"It is < 5 <tool [TOOL": [], good: ["weather"], "Let me see.\n" + other: ["time"],
             "Both: " + call_of(style, OTHER, GOOD): ["time", "weather"]}  # fmt: skip
    if style == "hermes":
        texts["First " + other + " and " + good + " so"] = ["time", "weather"]
    for text, names in texts.items():
        assert accepts(params, text), text
        parser = ToolParser(STYLES[style], ["weather", "time"])
        pieces = parser.feed(text) + parser.finish()
        assert [piece.name for piece in pieces if isinstance(piece, Call)] == names
    for text in (call_of(style, BAD), "Well " + call_of(style, "{}"), good[:-1]):
        assert not accepts(params, text), text
    if style == "mistral":
        assert not accepts(params, good + " so") and not accepts(params, good + good)


def test_a_marker_that_is_a_special_token_is_named_by_its_id(accepts):
    literal = {"[TOOL_CALLS]": f"<[{IM_END}]>", "": '""'}.__getitem__
    for make in (
        lambda: forced_calls(STYLES["mistral"], FUNCTIONS, literal, one_call=False),
        lambda: strict_calls(STYLES["mistral"], FUNCTIONS, literal),
    ):
        assert accepts(make(), f"<|im_end|>[{GOOD}]")
        assert not accepts(make(), f"<|im_end|>[{BAD}]")


@pytest.mark.parametrize(
    ("params", "answer"),
    [
        (StructuredOutputsParams(json=CITY), '{"city":"Bern"}'),
        (StructuredOutputsParams(json_object=True), '{"a":[1]}'),
        (StructuredOutputsParams(choice=["a", 'b/"c']), 'b/"c'),
        (StructuredOutputsParams(regex="[a-z/]{2}"), "a/"),
        (StructuredOutputsParams(regex=r"a\/b\\/c"), "a/b\\/c"),
        (StructuredOutputsParams(grammar='start: "x" y\ny: "y"+'), "xyy"),
        (StructuredOutputsParams(grammar='start : "x"  thought\nthought: "y" answer\nanswer: "z"'), "xyz"),
        (StructuredOutputsParams(grammar='start: "(" start ")" | "x"'), "((x))"),
        (StructuredOutputsParams(grammar='root ::= "a" text\ntext ::= [b-c]+'), "abc"),
        (forced_calls(STYLES["hermes"], FUNCTIONS, json.dumps, one_call=True), hermes(GOOD)),
    ],
)
def test_reasoning_comes_first(accepts, params, answer):
    inside = after_reasoning(params, json.dumps, is_inside=True)
    assert accepts(inside, f"hm, <b> it\n</think>\n\n{answer}")
    assert not accepts(inside, answer) and not accepts(inside, "hm")
    outside = after_reasoning(params, json.dumps, is_inside=False)
    assert accepts(outside, answer) and accepts(outside, f"<think>\nhm\n</think>\n{answer}")
    marked = {"<think>": f"<[{IM_END}]>", "</think>": json.dumps("</think>")}.__getitem__
    assert accepts(after_reasoning(params, marked, is_inside=False), f"<|im_end|>hm</think>\n{answer}")
    assert not accepts(outside, f"<think>\nhm\n</think>\n{answer} and more <")
