"""Tool calls and reasoning: the same whatever the pieces in which the text comes."""

import json
import random

import openai
import pytest
from scripted import ScriptedLLM
from serving import Serving

from fastllm.server.config import ServerConfig
from fastllm.server.generation import Delta
from fastllm.server.openai.pipeline import Pipeline
from fastllm.server.openai.reasoning import ReasoningParser
from fastllm.server.openai.tools import STYLES, Call, ToolParser
from fastllm.server.pieces import Splitter

WEATHER, TIME = Call("weather", '{"city":"Bern","days":[1,{"a":"}"}]}'), Call("time", "{}")


def hermes(*calls):
    return "\n".join(f'<tool_call>\n{{"name": "{c.name}", "arguments": {c.arguments}}}\n</tool_call>' for c in calls)


# style, text -> plain text, calls
CASES = [
    ("hermes", hermes(WEATHER), "", [WEATHER]),
    ("hermes", "Let me see.\n" + hermes(WEATHER, TIME), "Let me see.", [WEATHER, TIME]),
    ("hermes", hermes(TIME) + " Done.", "Done.", [TIME]),
    ("hermes", "no call < here <tool", "no call < here <tool", []),
    ("hermes", "<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
    ("hermes", '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
    ("hermes", '<tool_call>{"name": "time", "arguments": {}}', "", [TIME]),
    ("hermes", "<tool_call>" + "[" * 100_000, "<tool_call>" + "[" * 100_000, []),
    ("llama3_json", '{"name": "time", "parameters": {}}', "", [TIME]),
    ("llama3_json", '<|python_tag|>{"name": "time", "parameters": {}}; {"name": "weather", "parameters": '
     + WEATHER.arguments + "}", "", [TIME, WEATHER]),
    ("llama3_json", '{"answer": 42}', '{"answer": 42}', []),
    ("llama3_json", 'It is {"name": "x"}', 'It is {"name": "x"}', []),
    ("mistral", '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"name": "weather", "arguments": '
     + WEATHER.arguments + "}]", "", [TIME, WEATHER]),
    ("mistral", 'Well [TOOL_CALLS] [{"name": "time", "arguments": "{}"}]', "Well", [TIME]),
    ("mistral", "plain [TOOL", "plain [TOOL", []),
    ("hermes", " spaced \n\n out \n", " spaced \n\n out \n", []),
    ("hermes", " \n ", " \n ", []),
    ("llama3_json", " \n ", " \n ", []),
    ("hermes", " \n" + hermes(TIME) + "\n \n", "", [TIME]),
    ("hermes", "First \n" + hermes(TIME) + "\n\nand " + hermes(WEATHER, TIME) + " \nso \n",
     "First \nand so \n", [TIME, WEATHER, TIME]),
    ("hermes", "a \n<tool_call> no </tool_call> \nb", "a \n<tool_call> no </tool_call> \nb", []),
    *(("hermes", f"<tool_call>{bad}</tool_call>", f"<tool_call>{bad}</tool_call>", []) for bad in (
        '{"name": "time"}', '{"name": "other", "arguments": {}}', '{"name": {}, "arguments": {}}',
        '{"name": "time", "arguments": 5}', '{"name": "time", "arguments": {}} and', '"time"', "",
        '{"name": "time", "arguments": {}} {"name": "time"', '{"name": "time", "arguments": {"a": NaN}}',
    )),
    ("llama3_json", ' {"name": "time", "parameters": {}} \n{"name": "time", "parameters": {}}; ', "", [TIME, TIME]),
    ("llama3_json", '{"name": "time", "parameters": {}}; then {"name": "time", "parameters": {}}',
     '{"name": "time", "parameters": {}}; then {"name": "time", "parameters": {}}', []),
    ("mistral", '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"name": "x", "arguments": {}}]',
     '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"name": "x", "arguments": {}}]', []),
]  # fmt: skip


def cuts(text, rng):
    """The text in pieces: whole, by characters, and at random."""
    yield [text]
    if len(text) < 1000:
        yield list(text)
    for _ in range(20):
        pieces, at = [], 0
        while at < len(text):
            size = rng.randrange(1, 12 if len(text) < 1000 else 10_000)
            pieces.append(text[at : at + size])
            at += size
        yield pieces


@pytest.mark.parametrize(("style", "text", "plain", "calls"), CASES, ids=lambda value: str(value)[:30])
def test_calls_do_not_depend_on_the_pieces(style, text, plain, calls):
    for pieces in cuts(text, random.Random(1)):
        parser = ToolParser(STYLES[style], {"weather", "time"})
        found = [one for piece in pieces for one in parser.feed(piece)] + parser.finish()
        assert [one for one in found if isinstance(one, Call)] == calls
        assert "".join(one for one in found if isinstance(one, str)) == plain
        assert "" not in found


THOUGHT = "<think>\n hm \n</think>\n\n"
TALK = THOUGHT + "I look. \n" + hermes(WEATHER) + "\n" + hermes(TIME) + "\nThen\n" + hermes(TIME) + " Done.\n"


def test_pieces_keep_their_order_whatever_the_pieces():
    # A token is a character here.
    for pieces in cuts(TALK, random.Random(3)):
        pipeline = Pipeline(
            STYLES["hermes"], reasons=True, names={"weather", "time"}, token_bytes=lambda token: chr(token).encode()
        )
        splitter = Splitter(pipeline)
        grown = {}
        for i, piece in enumerate(pieces):
            reason = "stop" if i == len(pieces) - 1 else None
            for one in splitter.feed(Delta(0, piece, [ord(c) for c in piece], None, reason, None)):
                assert one.is_new == (id(one.block) not in grown)
                grown[id(one.block)] = grown.get(id(one.block), "") + one.text
        assert [(block.kind, block.name, block.text) for block in splitter.blocks] == [
            ("thought", "", "hm"),
            ("text", "", "I look."),
            ("call", "weather", WEATHER.arguments),
            ("call", "time", "{}"),
            ("text", "", "Then"),
            ("call", "time", "{}"),
            ("text", "", "Done.\n"),
        ]
        assert [grown[id(block)] for block in splitter.blocks] == [block.text for block in splitter.blocks]
        assert splitter.finish_reason == "tool_calls"
        assert splitter.num_thought_tokens == THOUGHT.index("</think>") + len("</think>")


@pytest.mark.parametrize(
    ("inside", "text", "reasoning", "answer"),
    [
        (False, "<think>\nhm, 1 < 2\n</think>\n\nYes.", "hm, 1 < 2", "Yes."),
        (True, "hm\n\n</think>\nYes. </think> ", "hm", "Yes. </think> "),
        (False, "Yes, <think> is a tag", "", "Yes, <think> is a tag"),
        (False, " Yes", "", " Yes"),
        (True, "never ends </thin", "never ends </thin", ""),
        (False, "<thi", "", "<thi"),
        (False, " \n <think> a \n\n b \n</think> \n c \n", "a \n\n b", "c \n"),
        (False, " \n <b", "", " \n <b"),
        (False, " \n ", "", " \n "),
        (True, " a \n", "a \n", ""),
        (True, " a </thin </think>", "a </thin", ""),
        (True, " \n ", "", ""),
        (False, "<think></think>Yes", "", "Yes"),
    ],
)
def test_reasoning_does_not_depend_on_the_pieces(inside, text, reasoning, answer):
    for pieces in cuts(text, random.Random(2)):
        parser = ReasoningParser(starts_inside=inside)
        found = [parser.feed(piece) for piece in pieces] + [parser.finish()]
        assert ("".join(r for r, _ in found), "".join(a for _, a in found)) == (reasoning, answer)


TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}},
    },
    {"type": "function", "function": {"name": "time"}},
]
USER = [{"role": "user", "content": "Weather in Bern?"}]


@pytest.fixture(scope="module")
def serving():
    config = ServerConfig(port=0, log_requests=False, tool_call_parser="hermes", reasoning_parser="think")
    with Serving(config, llm=ScriptedLLM()) as found:
        yield found


@pytest.fixture
def client(serving):
    with openai.OpenAI(base_url=serving.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_the_client_gets_calls(serving, client, size):
    serving.llm.text, serving.llm.size = "<think>hm</think>I look.\n" + hermes(WEATHER, TIME), size
    whole = client.chat.completions.create(model="fastllm-demo", messages=USER, tools=TOOLS).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.reasoning_content == "hm" and whole.message.content.strip() == "I look."
    calls = whole.message.tool_calls
    assert [(c.function.name, c.function.arguments) for c in calls] == [(c.name, c.arguments) for c in (WEATHER, TIME)]
    assert len({call.id for call in calls}) == 2
    stream = client.chat.completions.create(model="fastllm-demo", messages=USER, tools=TOOLS, stream=True)
    content, found, reasons = "", [], []
    for chunk in stream:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        found += choice.delta.tool_calls or []
        reasons.append(choice.finish_reason)
    assert content == "I look." and reasons[-1] == "tool_calls"
    assert [(c.index, c.function.name, c.function.arguments) for c in found] == [
        (i, c.name, c.arguments) for i, c in enumerate((WEATHER, TIME))
    ]
    one = client.chat.completions.create(
        model="fastllm-demo", messages=USER, tools=TOOLS, parallel_tool_calls=False
    ).choices[0]
    assert len(one.message.tool_calls) == 1
    # The answer goes back with the result; the template sees arguments as an object.
    messages = [*USER, whole.message.model_dump(exclude_none=True), *(
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls
    )]  # fmt: skip
    serving.llm.text = "It is sunny."
    end = client.chat.completions.create(model="fastllm-demo", messages=messages, tools=TOOLS).choices[0]
    assert (end.finish_reason, end.message.content) == ("stop", "It is sunny.")
    seen, variables = serving.llm.prompts[-1]
    assert seen[1]["tool_calls"][0]["function"]["arguments"] == json.loads(WEATHER.arguments)
    assert variables["tools"][0]["function"]["name"] == "weather"


def test_without_tools_text_is_text(serving, client):
    serving.llm.text = hermes(TIME)
    for extra in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        got = client.chat.completions.create(model="fastllm-demo", messages=USER, **extra).choices[0]
        assert got.message.content == serving.llm.text and got.finish_reason == "stop"


def test_a_prompt_may_have_opened_the_think_tag(serving):
    serving.llm.text = "hm</think>Yes"
    body = {"messages": USER, "chat_template_kwargs": {"open_think": True}}
    message = serving.post("/v1/chat/completions", body)[1]["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_markers_of_thoughts_may_be_special_tokens(serving, monkeypatch, path):
    monkeypatch.setattr(serving.llm, "special", ("<think>", "</think>"))
    serving.llm.text = "<think>hm</think>Yes"
    answer = serving.post(path, {"messages": USER} if "chat" in path else {"input": "x"})[1]
    if "chat" in path:
        message = answer["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm", "Yes")
    else:
        assert [item["content"][0]["text"] for item in answer["output"]] == ["hm", "Yes"]


def test_counted_tokens_are_those_of_the_prompt(serving):
    tool = {"name": "weather", "input_schema": {"type": "object"}}
    for choice, is_there in ((None, True), ({"type": "auto"}, True), ({"type": "none"}, False)):
        body = {"messages": USER, "tools": [tool], "tool_choice": choice}
        assert serving.post("/v1/messages/count_tokens", body)[0] == 200
        assert ("tools" in serving.llm.prompts[-1][1]) is is_there


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tool_choice": "auto", "tools": None}, "tool_choice"),
        ({"tool_choice": "required", "tools": None}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tools": TOOLS * 129}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "description": "x" * 70_000}}]}, "tools[0]"),
    ],
)
def test_wrong_tools_are_refused(serving, changes, param):
    status, answer = serving.post("/v1/chat/completions", {"messages": USER, "tools": TOOLS, **changes})
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_model_without_tools_says_so(shared_server):
    status, answer = shared_server.post("/v1/chat/completions", {"messages": USER, "tools": TOOLS})
    assert (status, answer["error"]["param"]) == (400, "tools")
