"""Free text: where the text of `say` and `spawn` begins and ends, and what of a line is grammar. Lines with their
meaning, by the rules of the manual:

1. `say PID` and `spawn NAME` without quotes take the rest of the line as it stands, but for a last ` &`.
2. Text in quotes that close before a blank, an operator or the end makes the rest of the line grammar, unless words
   follow.
3. `spawn NAME`, and `say PID` in a pipe, have no text before a lone `|`, `<` or `>`, or before `;`, `&&` and `||`.
"""

from __future__ import annotations

import pytest

from llmasos.userland.shell.syntax import read, takes_text
from llmasos.userland.shell.tree import AndOr, Literal, Node, Pipeline, Simple, Substitution, Variable, Word
from llmasos.userland.shell.words import COMMANDS

LINES = [
    # 1: the rest of the line
    ("say bob what does a | b > c mean?", "say bob «what does a | b > c mean?»"),
    ("say bob what's my name?", "say bob «what's my name?»"),
    ("say bob 'tis the season, isn't it", "say bob «'tis the season, isn't it»"),
    ("say bob x; y && z || w", "say bob «x; y && z || w»"),
    ("say bob # is a number sign", "say bob «# is a number sign»"),
    ("say bob costs $5, and $HOME stays", "say bob «costs $5, and $HOME stays»"),
    ("say bob $(date) is text", "say bob «$(date) is text»"),
    (r"say bob C:\new and a\ b", r"say bob «C:\new and a\ b»"),
    ("say bob   two  blanks  ", "say bob «two  blanks»"),
    ("say bob * or ? or [a]", "say bob «* or ? or [a]»"),
    ("say bob < or >, that is the question", "say bob «< or >, that is the question»"),
    ("say bob me and AT&T&", "say bob «me and AT&T&»"),
    ("say bob salt & pepper", "say bob «salt & pepper»"),
    ("say bob salt & pepper &", "say bob «salt & pepper» &"),
    ("say bob --max 5 go on --max 6", "say bob --max 5 «go on --max 6»"),
    ("say bob --max=5 go", "say bob --max=5 «go»"),
    ("say bob -5 is cold", "say bob «-5 is cold»"),
    ("spawn bob Tell me a story; be brief", "spawn bob «Tell me a story; be brief»"),
    ("spawn bob --nice -5 hello | there", "spawn bob --nice -5 «hello | there»"),
    ("spawn bob --system 'Be brief.' hi & bye &", "spawn bob --system 'Be brief.' «hi & bye» &"),
    # 2: quotes
    ("say alice 'Summarise:' | tee out.txt", "say alice «Summarise:» | tee out.txt"),
    ('say alice "Summarise:" > out.txt', "say alice «Summarise:» > out.txt"),
    ("say alice 'a' && say bob 'b' || ps", "say alice «a» && say bob «b» || ps"),
    ("say alice 'a'; ps", "say alice «a» ; ps"),
    ("say alice 'hi' # a comment", "say alice «hi»"),
    ("say alice 'hi' &", "say alice «hi» &"),
    ('say alice "$name is $(echo here)"', "say alice «${name} is $(...)»"),
    ("say alice '$name'", "say alice «$name»"),
    ('say 3 "yes" and "no"', 'say 3 «"yes" and "no"»'),
    ("say 3 'quoted' words follow", "say 3 «'quoted' words follow»"),
    ("say 3 'a'b", "say 3 «'a'b»"),
    ('say 3 "not closed', 'say 3 «"not closed»'),
    ("say alice ''", "say alice «»"),
    ("say alice 'a' 2> errors", "say alice «a» 2> errors"),
    # 3: no text
    ("spawn a | spawn b", "spawn a | spawn b"),
    ("spawn a | spawn b &", "spawn a | spawn b &"),
    ("spawn a < notes.txt", "spawn a < notes.txt"),
    ("spawn a > out.txt", "spawn a > out.txt"),
    ("spawn a; spawn b", "spawn a ; spawn b"),
    ("spawn a && say a 'hello'", "spawn a && say a «hello»"),
    ("spawn a >3 is a heart", "spawn a «>3 is a heart»"),
    ("cat ./x | say alice | tee y", "cat ./x | say alice | tee y"),
    ("cat ./x | say alice Summarise: | tee y", "cat ./x | say alice «Summarise: | tee y»"),
    ("say alice | tee y", "say alice «| tee y»"),
    # within others
    ("for x in a b; do say $x 'hi'; done", "for x in a b : say ${x} «hi»"),
    ("x=$(say alice what's up (or so))", "x=$(say alice «what's up (or so)»)"),
    ("say ${who} hello there", "say ${who} «hello there»"),
    ("echo say alice hello > x", "echo say alice hello > x"),
]  # fmt: skip


def spelled(word: Word) -> str:
    def part(one: object) -> str:
        match one:
            case Literal(text=text):
                return text
            case Variable(name=name):
                return f"${{{name}}}"
            case Substitution(script=script):
                inner = meaning(script.items)
                return f"$({inner})" if "say" in inner else "$(...)"
        raise AssertionError(one)

    said = "".join(part(one) for one in word.parts)
    return f"'{said}'" if " " in said and "$" not in said else said


def of(node: Node) -> str:
    if not isinstance(node, Simple):
        return f"for {node.name} in {' '.join(map(spelled, node.words))} : {meaning(node.body.items)}"  # type: ignore[union-attr, arg-type]
    words = [f"{name}={spelled(value)}" for name, value in node.assignments]
    words += [spelled(word) for word in node.words]
    if node.text is not None:
        words.append(f"«{spelled(node.text).strip(chr(39)) if not node.verbatim else node.text.parts[0].text}»")  # type: ignore[union-attr]
    words += [f"{redirect.operator} {spelled(redirect.target)}" for redirect in node.redirects]
    return " ".join(words)


def meaning(items: tuple[AndOr, ...]) -> str:
    def piped(pipeline: Pipeline) -> str:
        return " | ".join(of(member) for member in pipeline.members)

    said = []
    for item in items:
        text = piped(item.first) + "".join(f" {operator} {piped(pipeline)}" for operator, pipeline in item.rest)
        said.append(text + " &" if item.background else text)
    return " ; ".join(said)


def test_there_are_forty_lines_at_least() -> None:
    assert len(LINES) >= 40
    assert len({line for line, _ in LINES}) == len(LINES)


@pytest.mark.parametrize(("line", "means"), LINES)
def test_a_line_means(line: str, means: str) -> None:
    assert meaning(read(line, COMMANDS).items) == means


def test_text_of_lines_that_are_pasted_goes_on_if_the_first_takes_it_without_quotes() -> None:
    text = "say bob Here is a poem:\nroses are red; violets\n# are blue &"
    assert takes_text(text, COMMANDS, {})
    (item,) = read(text, COMMANDS, whole_text=True).items
    assert item.background
    assert isinstance(simple := item.first.members[0], Simple)
    assert simple.text is not None
    assert simple.text.source == "Here is a poem:\nroses are red; violets\n# are blue"


@pytest.mark.parametrize("text", ["ps\nsay bob hi", "say bob 'hi'\nps", "spawn a\nspawn b", "stop 3 # x\ncont 3"])
def test_lines_that_are_pasted_are_commands_otherwise(text: str) -> None:
    assert not takes_text(text, COMMANDS, {})
    assert len(read(text, COMMANDS).items) == 2


def test_an_alias_of_say_takes_text_as_say_does() -> None:
    (item,) = read("a what's | up", COMMANDS, {"a": "say alice"}).items
    assert meaning((item,)) == "say alice «what's | up»"
