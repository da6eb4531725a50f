"""Writes tests/fixtures/templates.json: what Jinja2, set up as transformers sets it up for chat templates, renders.

Attune's unit tests (crates/attune-model/src/chat_template_tests.rs) render the same templates. `null` stands for a
template that Jinja2 refuses.

    python make_templates.py
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

MESSAGES = [
    {"role": "user", "content": "Grüße <b> & 'x' \"y\"\n"},
    {
        "role": "assistant",
        "content": "<think>\na – b\n</think>\n\nYes.",
        "tool_calls": [{"function": {"name": "f", "arguments": {"Zahl": 1, "b": [1.0, None, True], "a": "é"}}}],
    },
    {"role": "tool", "content": '{"temp": 12}', "score": 1e-05},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "It's \"warm\" – says\nshe",
            "parameters": {
                "type": "object",
                "properties": {
                    "items": {"type": "array", "items": {"type": "number", "multipleOf": 1e-05, "maximum": 1e16}},
                    "strict": {"type": "boolean", "default": False, "enum": [None, True, -0.0, 0.1, 100, 1.5e300]},
                    "big": {"type": "integer", "maximum": 18446744073709551615, "minimum": -9223372036854775808},
                },
                "required": [],
            },
        },
    }
]

# The text of a conversation or of a tool: where templates print, join and serialize values.
PRINTING = r"""
{{ tools }}
{{ tools[0] }}
{{ tools[0] | string }}
{{ tools[0].function ~ '|' ~ none ~ true ~ 1.0 ~ 2 ~ [] ~ missing }}
{{ "tool: " + tools[0].function.parameters | string }}
{{ tools | join('; ') }}
{{ messages[1].tool_calls[0].function.arguments }}
{{ messages[1].tool_calls[0].function.arguments.b | join(',') }}
{{ messages[2].score }} {{ messages[2].score | string }}
{{ none }} {{ true }} {{ false }} {{ missing }} {{ 1.0 }} {{ 12 }} {{ -0.0 }}
{{ 1e16 }} {{ 1e15 }} {{ 0.0001 }} {{ 0.00001 }} {{ 123456789012345680.0 }} {{ 1.5e300 }} {{ 5e-324 }} {{ 0.1 + 0.2 }}
{{ ["a'b", 'a"b', 'a\'"b', '\n\t\\', 'é\u200b😀\x00'] }}
{{ ['́', 'a\xa0b', '\u2028', '\x7f'] }}
{{ [missing, none, 'x', 1.5, {'k': (1, 2)}] | length }}
{{ [] }} {{ {} }} {{ [[]] }} {{ {'a': {'b': [1, 'x', none, true, 1e-05]}} }}
{{ messages[0].items() | list }}
{{ messages[0] | items | list }}
{{ messages[1:] }}
{{ [1] + [2] }} {{ [1, 2, 3][:2] }}
{{ 'a' ~ 1e-05 | string }}
{{ (messages[0].content ~ tools) | length }}
"""

JSON = r"""
{{ tools | tojson }}
{{ tools[0] | tojson(indent=2) }}
{{ tools[0] | tojson(indent=4, ensure_ascii=True) }}
{{ tools | tojson(separators=(',', ':')) }}
{{ tools | tojson(sort_keys=True) }}
{{ tools | tojson(True) }}
{{ tools | tojson(false, 2) }}
{{ tools | tojson(indent=none) }}
{{ tools | tojson(indent=0) }}
{{ [1, [2, {}], []] | tojson(indent='--') }}
{{ {'b': 1, 'a': {'d': 2, 'c': [3]}} | tojson(sort_keys=true, separators=(',', ':'), indent=1) }}
{{ messages[1].tool_calls | tojson }}
{{ messages | map('tojson') | join('|') }}
{{ messages | map('tojson', indent=1) | join('|') }}
{{ 'é😀\x7f\x1f/<&>\'' | tojson }} {{ 'é😀\x7f\x1f/<' | tojson(ensure_ascii=True) }}
{{ '"\\\n\r\t\b\f' | tojson }}
{{ 1.0 | tojson }} {{ 1e22 | tojson }} {{ 1e16 | tojson }} {{ 1e-7 | tojson }} {{ 'nan' | float | tojson }} {{ '-inf' | float | tojson }}
{{ none | tojson }} {{ true | tojson }} {{ '' | tojson }} {{ {} | tojson }} {{ [] | tojson(indent=2) }}
{{ {1: 2, none: 3, 1.5: 1} | tojson }}
{{ missing | tojson }}
{{ {'a': missing} | tojson }}
{{ tools | tojson(colour=2) }}
"""

NUMBERS = r"""
{{ messages[2].content | int }} {{ messages[2].content | float }}
{{ 'a' | int(7) }} {{ 'a' | int(default=3) }} {{ 'a' | float(1.5) }} {{ 'a' | float(default=2) }} {{ 'a' | int(none) }}
{{ '42.7' | int }} {{ ' 12 ' | int }} {{ '1_000' | int }} {{ '_1' | int }} {{ '1__0' | int }} {{ '-5' | int }} {{ '+5' | int }} {{ '--5' | int }}
{{ 'inf' | int }} {{ 'nan' | int }} {{ '1e3' | int }} {{ '' | int }} {{ '  ' | float }} {{ '0x1f' | int }}
{{ '0x1f' | int(base=16) }} {{ '1f' | int(0, 16) }} {{ '0b101' | int(base=2) }} {{ '0o17' | int(0, 8) }} {{ '0x1f' | int(base=0) }} {{ '017' | int(5, 0) }} {{ 'zz' | int(base=36) }} {{ 'ff' | int(base=10) }}
{{ 'inf' | float }} {{ '-Infinity' | float }} {{ 'NaN' | float }} {{ '1e400' | float }} {{ '.5' | float }} {{ '5.' | float }} {{ '1_0.5' | float }} {{ '1e5' | float }} {{ 'e5' | float }} {{ '.' | float }} {{ '0x10' | float }}
{{ true | int }} {{ false | float }} {{ none | int }} {{ none | float }} {{ [] | int }} {{ {} | float }} {{ 3.99 | int }} {{ -3.99 | int }} {{ 3 | float }}
{{ '123456789012345678901234567890' | int }} {{ 12345678901234567890 }}
{{ missing | int }}
{{ missing | float }}
{{ 2 | round }} {{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.19 | round(1, method='floor') }} {{ 1234.5678 | round(2) }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 2 ** 3 }} {{ -3 | abs }} {{ 1 + 1.5 }}
{{ [1, 2.5] | sum }} {{ [] | sum }} {{ [{'n': 1}, {'n': 2}] | sum(attribute='n') }} {{ [1] | sum(start=5) }}
{{ [3, 1, 2] | max }} {{ ['b', 'A'] | min }} {{ [] | max }}
"""

KINDS = r"""
{{ none is iterable }} {{ 1 is iterable }} {{ 1.5 is iterable }} {{ true is iterable }} {{ '' is iterable }} {{ [] is iterable }} {{ {} is iterable }} {{ missing is iterable }} {{ tools is iterable }} {{ range(2) is iterable }} {{ messages[1:] is iterable }}
{{ none is sequence }} {{ 1 is sequence }} {{ 'x' is sequence }} {{ [] is sequence }} {{ {} is sequence }} {{ missing is sequence }} {{ messages is sequence }} {{ (messages + messages) is sequence }}
{{ none is mapping }} {{ {} is mapping }} {{ [] is mapping }} {{ messages[0] is mapping }} {{ 'x' is mapping }} {{ missing is mapping }}
{{ none is string }} {{ 'x' is string }} {{ 1 is string }} {{ [] is string }} {{ messages[0].content is string }}
{{ true is number }} {{ 1 is number }} {{ 1.5 is number }} {{ '1' is number }} {{ none is number }}
{{ true is integer }} {{ 1 is integer }} {{ 1.0 is integer }} {{ 1.0 is float }} {{ 1 is float }} {{ true is boolean }} {{ 0 is boolean }} {{ none is boolean }} {{ 1 is true }} {{ true is true }} {{ false is false }}
{{ none is none }} {{ missing is none }} {{ missing is defined }} {{ none is defined }} {{ missing is undefined }} {{ messages[0].missing is defined }} {{ none.x is defined }} {{ 'x'.y is defined }}
{{ 'abc' is lower }} {{ 'aBc' is lower }} {{ 'a1' is lower }} {{ '1' is lower }} {{ 'A1' is upper }} {{ '' is upper }}
{{ 1 is odd }} {{ 2 is even }} {{ 4 is divisibleby 2 }} {{ 1 is eq 1 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' in 'abc' }} {{ 1 in [1] }} {{ 'role' in messages[0] }} {{ 2 is in [1, 2] }} {{ none is sameas none }} {{ [] == [] }} {{ {'a': 1} == {'a': 1} }}
{% if missing_tools is iterable and missing_tools | length > 0 %}yes{% else %}no{% endif %}
{% if none is iterable and none | length > 0 %}yes{% else %}no{% endif %}
{{ missing | length }} {{ '' | length }} {{ 'äö' | length }} {{ {} | length }} {{ messages | count }} {{ messages[1:] | length }}
{{ none | length }}
{{ 1 | length }}
"""

TEXTS = r"""
{{ '  x  ' | trim }}| {{ 'xxaxx' | trim('x') }} {{ none | trim }} {{ 5 | trim }} {{ missing | trim }}| {{ '\n\t x\x1c' | trim }}|
{{ 'aXbX' | replace('X', '') }} {{ 'aXbX' | replace('X', 'y', 1) }} {{ 5 | replace('5', 6) }} {{ 'a' | replace('a', none) }} {{ 'aXbX'.replace('X', '', 1) }} {{ 'ab' | replace('', '-') }}
{{ 'ß' | upper }} {{ none | upper }} {{ 'ÄÖ' | lower }} {{ 'hELLO wORLD' | capitalize }} {{ "it's a hello-world (x)" | title }} {{ "it's".title() }} {{ 'a1b'.title() }}
{{ 'a\nb\n\nc\n' | indent }}|{{ 'a\nb\n\nc' | indent(2, true, true) }}|{{ 'a\nb' | indent('> ', first=true) }}|{{ '' | indent }}|{{ 'a\r\nb' | indent(width=1) }}|
{{ messages[1].content.split('</think>')[-1].lstrip('\n') }} {{ messages[1].content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}
{{ messages[1].content.find('b') }} {{ messages[1].content[:messages[1].content.find('</think>')] }} {{ 'äöä'.rfind('ä') }} {{ 'abc'.find('z') }} {{ 'aXbX'.find('X', 2) }} {{ 'äbä'.index('b') }}
{{ ' a  b c '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a b  c'.split(none, 1) }} {{ ' a b  c '.rsplit(none, 1) }} {{ 'a,b'.split(sep=',') }} {{ ''.split() }} {{ ''.split(',') }}
{{ 'a\nb\r\nc\x0bd'.splitlines() }} {{ 'a\nb\n'.splitlines(true) }} {{ ''.splitlines() }}
{{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }} {{ 'abc'.partition('-') }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removesuffix('x') }}
{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x', 'ab')) }} {{ 'abc'.endswith(['c'][0]) }} {{ 'abc'.startswith('b', 1) }}
{{ 'abc'.islower() }} {{ ''.islower() }} {{ 'a1'.islower() }} {{ 'A1'.isupper() }} {{ '12'.isdigit() }} {{ ''.isdigit() }} {{ 'ab1'.isalnum() }} {{ ''.isalpha() }} {{ ' \t'.isspace() }} {{ ''.isascii() }} {{ 'Ab Cd'.istitle() }}
{{ 'a'.join(['x', 'y']) }} {{ 'x'.ljust(3) }}| {{ 'x'.rjust(3, '-') }} {{ 'x'.center(4, '*') }} {{ 'xy'.center(5, '*') }} {{ '-5'.zfill(4) }} {{ 'aBc'.swapcase() }} {{ 'aXaX'.count('aX') }} {{ 'abc'.strip('ac') }} {{ 'ABC'.casefold() }}
{{ '{} {}'.format(1.5, messages[2]) }} {{ '%s|%s' | format('a', 1) }}
{{ '<a>\'"&' | e }} {{ none | string }} {{ 'x' | safe }} {{ 1.50 | string }}
{{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ 'abc'[-1] }} {{ 'äöü'[1] }} {{ 'abc'[5:] }}| {{ 'abc' | first }} {{ 'abc' | last }} {{ 'abc' | list }} {{ 'abc' | reverse }}
{{ ['a', 'b'] | join }} {{ [1, none, 1.5, 'x'] | join(', ') }} {{ [{'x': 1}, {'x': 'y'}] | join('-', attribute='x') }} {{ 'abc' | join('.') }} {{ missing | join('.') }}
{{ 'a' 'b' }}
{{ '\x41\u00e9' }}
{{ "a" + 1 }}
"""

LISTS = r"""
{{ [] | first }}|{{ [] | last }}|{{ missing | first }}|{{ missing | last }}|{{ [1, 2] | first }}|{{ [1, 2] | last }}|{{ {'a': 1, 'b': 2} | last }}
{{ none | first }}
{{ none | list }}
{{ {'b': 1, 'A': 2, 'a': 3} | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(true) }} {{ {'b': 1, 'A': 2} | dictsort(false, 'value') }} {{ {'b': 1, 'A': 2} | dictsort(by='value', reverse=true) }}
{{ [3, 1, 2] | sort }} {{ ['b', 'A', 'a'] | sort }} {{ ['b', 'A'] | sort(case_sensitive=true) }} {{ [1, 2] | sort(reverse=true) }} {{ [{'n': 2, 'm': 1}, {'n': 1, 'm': 2}] | sort(attribute='n') | map(attribute='m') | list }} {{ [3, 1] | sort(true) }}
{{ ['a', 'B', 'b'] | unique | list }} {{ [1, 1, 2] | unique | list }}
{{ messages | selectattr('role', 'equalto', 'tool') | list | length }} {{ messages | selectattr('tool_calls') | map(attribute='role') | list }} {{ messages | rejectattr('role', 'in', ['user', 'tool']) | map(attribute='role') | join }} {{ messages | selectattr('tool_calls', 'defined') | list | length }} {{ messages | rejectattr('tool_calls', 'undefined') | list | length }}
{{ [1, 2, 3] | select('odd') | list }} {{ [1, none, 2] | reject('none') | list }} {{ ['a', ''] | select | list }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | map(attribute='score', default='-') | join(',') }} {{ ['a', 'b'] | map('upper') | join }} {{ [' a '] | map('trim') | list }} {{ ['1', 'x'] | map('int', default=7) | list }} {{ messages | map(attribute='tool_calls.0.function.name', default='') | list }} {{ ['a-b'] | map('replace', '-', '+') | list }}
{{ [1, 2, 3] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 0) | list }} {{ [1, 2, 3] | slice(2) | list }} {{ [1, 2] | reverse | list }}
{{ missing | items | list }} {{ messages[0].get('role') }} {{ messages[0].get('x') }} {{ messages[0].get('x', 'y') }} {{ messages[0].keys() | list }} {{ messages[0].values() | list | length }} {{ tools[0].function.parameters.properties.items() | list | length }}
{{ none | items | list }}
{{ missing | default('x') }} {{ none | default('x') }} {{ none | default('x', true) }} {{ '' | default('x', boolean=true) }} {{ '' | default('x', boolean=false) }} {{ missing | d }}| {{ none | default(boolean=true) }}| {{ '' | default(default_value='z', boolean=true) }}
{% for k, v in messages[2].items() %}{{ loop.index }}{{ k }}={{ v }}{{ ',' if not loop.last }}{% endfor %}
{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if loop.nextitem is defined }}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }} {% endfor %}
{% for m in messages if m.role != 'tool' %}{{ m.role }}{% else %}none{% endfor %}{% for m in [] %}x{% else %}empty{% endfor %}{% for m in messages[::-1] %}{{ m.role[0] }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}
{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.tool_calls %}{% set ns.found = true %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.found }} {{ ns.n }}
{% macro show(x, y=2) %}[{{ x }}{{ y }}{{ caller is defined }}]{% endmacro %}{{ show(1) }}{{ show(messages[2].score, y=none) }}
{% set a, b = 1, 'x' %}{{ a }}{{ b }}{% set text %}in {{ a }}{% endset %}{{ text | upper }}{% set d = dict(x=1, **{'y': 2}) %}{{ d }}
{% filter upper %}abc{% endfilter %}{% if messages[0] and not messages[5] %}ok{% endif %}{{ 'x' if false }}{{ 'y' if true else 'z' }}
{{ range(3) | list }} {{ range(1, 7, 2) | list }} {{ [1, 2, 3, 4][1:3] }} {{ messages[-1].role }} {{ messages | length }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{% set j = joiner(', ') %}{{ j() }}x{{ j() }}y
{{ raise_exception('no') }}
{{ messages.x.y }}
{{ missing.x }}
"""


def render(template):
    try:
        return _compile_jinja_template(template).render(
            messages=MESSAGES, tools=TOOLS, documents=None, add_generation_prompt=True
        )
    except Exception:
        return None


def main():
    groups = [PRINTING, JSON, NUMBERS, KINDS, TEXTS, LISTS]
    templates = [line for group in groups for line in group.splitlines() if line]
    table = {
        "messages": MESSAGES,
        "tools": TOOLS,
        "rendered": [[template, render(template)] for template in templates],
    }
    path = Path(__file__).parents[1] / "fixtures" / "templates.json"
    path.write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
