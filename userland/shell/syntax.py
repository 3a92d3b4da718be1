"""The reader of the shell's language: a text becomes the records of tree.py.

The structure of scripts (lists, pipelines, `if`, `for`, functions) is a grammar of lark, an LALR(1) parser that is plain
Python: the grammar stands here as a grammar, a line that is only begun (`for x in a b; do`) is told from a wrong one, and
an error says what could have stood there. bashlex reads bash whole, but is under the GPL and knows no free text; the
parsers of xonsh and cmd2 come with their programs around them. The words are scanner.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from llmasos.userland.shell.grammar import Command, UsageError
from llmasos.userland.shell.quoting import Incomplete
from llmasos.userland.shell.scanner import Scanner, Symbol
from llmasos.userland.shell.tree import (
    AndOr,
    Case,
    For,
    Function,
    Group,
    If,
    Node,
    Pipeline,
    Redirect,
    Script,
    Simple,
    While,
    Word,
)

if TYPE_CHECKING:
    from lark import Lark

_GRAMMAR = r"""
start: | list
list: sequence | sequence separator
sequence: and_or | sequence separator and_or
separator: SEP | NEWLINE | AMP
and_or: pipeline | and_or AND pipeline | and_or OR pipeline
?pipeline: members | BANG pipeline -> negated | TIME pipeline -> timed
members: command | members PIPE command
?command: SIMPLE -> simple
        | compound
        | compound redirects -> redirected
        | FUNCTION compound -> function
redirects: REDIRECT | redirects REDIRECT
?compound: IF list THEN list otherwise FI -> if_
         | IF list THEN list FI -> if_
         | WHILE list DO list DONE -> while_
         | UNTIL list DO list DONE -> until
         | FOR separator DO list DONE -> for_
         | CASE clauses ESAC -> case
         | LBRACE list RBRACE -> group
         | LPAR list RPAR -> apart
otherwise: ELSE list | ELIF list THEN list | ELIF list THEN list otherwise
clauses: | ended | ended clause | clause
ended: clause DSEMI | ended clause DSEMI
clause: PATTERN | PATTERN list
%declare SEP NEWLINE AMP AND OR PIPE BANG TIME SIMPLE FUNCTION REDIRECT
%declare CASE PATTERN DSEMI ESAC IF THEN ELIF ELSE FI WHILE UNTIL DO DONE FOR LBRACE RBRACE LPAR RPAR
"""
_SPELLED = {
    "SEP": ";", "NEWLINE": "the end of the line", "AMP": "&", "AND": "&&", "OR": "||", "PIPE": "|", "BANG": "!",
    "LBRACE": "{", "RBRACE": "}", "LPAR": "(", "RPAR": ")", "SIMPLE": "a command", "FUNCTION": "a function",
    "REDIRECT": "a redirection", "PATTERN": "a pattern", "DSEMI": ";;",
}  # fmt: skip


@cache
def _parser() -> Lark:
    import lark
    from lark.lexer import Lexer, Token

    class Tokens(Lexer):
        def __init__(self, conf: object) -> None:
            pass

        def lex(self, lexer_state: Any, parser_state: Any = None) -> Any:
            for symbol in lexer_state:
                yield Token(symbol.type, symbol)

    return lark.Lark(_GRAMMAR, parser="lalr", lexer=Tokens)


def _tree(symbols: list[Symbol]) -> Script:
    from lark.exceptions import UnexpectedInput, UnexpectedToken

    if not symbols:
        return Script()
    try:
        # lark's type says text; a lexer of one's own is handed whatever is given here.
        tree = _parser().parse(symbols)
    except UnexpectedToken as error:
        if error.token.type == "$END":
            raise Incomplete(f"the line is not whole: {_wanted(error.accepts or error.expected)} is missing") from None
        found = error.token.value.source.strip().split("\n")[0] or "the end of the line"
        raise UsageError(f"{found!r} has no place there; {_wanted(error.accepts or error.expected)} could be") from None
    except UnexpectedInput as error:
        raise UsageError(f"this cannot be read: {error}") from None
    made: Script = _Maker().make(tree)
    return made


def _wanted(types: Sequence[str] | set[str]) -> str:
    names = sorted(_SPELLED.get(kind, kind.lower()) for kind in types if kind not in ("$END", "NEWLINE", "REDIRECT"))
    if "a command" in names:  # whatever can begin one
        return "a command"
    return " or ".join(f"`{name}`" for name in names) or "the end"


class _Maker:
    """Makes the records of lark's tree."""

    def make(self, tree: Any) -> Any:
        return getattr(self, f"_{tree.data}")(tree.children)

    def _start(self, children: list[Any]) -> Script:
        return self.make(children[0]) if children else Script()

    def _list(self, children: list[Any]) -> Script:
        items: list[AndOr] = self.make(children[0])
        if len(children) > 1:
            self._end(items[-1], children[1])
        return Script(tuple(items))

    def _sequence(self, children: list[Any]) -> list[AndOr]:
        if len(children) == 1:
            return [self.make(children[0])]
        items: list[AndOr] = self.make(children[0])
        self._end(items[-1], children[1])
        return [*items, self.make(children[2])]

    def _end(self, item: AndOr, separator: Any) -> None:
        item.background = separator.children[0].type == "AMP"

    def _and_or(self, children: list[Any]) -> AndOr:
        if len(children) == 1:
            return AndOr(self.make(children[0]))
        item: AndOr = self.make(children[0])
        item.rest.append((children[1].value.value, self.make(children[2])))
        return item

    def _negated(self, children: list[Any]) -> Pipeline:
        pipeline: Pipeline = self.make(children[1])
        pipeline.negated = not pipeline.negated
        return pipeline

    def _timed(self, children: list[Any]) -> Pipeline:
        pipeline: Pipeline = self.make(children[1])
        pipeline.timed = True
        return pipeline

    def _members(self, children: list[Any]) -> Pipeline:
        if len(children) == 1:
            return Pipeline([self.make(children[0])])
        pipeline: Pipeline = self.make(children[0])
        pipeline.members.append(self.make(children[2]))
        return pipeline

    def _simple(self, children: list[Any]) -> Simple:
        simple: Simple = children[0].value.value
        return simple

    def _redirected(self, children: list[Any]) -> Node:
        node = self.make(children[0])
        node.redirects = self.make(children[1])
        made: Node = node
        return made

    def _redirects(self, children: list[Any]) -> list[Redirect]:
        if len(children) == 1:
            return [children[0].value.value]
        return [*self.make(children[0]), children[1].value.value]

    def _function(self, children: list[Any]) -> Function:
        return Function(children[0].value.value, self.make(children[1]))

    def _if_(self, children: list[Any]) -> If:
        made = If([(self.make(children[1]), self.make(children[3]))])
        if len(children) == 6:
            branches, made.otherwise = self.make(children[4])
            made.branches += branches
        return made

    def _otherwise(self, children: list[Any]) -> tuple[list[tuple[Script, Script]], Script | None]:
        if len(children) == 2:
            return [], self.make(children[1])
        branches = [(self.make(children[1]), self.make(children[3]))]
        if len(children) == 4:
            return branches, None
        more, otherwise = self.make(children[4])
        return [*branches, *more], otherwise

    def _while_(self, children: list[Any]) -> While:
        return While(self.make(children[1]), self.make(children[3]))

    def _until(self, children: list[Any]) -> While:
        return While(self.make(children[1]), self.make(children[3]), until=True)

    def _for_(self, children: list[Any]) -> For:
        name, words = children[0].value.value
        return For(name, words, self.make(children[3]))

    def _case(self, children: list[Any]) -> Case:
        return Case(children[0].value.value, self.make(children[1]))

    def _clauses(self, children: list[Any]) -> list[tuple[list[Word], Script]]:
        made: list[tuple[list[Word], Script]] = []
        for child in children:
            made += self.make(child) if child.data == "ended" else [self.make(child)]
        return made

    def _ended(self, children: list[Any]) -> list[tuple[list[Word], Script]]:
        return self._clauses([child for child in children if hasattr(child, "data")])

    def _clause(self, children: list[Any]) -> tuple[list[Word], Script]:
        return children[0].value.value, self.make(children[1]) if len(children) > 1 else Script()

    def _group(self, children: list[Any]) -> Group:
        return Group(self.make(children[1]))

    def _apart(self, children: list[Any]) -> Group:
        return Group(self.make(children[1]), apart=True)


# --- what others call -----------------------------------------------------------------------------------------------


def read(
    source: str,
    forms: Mapping[str, Command],
    aliases: Mapping[str, str] | None = None,
    *,
    whole_text: bool = False,
    first_line: int = 1,
) -> Script:
    """Read a script. `forms` are the commands by name, some of which take free text; with `whole_text` (of a pasted text)
    that goes on to the end, over lines; `first_line` is the number of the first. Raises Incomplete, UsageError."""
    try:
        scanner = Scanner(source, forms, aliases or {}, _tree, whole_text=whole_text, first_line=first_line)
        return _tree(scanner.read())
    except RecursionError:
        raise UsageError("the line has too much within itself") from None


def takes_text(source: str, forms: Mapping[str, Command], aliases: Mapping[str, str]) -> bool:
    """Whether the first line of a text is a command with free text that is not in quotes."""
    line = source.lstrip().split("\n")[0]
    try:
        symbols = Scanner(line, forms, aliases, _tree).read()
    except (UsageError, RecursionError):
        return False
    return bool(symbols) and isinstance(symbols[0].value, Simple) and symbols[0].value.verbatim
