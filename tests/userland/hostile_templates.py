"""Templates that would run for ever or fill the memory."""

from __future__ import annotations

from llmasos.userland.sdk.sandbox import SOURCE

GROWING = "{{% set ns = namespace(x={start}) %}}{{% for a in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}{end}"


BIG = "{% set x = 'a' * 1000000 %}"


HOSTILE = {
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "loops in a macro": "{% macro f() %}{% for a in range(99999) %}{{ f() }}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}",
    "a long range": "{% for a in range(10 ** 15) %}{% endfor %}",
    "joining": GROWING.format(start="'a'", step="ns.x ~ ns.x", end="{{ ns.x }}"),
    "adding": GROWING.format(start="'a'", step="ns.x + ns.x", end="{{ ns.x }}"),
    "lists of lists": GROWING.format(start="[1]", step="[ns.x, ns.x]", end="{{ ns.x }}"),
    "tuples of tuples": GROWING.format(start="1", step="(ns.x, ns.x)", end="{{ ns.x == ns.x }}"),
    "dictionaries": GROWING.format(start="1", step="dict(a=ns.x, b=ns.x)", end="{{ ns.x | tojson }}"),
    "squares": GROWING.format(start="3", step="ns.x * ns.x", end="{{ ns.x }}"),
    "arguments of arguments": "{% set ns = namespace(x=1) %}{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
    "{% for a in range(60) %}{{ f(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    "times": "{{ 'a' * 10000000000 }}",
    "times a list": "{{ 10000000000 * [1] }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "center": "{{ 'a' | center(10000000000) }}",
    "a method": "{{ 'a'.ljust(10000000000) }}",
    "a method by name": "{{ ['a'] | map('attr', 'center') | first() (10000000000) }}",
    "mapped": "{{ [10000000000] | map('a'.center) | list }}",
    "tabs": "{{ '\t'.expandtabs(10000000000) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "a width as argument": "{{ '%*d' % (10000000000, 1) }}",
    "format": "{{ '{:{}}'.format(1, 10000000000) }}",
    "format again and again": "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "percent of a dictionary": "{{ '%(a)s' * 100000 % {'a': 'b' * 100000} }}",
    "replace": BIG + "{{ x.replace('a', x) }}",
    "replace nothing": BIG + "{{ x | replace('', x) }}",
    "join": BIG + "{{ range(100000) | map('string') | join(x) }}",
    "indent": "{% set x = '\n' * 1000000 %}{{ x | indent(10000, true, true) }}",
    "translate": BIG + "{{ x.translate({97: x}) }}",
    "lipsum": "{{ lipsum(1000000000) }}",
    "slices": "{{ [1] | slice(1000000000) | list }}",
    "batches": "{{ [1] | batch(1000000000, 'x') | list }}",
    "rounding": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "json": "{{ {'a': 1} | tojson(indent=1000000000) }}",
    "dates": "{{ strftime_now('%10000000000Y') }}",
    "what is written again and again": "{% set y %}{% for a in range(100000) %}"
    + "a" * 100_000
    + "{% endfor %}{% endset %}",
    "many values": BIG * 1000 + "".join(f"{{% set x{i} = x ~ 'b' %}}" for i in range(1000)),
    "tags": "{% set x = '<>' * 5000000 %}{{ x | striptags }}",
    "escapes": "{% autoescape true %}{% set x = ('<>' * 5000000) | safe %}{{ x.striptags() }}{% endautoescape %}",
    "attributes": "{{ [{}] | map(attribute='a.' * 3000000, default=1) | list }}",
    "a codec": "{{ ('\u00e9\u00ea' * 300000).encode('punycode') }}",
    "a codec backwards": "{{ ('a-' ~ 'b9' * 300000).encode().decode('PunyCode') }}",
    "names of characters": "{{ ('\u12a9' * 5000000).encode('ascii', 'namereplace') }}",
    "a sum of lists": "{{ ([[1] * 100] * 50000) | sum(start=[]) | length }}",
    "a sum of lists by name": "{{ ([[1] * 100] * 50000) | map('list') | sum(none, ()) | length }}",
    "each in all": "{% set l = range(99999) | list %}{{ l | select('in', l[::-1]) | list | length }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loops": "{% for x in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "length": "a" * (SOURCE + 1),
    "classes": "{{ ''.__class__.__mro__ }}",
    "another file": "{% include '/etc/passwd' %}",
    "changing a list": "{{ messages.append(1) }}",
    "private attributes": "{% set ns = namespace() %}{% set ns._a = 1 %}",
}
