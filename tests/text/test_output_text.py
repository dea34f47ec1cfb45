"""Text of a growing sequence: whole characters, equal to one decoding of all bytes; stop strings never overshot."""

import itertools

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fastllm
from fastllm import LLM, SamplingParams, _core
from fastllm.text.tokenizer import Tokenizer

# Tokens that cut characters everywhere: single bytes, halves of characters, pieces of stop strings, a special one.
TOKENS = [
    *(bytes([b]) for b in (*range(0x20, 0x30), 0x61, 0x62, 0x80, 0x9F, 0xA0, 0xC2, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98)),
    *(bytes([b]) for b in (0xC0, 0xC1, 0xED, 0xE0, 0xF4, 0xF5, 0xFF, 0xBF, 0x8F, 0x90)),
    "€".encode()[:2], "😀".encode()[:3], "😀".encode()[1:], "é".encode(), "€uro".encode(), "日本".encode()[:4],
    b"ab", b"aab", b"ba", b"abab", b" a", b"", b"\n", b"\x00", b"<|end|>",
]  # fmt: skip
SPECIAL = len(TOKENS) - 1
TABLE = _core.ByteTable(TOKENS, [int(i == SPECIAL) for i in range(len(TOKENS))])
IDS = st.lists(st.integers(0, len(TOKENS) - 1), max_size=24)


def pieces_of(ids, stop=(), *, table=TABLE, include_stop=False, skip_special=True, strip=False):
    """(pieces, the stop string that ended it or None); pushing goes on after the end, as a careless caller would."""
    output = _core.OutputText(
        table, list(stop), include_stop=include_stop, skip_special=skip_special, strip_first_space=strip
    )
    pieces, stopped_by = [], None
    for i in ids:
        piece = output.push(i)
        assert not (stopped_by is not None and piece.text), "text after the stop string"
        pieces.append(piece.text)
        if piece.stopped and stopped_by is None:
            stopped_by = stop[piece.stop_index]
    last = output.finish()
    pieces.append(last.text)
    if last.stopped and stopped_by is None:
        stopped_by = stop[last.stop_index]
    return pieces, stopped_by


def whole(ids, *, skip_special=True):
    kept = (TOKENS[i] for i in ids if not (skip_special and i == SPECIAL))
    return b"".join(kept).decode("utf-8", "replace")


def expected(text, stops):
    """By definition: the match that ends first; of those, the longest. -> (text before it, the stop string or None)"""
    for end in range(1, len(text) + 1):
        found = [s for s in stops if s and text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=400, deadline=None, derandomize=True)
@given(ids=IDS, skip_special=st.booleans())
def test_pieces_join_to_the_decoding_of_all_bytes(ids, skip_special):
    pieces, _ = pieces_of(ids, skip_special=skip_special)
    assert "".join(pieces) == whole(ids, skip_special=skip_special)
    assert TABLE.decode(ids, skip_special=skip_special) == whole(ids, skip_special=skip_special)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.binary(max_size=24), cuts=st.lists(st.integers(0, 24), max_size=6))
def test_any_bytes_cut_anywhere_are_what_python_decodes(data, cuts):
    borders = sorted({0, len(data), *(min(c, len(data)) for c in cuts)})
    tokens = [data[a:b] for a, b in itertools.pairwise(borders)]
    table = _core.ByteTable(tokens, [0] * len(tokens))
    pieces, _ = pieces_of(range(len(tokens)), table=table)
    assert "".join(pieces) == data.decode("utf-8", "replace")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=12))
def test_valid_text_is_held_back_for_at_most_the_rest_of_a_character(text):
    """After each byte, everything but an unfinished character is out: nobody waits longer than needed."""
    data = text.encode()
    table = _core.ByteTable([bytes([b]) for b in range(256)], [0] * 256)
    output = _core.OutputText(table, [], include_stop=False, skip_special=True)
    shown = ""
    for i, byte in enumerate(data):
        shown += output.push(byte).text
        assert shown == data[: i + 1].decode("utf-8", "ignore")
    assert output.finish().text == ""


PIECES = ["a", "ab", "aba", "abab", "bab", "aab", "€", "é", "😀", "�", "a�", "<|end|>", "ab€", "!!", "x"]
STOPS = st.lists(st.sampled_from([*PIECES, "b ", " !", "\n"]), max_size=4)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(ids=IDS, stops=STOPS, include_stop=st.booleans())
@example(ids=[], stops=["a"], include_stop=False)
@example(ids=[TOKENS.index(b"abab")], stops=["bab", "aba"], include_stop=False)
def test_stop_strings_end_the_text_at_the_earliest_match_however_it_is_cut(ids, stops, include_stop):
    pieces, stopped_by = pieces_of(ids, stops, include_stop=include_stop)
    before, stop = expected(whole(ids), stops)
    assert stopped_by == stop
    assert "".join(pieces) == before + (stop if include_stop and stop else "")
    if not include_stop:
        # At no time was a part of the stop string visible that had to be taken back.
        assert all(before.startswith("".join(pieces[: i + 1])) for i in range(len(pieces)))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=st.text(alphabet="ab€", max_size=16), stops=STOPS)
def test_held_back_text_is_only_the_beginning_of_a_stop_string(text, stops):
    """Character by character: what is not shown yet is the longest end of the text that begins a stop string."""
    matcher = _core.StopMatcher(stops, keeps_stop=False)
    shown = b""
    for i, character in enumerate(text):
        out, stop = matcher.feed(character.encode())
        shown += out
        if stop >= 0:
            assert (shown.decode(), stops[stop]) == expected(text, stops)
            return
        read = text[: i + 1]
        begins = [k for k in range(1, len(read) + 1) if any(s.startswith(read[-k:]) for s in stops)]
        assert shown.decode() == read[: len(read) - max(begins, default=0)]
    assert shown + matcher.finish() == text.encode()


def test_equal_stop_strings_are_reported_as_the_first_and_empty_ones_match_nothing():
    matcher = _core.StopMatcher(["", "ab", "ab"], keeps_stop=False)
    assert matcher.feed(b"xaby") == (b"x", 1)
    assert matcher.feed(b"ab") == (b"", 1)
    assert matcher.finish() == b""


def test_a_long_self_similar_stop_string_costs_no_more_than_the_text():
    """1 MB of the letters that a kilobyte of stop string begins with: a naive search would take 1e9 steps a string."""
    matcher = _core.StopMatcher(["a" * 1023 + "b"] * 16, keeps_stop=False)
    out, stop = matcher.feed(b"a" * (1 << 20))
    assert stop == -1 and len(out) == (1 << 20) - 1023
    assert len(matcher.finish()) == 1023


@pytest.mark.parametrize("strip", [False, True])
def test_only_the_very_first_space_is_stripped(strip):
    ids = [TOKENS.index(t) for t in (b"", b" a", b" a", b" ")]
    for given_ids in (ids, [SPECIAL, *ids]):
        pieces, _ = pieces_of(given_ids, strip=strip)
        assert "".join(pieces) == (" a a "[1:] if strip else " a a ")
    two = [TOKENS.index(b" "), TOKENS.index(b" "), TOKENS.index(b"ab")]
    assert "".join(pieces_of(two, strip=strip)[0]) == ("  ab"[1:] if strip else "  ab")


def test_ids_outside_the_table_have_no_text():
    assert "".join(pieces_of([-1, len(TOKENS), 2**31 - 1, TOKENS.index(b"ab")])[0]) == "ab"
    assert (TABLE.bytes(-5), TABLE.is_special(10**6)) == (b"", False)


def test_a_table_of_unequal_lists_or_none_is_refused():
    with pytest.raises(fastllm.InvalidRequestError, match="flags"):
        _core.ByteTable([b"a"], [0, 1])
    with pytest.raises(fastllm.InvalidRequestError, match="byte_table"):
        _core.OutputText(None, [], include_stop=False, skip_special=True)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama3", "demo"])
def test_streamed_pieces_join_to_the_full_decoding_by_transformers(name, folder):
    ours = Tokenizer.load(folder(name))
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder(name))

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(ids=st.lists(st.integers(0, len(ours.byte_table) - 1), max_size=16), skip=st.booleans())
    def check(ids, skip):
        pieces, _ = pieces_of(ids, table=ours.byte_table, skip_special=skip)
        assert "".join(pieces) == oracle.decode(ids, skip_special_tokens=skip)

    check()


@pytest.fixture(scope="module")
def llm():
    with LLM(max_model_len=256, max_num_seqs=8, kv_cache_tokens=2048) as engine:
        yield engine


def test_the_engine_stops_where_the_definition_says(llm):
    """Greedy text of the model, cut at strings found in it, in pairs that overlap or begin alike."""
    prompt = "The os module"
    free = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=48, ignore_eos=True))[0].outputs[0].text
    cases = []
    for at in range(2, 30, 3):
        cases.append([free[at : at + 5]])
        cases.append([free[at + 1 : at + 9], free[at : at + 4], "zzzz"])
        cases.append([free[at : at + 6] + "\x00", free[at + 3 : at + 5]])
    for include in (False, True):
        params = [
            SamplingParams(
                temperature=0, max_tokens=48, ignore_eos=True, stop=stops, include_stop_str_in_output=include
            )
            for stops in cases
        ]
        for stops, output in zip(cases, llm.generate([prompt] * len(cases), params), strict=True):
            before, stop = expected(free, stops)
            done = output.outputs[0]
            assert stop is not None
            assert done.text == before + (stop if include else "")
            assert (done.finish_reason, done.stop_reason) == ("stop", stop)


def test_held_back_text_comes_out_when_the_length_ends_the_sequence(llm):
    """A stop string whose beginning ends the text: the beginning is shown in the end, in stream and result."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    free = llm.generate("The os module", params)[0].outputs[0].text
    held = params.replace(stop=free[-6:] + "\x00")
    assert llm.generate("The os module", held)[0].outputs[0].text == free
    assert "".join(llm.stream("The os module", held)) == free


def test_special_tokens_are_left_out_unless_asked_for(llm):
    end = llm.encode("<|im_end|>")[0]
    forced = SamplingParams(temperature=0, max_tokens=2, allowed_token_ids=[end], ignore_eos=True)
    assert llm.generate("The", forced)[0].outputs[0].text == ""
    assert llm.generate("The", forced.replace(skip_special_tokens=False))[0].outputs[0].text == "<|im_end|>" * 2
