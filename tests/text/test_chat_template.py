"""Chat templates: what transformers renders, we render; what would take all time, all memory or Python, we refuse."""

import enum
import json

import jinja2
import pytest
import template_styles
from transformers.utils.chat_template_utils import render_jinja_template

import fastllm
from fastllm import LLM, CheckpointError, InvalidRequestError, SamplingParams
from fastllm.text.chat_template import ChatTemplate, load_chat_template

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "Hello"}]


def theirs(source, messages, *, tools=None, add_generation_prompt=True, **variables):
    """transformers' text, or the error that the template raised."""
    # apply_chat_template does this to the messages before it renders.
    messages = [{k: v for k, v in m.items() if v is not None} for m in messages]
    try:
        return render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            **TOKENS,
            **variables,
        )[0][0]
    except (jinja2.TemplateError, TypeError, AttributeError, KeyError) as error:
        return error


@pytest.mark.parametrize("conversation", template_styles.CONVERSATIONS)
@pytest.mark.parametrize("style", template_styles.STYLES)
def test_a_conversation_is_rendered_as_transformers_renders_it(style, conversation):
    source, messages = template_styles.STYLES[style], template_styles.CONVERSATIONS[conversation]
    template = ChatTemplate(source, TOKENS)
    for tools in (None, template_styles.TOOLS):
        for prompt in (True, False):
            variables = {"enable_thinking": False} if prompt else {"date_string": "1 Jan 2030"}
            expected = theirs(source, messages, tools=tools, add_generation_prompt=prompt, **variables)

            def render(prompt=prompt, tools=tools, variables=variables):
                return template.render(messages, add_generation_prompt=prompt, variables={**variables, "tools": tools})

            if isinstance(expected, Exception):
                with pytest.raises(InvalidRequestError):
                    render()
            else:
                assert render() == expected


def test_most_styles_render_most_conversations():
    """Of the comparison above, most compare texts and not errors."""
    rendered = [
        not isinstance(theirs(source, messages, tools=template_styles.TOOLS), Exception)
        for source in template_styles.STYLES.values()
        for messages in template_styles.CONVERSATIONS.values()
    ]
    assert sum(rendered) > 0.6 * len(rendered)


def test_the_templates_own_message_reaches_the_caller():
    template = ChatTemplate(template_styles.LLAMA2, TOKENS)
    with pytest.raises(InvalidRequestError, match="Roles must alternate"):
        template.render(template_styles.CONVERSATIONS["wrong_order"])


def test_a_syntax_error_names_its_line():
    with pytest.raises(InvalidRequestError, match="line 3"):
        ChatTemplate("a\n\n{% if %}")


# Work and memory.

LOOP = "{% for i in range(100000) %}"
END = "{% endfor %}"
MEGA = "{% set x = 'a' * 1000000 %}{% set y = 'a' * 1000000 %}"
DOUBLED = "{% set ns = namespace(v=VALUE) %}{% for i in range(64) %}{% set ns.v = PAIR %}{% endfor %}"
LISTS = DOUBLED.replace("VALUE", "[1]").replace("PAIR", "[ns.v, ns.v]")
TUPLES = DOUBLED.replace("VALUE", "(1,)").replace("PAIR", "(ns.v, ns.v)")
TOO_MUCH = {
    # time
    "nested_loops": LOOP * 3 + END * 3,
    "long_range": "{% for i in range(10 ** 15) %}{% endfor %}",
    "loops_1e15": LOOP * 3 + "x" + END * 3,
    "recursive_loop": "{% for i in range(100000) recursive %}{{ loop(range(100000)) }}{% endfor %}",
    "large_body": LOOP + "{% set z = 1 %}" * 1500 + END,
    "large_texts_compared": MEGA + LOOP + "{% set z = x == y %}" + END,
    "large_texts_searched": MEGA + LOOP + "{% set z = (y ~ 'b') in x %}" + END,
    "test_of_large_texts": MEGA + LOOP + "{% if x is eq y %}{% endif %}" + END,
    "large_list_made_again": LOOP + "{% set z = range(100000)|list %}" + END,
    "filter_keeps_nothing": "{% set r = range(100000)|list %}" + LOOP + "{% set z = r|select('none')|list %}" + END,
    "quadratic_strip": "{{ ('a' * 1000000).strip('b' * 1000000 ~ 'a') }}",
    "quadratic_rfind": "{{ ('a' * 1000000).rfind('b' ~ 'a' * 500000) }}",
    "filter_skips_all": "{% for a in range(100000) if a < 0 %}{% endfor %}" * 10,
    # memory
    "repeated_text": "{{ 'a' * 10000000000 }}",
    "repeated_text_in_a_constant": "{% set x = 'a' * 10000000000 %}",
    "repeated_list": "{{ [0] * 10000000000 }}",
    "output": "{{ 'a' * 1000000 }}" * 10,
    "concatenation": MEGA + "{{ x ~ x ~ x ~ x ~ x }}",
    "growing_text": "{% set ns = namespace(s='a' * 1000000) %}" + LOOP + "{% set ns.s = ns.s ~ 'a' %}" + END,
    "sum_of_texts": "{% set ns = namespace(s='a') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "collected_block": "{% set y %}" + LOOP + "x" * 100000 + END + "{% endset %}",
    "collected_texts": MEGA + "{% set y %}" + LOOP + "{{ x }}" + END + "{% endset %}",
    "printed_nested_lists": LISTS + "{{ ns.v }}",
    "concatenated_nested_lists": LISTS + "{{ ns.v ~ '' }}",
    "json_of_nested_lists": LISTS + "{{ ns.v|tojson }}",
    "compared_nested_lists": LISTS + "{{ ns.v == [ns.v] }}",
    "formatted_nested_lists": LISTS + "{{ '%s' % (ns.v,) }}",
    "joined_nested_lists": LISTS + "{{ ''.join([ns.v]) }}",
    "nested_tuple_as_key": TUPLES + "{{ {ns.v: 1} }}",
    "nested_tuple_looked_up": TUPLES + "{{ {}[ns.v] }}",
    "nested_tuple_got": TUPLES + "{{ {}.get(ns.v) }}",
    "nested_tuple_in_dict": TUPLES + "{{ ns.v in {} }}",
    "namespace_in_itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "format_width": "{{ '%9999999999d' % 1 }}",
    "format_width_of_a_name": "{{ '%(a)9999999999d' % {'a': 1} }}",
    "format_width_as_argument": "{{ '%*d' % (9999999999, 1) }}",
    "format_filter_width": "{{ '%9999999999d'|format(1) }}",
    "format_method_width": "{{ '{:>9999999999}'.format(1) }}",
    "format_method_nested_width": "{{ '{0:{1}}'.format(1, 9999999999) }}",
    "many_format_widths": "{{ ('%999d' * 200000) % 1 }}",
    "padding": "{{ 'a'.center(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "indent_filter": "{{ ('\\n' * 1000000)|indent(width=100000) }}",
    "replace_filter": "{{ ('a' * 1000000)|replace('a', new='b' * 1000000) }}",
    "replace_method": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replace_nothing": "{{ ('a' * 1000000).replace('', 'b' * 1000) }}",
    "join_method": "{{ ('a' * 1000000).join(range(100000)|map('string')) }}",
    "escapes": "{{ ('&' * 1000000)|e }}",
    "power": "{{ 2 ** 1000000000 }}",
    "power_tower": "{{ 9 ** 9 ** 9 ** 9 }}",
    "squares": DOUBLED.replace("VALUE", "3").replace("PAIR", "ns.v * ns.v"),
    "rounding": "{{ 5|round(-1000000000) }}",
    "bytes_of_a_number": "{{ (5).to_bytes(10000000000, 'big') }}",
    "sum_of_lists": "{{ ([[0] * 1000] * 100000)|sum(start=[]) }}",
    "json_indent": "{{ [1]|tojson(indent=1000000000) }}",
    "batch_fill": "{{ [1]|batch(10000000000, 0)|list }}",
    # depth
    "macro_calls_itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro_calls_back": "{% macro f(g) %}{{ g(f) }}{% endmacro %}{% macro h(f) %}{{ f(h) }}{% endmacro %}{{ f(h) }}",
    "block_calls_itself": "{% block b %}{{ self.b() }}{% endblock %}",
    "parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "lists": "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "ifs": "{% if a %}" * 20000 + "{% endif %}" * 20000,
    "nots": "{{ " + "not " * 50000 + "1 }}",
    "minus": "{{ " + "-" * 200000 + "1 }}",
    "sums": "{{ 1" + "+1" * 60000 + " }}",
    "conditions": "{{ 1" + " if 1 else 1" * 20000 + " }}",
    "filters": "{{ a" + "|d" * 100000 + " }}",
    "attributes": "{{ a" + ".b" * 100000 + " }}",
    # size of the source
    "characters": "x" * (300 << 10),
    "tokens": "{{ a }}" * 50000,
    "digits": "{{ " + "9" * 200000 + " }}",
    "quotes": "{{ '" + "'" * 200000,
    "unclosed": "{% raw %}" * 25000,
}  # fmt: skip


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", TOO_MUCH)
def test_a_template_that_wants_too_much_is_refused(kind):
    with pytest.raises(InvalidRequestError, match="chat template"):
        ChatTemplate(TOO_MUCH[kind]).render(HELLO)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["nested_loops", "repeated_text", "parentheses", "tokens"])
def test_such_a_template_in_a_folder_is_refused_at_loading_or_rendering(kind, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(TOO_MUCH[kind])
    with pytest.raises((CheckpointError, InvalidRequestError)):
        load_chat_template(tmp_path).render(HELLO)


def test_a_long_conversation_is_no_reason_to_refuse():
    """200,000 tokens of text in 1,000 messages, and one message of 1 MB: with room to spare in every budget."""
    many = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(1001)]
    large = [{"role": "user", "content": "a" * (1 << 20)}]
    for style in ("chatml", "llama2", "llama3", "qwen3", "gemma", "phi3"):
        template = ChatTemplate(template_styles.STYLES[style], TOKENS)
        for messages in (many, large):
            assert template.render(messages) == theirs(template.source, messages)


# No way out of the sandbox.

ESCAPES = [
    "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|map(attribute='__mro__')|list }}",
    "{{ (messages|map(attribute='__class__')|list)[0].__mro__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ range.__self__.x }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__['os'] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}{{ self._TemplateReference__context.x }}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}{{ m._environment.x }}",
    "{% for x in [1] %}{{ loop.__class__.x }}{% endfor %}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{0[0].__class__}'.format(messages) }}",
    "{{ dict.mro() }}",
    "{{ dict.fromkeys([1], 2) }}",
    "{{ lipsum.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.sort() }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{{ environment.x.y }}",
    "{{ turns([], 0) }}",
    "{{ count(-1000000000) }}",
    "{{ weigh(1) }}",
    "{{ ().__reduce__() }}",
    "{% include 'x' %}",
    "{% import 'x' as x %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_reaches_nothing_of_python(source):
    try:
        shown = ChatTemplate(source).render(HELLO)
    except InvalidRequestError:
        return
    assert shown == ""  # what is not available is undefined, and prints as nothing


def test_rendering_leaves_the_callers_data_alone():
    messages = [{"role": "user", "content": ["a"], "extra": None}]
    variables = {"documents": [{"title": "t"}]}
    before = json.dumps([messages, variables])
    ChatTemplate("{% set messages = [] %}{{ documents }}").render(messages, variables=variables)
    assert json.dumps([messages, variables]) == before


# What comes with a conversation is data.


@pytest.mark.parametrize(
    "name",
    ["messages", "range", "raise_exception", "namespace", "strftime_now", "_x", "__class__", "a b", "", "x-y", 5],
)
def test_a_variable_cannot_take_a_name_that_the_template_relies_on(name):
    with pytest.raises(InvalidRequestError, match="name of a variable"):
        ChatTemplate("{{ messages }}").render(HELLO, variables={name: "x"})


@pytest.mark.parametrize("value", [print, object(), {1, 2}, b"bytes", iter([1]), {"a": [print]}, {(1, 2): 3}, 1j])
def test_a_variable_that_is_not_data_is_refused_by_name(value):
    with pytest.raises(InvalidRequestError, match="thing"):
        ChatTemplate("{{ thing }}").render(HELLO, variables={"thing": value})


def test_subclasses_of_plain_types_lose_their_methods():
    class Text(str):
        def danger(self):
            raise AssertionError("called")

    class Number(enum.IntEnum):
        ONE = 1

    template = ChatTemplate("{{ t.danger is defined }} {{ t }} {{ n.name is defined }} {{ n }}")
    assert template.render(HELLO, variables={"t": Text("x"), "n": Number.ONE}) == "False x False 1"


def test_data_that_contains_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(InvalidRequestError, match="deep"):
        ChatTemplate("{{ thing }}").render(HELLO, variables={"thing": loop})


@pytest.mark.parametrize(
    "messages", [None, "text", [], {}, {"role": "user"}, ["text"], [{"content": "x"}], [{"role": 5}], [HELLO]]
)
def test_what_is_not_a_conversation_is_refused(messages):
    with pytest.raises(InvalidRequestError, match="messages"):
        ChatTemplate("x").render(messages)


def test_text_of_a_message_is_never_read_as_a_template():
    evil = [{"role": "user", "content": "{{ 7 * 7 }}{% for i in range(9) %}x{% endfor %}"}]
    assert "{{ 7 * 7 }}{% for" in ChatTemplate(template_styles.CHATML).render(evil)


def test_a_template_cannot_be_sent_along(llm):
    """`chat_template` is a variable like any other: the model's own template is what renders."""
    params = SamplingParams(temperature=0, max_tokens=4)
    plain = llm.chat(HELLO, params)[0]
    sent = llm.chat(HELLO, params, chat_template_kwargs={"chat_template": "{{ 1 }}"})[0]
    assert sent.prompt_token_ids == plain.prompt_token_ids
    for bad in ({"messages": []}, {"_x": 1}, {"f": print}):
        with pytest.raises(InvalidRequestError):
            llm.chat(HELLO, params, chat_template_kwargs=bad)
    with pytest.raises(TypeError):
        llm.chat(HELLO, params, chat_template="{{ 1 }}")


@pytest.fixture(scope="module")
def llm():
    with LLM(max_model_len=256, max_num_seqs=4, kv_cache_tokens=1024) as engine:
        yield engine


def test_chat_tokens_are_those_of_the_rendered_text(llm):
    out = llm.chat(HELLO, SamplingParams(max_tokens=1))[0]
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert llm.decode(out.prompt_token_ids, skip_special_tokens=False) == text
    without = llm.chat(HELLO, SamplingParams(max_tokens=1), add_generation_prompt=False)[0]
    assert out.prompt_token_ids[: len(without.prompt_token_ids)] == without.prompt_token_ids
    many = llm.chat([HELLO, HELLO[:1]], SamplingParams(max_tokens=1))
    assert [o.prompt_token_ids for o in many] == [out.prompt_token_ids] * 2


# Where a template lies.


def write(folder, config=None, **files):
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return load_chat_template(folder)


def test_the_file_goes_before_the_config(tmp_path):
    config = {"chat_template": "config", "bos_token": {"content": "<b>"}, "pad_token": "<p>"}
    assert write(tmp_path, config).render(HELLO) == "config"
    assert write(tmp_path, config, chat_template__json='{"chat_template": "json"}').render(HELLO) == "json"
    jinja = "file {{ bos_token }} {{ pad_token }} {{ eos_token is defined }}"
    assert write(tmp_path, config, chat_template__jinja=jinja).render(HELLO) == "file <b> <p> False"


@pytest.mark.parametrize("form", ["list", "dict"])
def test_of_several_named_templates_the_one_for_tools_is_used_with_tools(form, tmp_path):
    named = {"default": "plain", "tool_use": "tools {{ tools|length }}", "rag": "{{"}
    config = {"chat_template": named if form == "dict" else [{"name": n, "template": t} for n, t in named.items()]}
    template = write(tmp_path, config)
    assert template.render(HELLO) == "plain"
    assert template.render(HELLO, variables={"tools": template_styles.TOOLS}) == "tools 1"


def test_a_folder_without_a_template_has_none(tmp_path):
    assert write(tmp_path) is None
    assert write(tmp_path, {"chat_template": None}) is None


@pytest.mark.parametrize(
    "value", [5, {"default": 5}, "{% if %}", "{% include 'x' %}", [{"name": "default", "template": 1}]]
)
def test_a_template_that_is_no_template_makes_a_bad_checkpoint(value, tmp_path):
    with pytest.raises(CheckpointError):
        write(tmp_path, {"chat_template": value})


def test_a_template_file_that_is_no_text_makes_a_bad_checkpoint(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="UTF-8"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(CheckpointError, match="regular"):
        load_chat_template(tmp_path)


def test_errors_are_of_the_package():
    assert issubclass(fastllm.InvalidRequestError, ValueError)
