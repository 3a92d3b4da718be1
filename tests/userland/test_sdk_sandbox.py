"""A hostile template ends within its limits with an errno; what harmless ones use works as jinja2 has it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.meter import BUDGET, LARGEST
from llmasos.userland.sdk.sandbox import Template
from tests.booted import PATIENCE
from tests.userland.hostile_templates import HOSTILE

MEMORY = 1_500_000_000  # bytes of address space

PROGRAM = f"""
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
from tests.userland.hostile_templates import HOSTILE
from llmasos.syscalls.errno import SyscallError
from llmasos.userland.sdk.sandbox import Template
for name, source in HOSTILE.items():
    started = time.thread_time()
    try:
        Template(source).render({{"messages": []}})
        outcome = "rendered"
    except SyscallError as error:
        outcome = error.errno.name if "MemoryError" not in error.reason else error.reason
    if time.thread_time() - started > 6:  # seconds of work: a multiple of the limit, for slow machines
        outcome = "slow"
    print(name, outcome, sep=": ")
"""


@pytest.mark.processes
def test_hostile_templates_end_within_their_limits_with_an_errno() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 2)
    assert done.stderr == ""
    assert dict(line.split(": ") for line in done.stdout.splitlines()) == dict.fromkeys(HOSTILE, "EINVAL")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'ab' * 3 }}{{ [1] + [2] }}{{ 2 ** 10 }}{{ '%s-%5.2f' % ('a', 1.5) }}", "ababab[1, 2]1024a- 1.50"),
        ("{{ '{:>4}|{}'.format(1, 'b') }}{{ '%s' | format(1) }}{{ 'a' | center(5) }}", "   1|b1  a  "),
        ("{{ 'a\nb' | indent(2) }}{{ 'aXb'.replace('X', '-') }}{{ ['a', 'b'] | join(', ') }}", "a\n  ba-ba, b"),
        ("{{ {'b': 'é<', 'a': [1, none]} | tojson }}", '{"b": "é<", "a": [1, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{% for i in range(9) %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "0123"),
        ("{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% generation %}{% set x = 1 %}yes{{ x }}{% endgeneration %}{{ x is defined }}", "yes1False"),
        ("{% macro f(a) %}<{{ a }}{{ caller() }}>{% endmacro %}{% call f(1) %}2{% endcall %}", "<12>"),
        ("{{ dict(a=1).items() | list }}{{ dict.fromkeys(['a'], 0) }}", "[('a', 1)]{'a': 0}"),
        ("{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}", "4"),
        ("{{ messages[::-1] | map(attribute='role') | join }}{{ messages | length }}", "ba2"),
        ("{{ 'é'.encode('UTF_8').decode() }}{{ [[1], [2]] | sum(start=[]) }}", "é[1, 2]"),
        ("{{ [1, 2] | select('in', [2]) | sum }}{{ [1, 2] | reject('even') | list }}", "2[1]"),
        ("{{ undefined_name }}{{ messages[5] is defined }}", "False"),
    ],
)  # fmt: skip
def test_what_templates_use_works(source: str, text: str) -> None:
    assert Template(source).render({"messages": [{"role": "a"}, {"role": "b"}]}) == text


def test_a_long_conversation_is_within_the_limits() -> None:
    said = [{"role": "user", "content": "word " * 1000}] * 1000
    text = Template("{% for m in messages %}{{ '<' ~ m.role ~ '>' + m.content | trim }}\n{% endfor %}").render(
        {"messages": said}
    )
    assert LARGEST < BUDGET
    assert len(text) > 4_000_000


def test_a_template_s_own_refusal_is_the_reason() -> None:
    with pytest.raises(SyscallError, match="the model's chat template says: no more") as caught:
        Template("{{ raise_exception('no ' ~ 'more') }}").render({})
    assert caught.value.errno is Errno.EINVAL


def test_a_template_that_did_too_much_is_not_tried_again_with_as_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = Template("{% if x|length > 10 %}" + HOSTILE["loops"] + "{% endif %}done")
    monkeypatch.setattr("llmasos.userland.sdk.meter.SECONDS", 0.01)
    with pytest.raises(SyscallError) as first:
        template.render({"x": "a" * 10_000})
    monkeypatch.setattr("llmasos.userland.sdk.meter.SECONDS", 1e9)  # tried again, it would not end
    for size in (10_000, 5_000, 100_000):
        with pytest.raises(SyscallError) as again:
            template.render({"x": "a" * size})
        assert again.value.reason == first.value.reason
    assert template.render({"x": "a"}) == "done"  # for a program that asks for less it does what it can
