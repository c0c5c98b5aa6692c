"""Templates that would hang or fill the memory, and those that are merely long."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytest

from stepagent.agents.bounded_template import SOURCE, TemplateLimit, render
from stepagent.agents.chat import ChatCodec, ChatTemplateError
from stepagent.agents.tool_template import ToolCodec
from stepagent.envs.tools import Tool
from tests.agents.conversations import say
from tests.agents.families import FAMILIES
from tests.agents.tiny_models import TEMPLATE, make_tokenizer

GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"
NESTED = "{% for a in range(99999) %}{% for b in range(999) %}BODY{% endfor %}{% endfor %}"
BIG = "{% set x = 'x' * 999999 %}"
HOSTILE = {
    "nested loops": NESTED,
    "a loop's condition": BIG + "{% for a in range(9999) if x ~ 'a' == x ~ 'b' %}{% endfor %}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}"
    "{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "filters of filters": "{{ ([range(999)] * 99) | map('map', 'string') | map('list')"
    " | map('map', 'string') | map('list') | map('string') | list | length }}",
    "a text times a number": "{{ 'x' * 10 ** 10 }}",
    "a list times a number": "{{ ([1] * 10 ** 10) | length }}",
    "a power": "{% set x = 10 ** (10 ** 10) %}",
    "a product": GROW.replace("START", "7").replace("STEP", "ns.x * ns.x"),
    "~": GROW.replace("START", "'x'").replace("STEP", "ns.x ~ ns.x"),
    "+": GROW.replace("START", "'x'").replace("STEP", "ns.x + ns.x"),
    "lists of lists": GROW.replace("START", "1").replace("STEP", "[ns.x, ns.x]"),
    "lists that are compared": GROW.replace("START", "1").replace("STEP", "(ns.x, ns.x)")
    + "{{ ns.x == ns.x }}",
    "namespaces": GROW.replace("START", "1").replace("STEP", "namespace(a=ns.x, b=ns.x)")
    + "{{ ns.x }}",
    "replace, a method": GROW.replace("START", "'xx'").replace("STEP", "ns.x.replace('x', ns.x)"),
    "replace, a filter": GROW.replace("START", "'xx'").replace("STEP", "ns.x | replace('x', ns.x)"),
    "replace by name": "{{ 'aaaa' | replace(new='x' * 999999, old='a') }}",
    "join": "{{ ('x' * 99999).join(range(99999) | map('string')) }}",
    "join, a filter": "{{ range(99999) | join('x' * 99999) }}",
    "one text many times": "{{ (['x' * 999999] * 99999) | join }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "a width": "{{ 'x'.ljust(10 ** 10) }}",
    "a width in %": "{{ '%10000000000d' % 1 }}",
    "a width as an argument": "{{ '%*d' % (10 ** 10, 1) }}",
    "a width in braces": "{{ '{:>10000000000}'.format(1) }}",
    "a width in braces in braces": "{{ '{:>{}}'.format(1, 10 ** 10) }}",
    "many fields": "{{ ('%s' * 99999) % (('x' * 99999,) * 99999) }}",
    "center": "{{ 'x' | center(10 ** 10) }}",
    "center at compile time": "{% if 'x' | center(10000000000) %}{% endif %}",
    "indent": "{{ 'x\ny' | indent(10 ** 10) }}",
    "batch": "{{ [1] | batch(10 ** 10, 0) | list }}",
    "round": "{{ 1.5 | round(10 ** 10, 'ceil') }}",
    "tojson": "{{ [1] | tojson(indent=10 ** 10) }}",
    "the sum of lists": "{{ ([[1] * 99] * 99) | sum(start=[]) }}",
    "bytes of a number": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "a search backwards": "{{ ('a' * 999999).rfind('b' ~ 'a' * 500000) }}",
    "a slow encoding": "{{ ('é' * 99999).encode('punycode') }}",
    "tags": "{{ ('<!---->' * 99999) | striptags }}",
    "addresses": "{{ ('a.' * 99999) | urlize }}",
    "slices": BIG + "".join(f"{{% set y{i} = x[1:] %}}" for i in range(3000)),
    "output": NESTED.replace("BODY", "x" * 999),
    "output of a macro": "{% macro m() %}" + NESTED.replace("BODY", "{{ 'x' * 999 }}")
    + "{% endmacro %}{{ m() | length }}",
    "written lists": "{% set x = ['x' * 99999] %}{% set y %}{% for a in range(99999) %}{{ x }}"
    "{% endfor %}{% endset %}",
    "nested deeply": "{% set ns = namespace(x=1) %}{% for i in range(9999) %}"
    "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "a long source": "{{ 1 }}" * SOURCE,
}  # fmt: skip


def memory() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon_and_are_named(name: str):
    tokenizer = make_tokenizer()
    tokenizer.name_or_path, tokenizer.chat_template = "evil/model", HOSTILE[name] + TEMPLATE
    before, began = memory(), time.process_time()
    with pytest.raises(ChatTemplateError, match="chat template of 'evil/model' needs too much: "):
        ChatCodec(tokenizer)
    assert time.process_time() - began < 8
    assert memory() - before < 800


def test_one_that_turns_hostile_later():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].content == 'a door' %}" + HOSTILE["macros"] + "{% endif %}" + TEMPLATE
    )
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | trim")
    codec = ChatCodec(tokenizer)
    with pytest.raises(ChatTemplateError, match="needs too much: it takes more than 3 s"):
        codec.template.prompt("", say("a door"))


def test_one_that_is_hostile_to_functions():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% if tools %}" + HOSTILE["macros"] + "{% endif %}" + TEMPLATE
    assert ChatCodec(tokenizer)
    with pytest.raises(ChatTemplateError, match="needs too much: it takes more than 3 s"):
        ToolCodec(tokenizer, [Tool("look", "Looks around.", "look")])


def shown_text(tokenizer: Any, messages: Any, arguments: Any) -> str:
    dated = tokenizer.get_chat_template().replace("strftime_now('%Y-%m-%d')", "'2024-07-26'")
    return tokenizer.apply_chat_template(
        messages, chat_template=dated, tokenize=False, add_generation_prompt=True, **arguments
    )


LONG = ("You see a door. 100% {of} it is open.\n" * 80, "<think>\nhm\n</think>\n\nAction: go") * 300


@pytest.mark.parametrize("name", ["Qwen3", "gpt-oss (harmony)", "Mistral 7B v0.3"])
def test_long_conversations_are_within_bounds(name: str):
    """A million characters in 300 turns; the same text as transformers writes."""
    family = next(f for f in FAMILIES if f.name == name)
    tokenizer = family.tokenizer()
    codec = ChatCodec(tokenizer, family.arguments)
    messages = say(*LONG[:-1], system="Be brief.")
    began = time.process_time()
    text = codec.template.prompt("Be brief.", messages[1:])
    assert time.process_time() - began < 2
    assert len(text) > 900_000
    given = [messages[0], *codec.template.given(messages[1:])]
    if not codec.has_system_role:
        given = given[1:]
        given[0]["content"] = "Be brief.\n\n" + given[0]["content"]
    assert text == shown_text(tokenizer, given, family.arguments)


def test_what_templates_really_do_is_allowed():
    from transformers.utils.chat_template_utils import _compile_jinja_template

    values = {"x": "a\nb" * 50_000, "messages": [{"role": "user", "content": "é" * 200_000}] * 5}
    for source in (
        "{{ x.split('\n')[-1] }}{{ x.rsplit('b', 1)[0] | length }}{{ x.strip('\n') | length }}",
        "{{ x | replace('\n', '\r\n') | length }}{{ x.replace('a', '<a>') | indent(4) | length }}",
        "{{ messages | map(attribute='content') | join('\n\n') | length }}",
        "{{ messages | tojson(indent=2) | length }}{{ ('%s: %s' % ('a', x)) | length }}",
        "{{ '{}: {}'.format('a', 2026) }}{{ '%04d' % 7 }}{{ 'a' | center(20) }}{{ 3 // 2 + 2 }}",
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% set ns.text = ns.text + m.content %}{% endfor %}{{ ns.text[:10] }}",
        "{% for a, b in {'a': 1}.items() %}{{ a ~ b }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.length }}"
        "{% endfor %}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "{{ range(5) | sum }}{{ [3, 1] | sort }}{{ messages[::-1] | length }}{{ 2 ** 10 }}"
        "{{ none | default(10 ** 9) }}",
    ):  # fmt: skip
        assert render(source, values) == _compile_jinja_template(source).render(values)


def test_limits_are_those_of_one_rendering():
    source = "{% for i in range(n) %}{{ 'x' * 90000 }}{% endfor %}"
    for _ in range(50):
        assert len(render(source, {"n": 5})) == 450_000
    with pytest.raises(TemplateLimit, match=r"exceeds 1,0.* characters"):
        render(source, {"n": 50})
