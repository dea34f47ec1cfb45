"""Chat templates in the styles of published models: what they do with roles, tools, spaces, dates and errors."""

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)

LLAMA2 = """{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}
{% set system = messages[0]['content'] %}
{% else %}
{% set rest = messages %}
{% set system = false %}
{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
{% endif %}
{% if loop.index0 == 0 and system != false %}
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}
{% set content = message['content'] %}
{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}
{% endif %}
{% endfor %}
"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- 'Answer with {"name": name, "parameters": values} to call one of these:\\n\\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model takes one call of a tool at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}" }}{{- "<|eot|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start|>ipython<|end|>\\n\\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}
"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and
           not(message.content.startswith('<response>') and message.content.endswith('</response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<response>\\n' }}{{- content }}{{- '\\n</response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" and message.content is defined %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message.tool_calls is defined %}
        {{- "[TOOL_CALLS] " ~ (message.tool_calls | map(attribute="function") | map(attribute="name") | join("; ")) }}
        {{- eos_token }}
    {%- elif message["role"] in ["tool", "tool_results"] %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("Only user, assistant, tool roles are supported, got " + message["role"]) }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}
        {%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}
"""

PHI3 = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}
{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}
{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}
{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

# Macros that call macros, default values, keyword arguments, recursion over a schema, call blocks, filter blocks.
MACROS = """{%- macro render_type(spec, depth=0) -%}
    {%- if spec.type == "object" -%}
        {{- "{ " }}
        {%- for name, sub in (spec.properties or {}) | dictsort -%}
            {{- name }}{{ "" if name in (spec.required or []) else "?" }}: {{ render_type(sub, depth=depth + 1) }}
            {%- if not loop.last %}, {% endif -%}
        {%- endfor -%}
        {{- " }" }}
    {%- elif spec.type == "array" -%}
        {{- render_type(spec["items"], depth + 1) ~ "[]" }}
    {%- elif spec.enum is defined -%}
        {{- spec.enum | map("tojson") | join(" | ") }}
    {%- else -%}
        {{- spec.type | default("any") | upper }}
    {%- endif -%}
{%- endmacro -%}
{%- macro wrapped(title) -%}<{{ title }}>{{ caller() }}</{{ title }}>{%- endmacro -%}
{%- for tool in tools or [] %}
{{ loop.index }}/{{ loop.length }} {{ tool.function.name }}({{ render_type(tool.function.parameters) }})
{%- endfor %}
{% call wrapped("chat") %}{% for m in messages %}{{ m.role[:1] | upper }}{{ loop.cycle("a", "b") }} {% endfor %}
{%- endcall %}
{% filter upper %}{{ messages | map(attribute="role") | unique | sort | join(",") }}{% endfilter %}
{% set block %}{{ messages[-1].content }}!{% endset %}{{ block | length }}
{%- for group in messages | groupby("role") %} {{ group.grouper }}={{ group.list | length }}{% endfor %}
{{- "%s and %05.1f%%" % ("x", 2.5) }} {{ "{} {name}".format(1, name="n") }} {{ "%d" | format(7) }}
"""

GENERATION = """{% for message in messages %}{% if message.role == 'assistant' %}
{% generation %}{% set inner = 1 %}{{ message.content }}{% endgeneration %}
{{ 'visible' if inner is defined else 'hidden' }}
{% else %}{{ message.role }}: {{ message.content }}
{% endif %}{% if loop.index > 4 %}{% break %}{% endif %}
{% if message.role == 'system' %}{% continue %}{% endif %}.{% endfor %}"""

# Undefined names, tests, slices, joins of generators, numbers, conditions, whitespace control, comments, raw.
CORNERS = """{# a comment #}{% raw %}{{ not this }}{% endraw %}
{{ missing }}|{{ missing is defined }}|{{ bos_token is defined }}|{{ pad_token is defined }}|{{ documents is none }}
{{ [1, 2, 3][-2:] }} {{ "abcdef"[::2] }} {{ (1, "a", none, true) }} {{ {"k": [1.5, "é"]} }}
{{ ", ".join(messages | map(attribute="role")) }} {{ messages | map("length") | sum }}
{{ messages | tojson(ensure_ascii=true, sort_keys=true) }} {{ "é\\u2028<&>'" | tojson }}
{{ {"b": 1, "a": [1, 2]} | tojson(separators=(",", ":")) }}
{{ 7 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 1.0 }} {{ 3 * "ab" }} {{ [0] * 3 }} {{ 1 ~ "x" ~ none ~ [1] }}
{{ "a" in "cat" and "x" not in ["y"] }} {{ 1 < 2 <= 2 }} {{ "yes" if messages else "no" }}
{{ messages[0].nothing | default("d") }}
{% for a, b in [[1, 2], [3, 4]] if a > 1 %}{{ a }}{{ b }}{% else %}none{% endfor %}
{% for x in [] %}{% else %}empty{% endfor %}
{%- set ns = namespace(found=false, items=[]) %}
{% for m in messages %}{% set ns.items = ns.items + [m.role] %}{% endfor %}{{ ns.items }} {{ ns.found }}
    {% if true %}
    indented
    {% endif %}
{{ "  x " | trim }}|{{ "a-b".split("-") }}|{{ "x" | replace("x", "y") }}|{{ "two\\nlines" | indent(2) }}
{{ [3, 1, 2] | sort | list }} {{ messages | selectattr("role", "in", ["user"]) | list | length }}
{{ messages | rejectattr("role", "eq", "user") | map(attribute="role") | list }} {{ 2.345 | round(1) }}
{{ ["a", "b"] | first }} {{ "abc" | last }} {{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ 3.7 | int }} {{ "5" | int + 1 }}
{{ strftime_now("%Y") | length }} {{ range(3) | list }} {{ dict(a=1).items() | list }} {{ "%s" % "v" }} {{ "<b>" | e }}
"""

STYLES = {name.lower(): value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Weather of a "city" – now',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "unit": {"enum": ["°C", "°F"]},
                    "nested": {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]},
                },
                "required": ["city"],
            },
        },
    }
]
_CALL = {
    "id": "c0",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": [1]}},
}

CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi\n"}],
    "turns": [
        {"role": "user", "content": "Where is Köln?"},
        {"role": "assistant", "content": "<think>\nmaps\n</think>\n\nGermany."},
        {"role": "user", "content": "日本は？ 👩‍👩‍👧‍👦 {{ messages }} {% x %} <|im_end|>"},
    ],
    "answer_last": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "two  "}],
    "wrong_order": [{"role": "assistant", "content": "I begin"}, {"role": "assistant", "content": "again"}],
    "reasoning": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning": "because", "tool_calls": None},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [_CALL]},
        {"role": "tool", "content": '{"t": 21}'},
        {"role": "tool", "content": "second"},
        {"role": "assistant", "content": "21 °C"},
        {"role": "user", "content": "Thanks"},
    ],
    "two_calls": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL, _CALL]},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "image"}]}],
    "empty": [{"role": "user", "content": ""}],
}
