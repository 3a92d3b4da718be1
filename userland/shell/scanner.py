"""The tokens of the shell's language.

A scanner of our own, because what a word is (quoting.py) depends on the command: `say` and `spawn NAME` take the rest of
the line as it stands (free_text.py). A simple command is one token: syntax.py's grammar is about what stands between
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmasos.userland.shell.free_text import TextReader
from llmasos.userland.shell.grammar import Command, UsageError
from llmasos.userland.shell.quoting import ENDS, Incomplete
from llmasos.userland.shell.tree import Literal, Redirect, Script, Simple, Substitution, Word

KEYWORDS = {
    word: word.upper()
    for word in ("if", "then", "elif", "else", "fi", "while", "until", "do", "done", "for", "case", "esac", "time")
} | {"{": "LBRACE", "}": "RBRACE"}
_OPERATORS = {"&&": "AND", "||": "OR", ";;": "DSEMI", ";": "SEP", "&": "AMP", "|": "PIPE", "(": "LPAR", ")": "RPAR"}
_BEFORE_A_COMMAND = {  # behind these an end of line means nothing
    "SEP", "NEWLINE", "AMP", "AND", "OR", "PIPE", "BANG", "TIME", "LBRACE", "LPAR", "FUNCTION",
    "IF", "THEN", "ELIF", "ELSE", "WHILE", "UNTIL", "DO", "CASE", "PATTERN", "DSEMI",
}  # fmt: skip
_CLOSING = {"FI", "DONE", "ESAC", "RBRACE", "RPAR", "REDIRECT"}  # behind these a redirection is one of a compound command
_REDIRECT = re.compile(r"2>&1|1?>&2|&>>?|2>>|2>\|?|<<<|<<-?|1?>>|<|1?>\|?")
_OTHER_DESCRIPTOR = re.compile(r"[0-9]+[<>]")
_ESAC = re.compile(r"esac(?=[\s;&|<>()]|$)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FUNCTION = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)[ \t]*\([ \t]*\)")
ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")


@dataclass
class Symbol:
    """A token: its type for the grammar, and what it carries."""

    type: str
    value: Any
    source: str
    start: int


class Scanner(TextReader):
    """Reads tokens off a text. `closing`: it ends at the parenthesis that closes a `$(`."""

    def __init__(
        self,
        source: str,
        forms: Mapping[str, Command],
        aliases: Mapping[str, str],
        build: Callable[[list[Symbol]], Script],
        start: int = 0,
        *,
        closing: bool = False,
        whole_text: bool = False,
        first_line: int = 1,
    ) -> None:
        super().__init__(source, start, closing=closing, whole_text=whole_text)
        self._first_line = first_line
        self._forms, self._aliases, self._build = forms, aliases, build
        self._cases = 0  # `case` that have not met their `esac`
        self._heredocs: list[tuple[Redirect, str, bool]] = []  # that begin at the next end of line
        self.symbols: list[Symbol] = []
        self.command = self.at  # where the last simple command begins, for completion

    def _nested(self, text: str) -> Scanner:
        return Scanner(text, self._forms, self._aliases, self._build, first_line=self._first_line)

    def _substitution(self, *, quoted: bool) -> Substitution:
        inner = Scanner(
            self.source,
            self._forms,
            self._aliases,
            self._build,
            self.at + len("$("),
            closing=True,
            first_line=self._first_line,
        )
        symbols = inner.read()
        self.source = inner.source  # aliases may have been replaced in it
        if not self.source.startswith(")", inner.at):
            raise Incomplete("the parenthesis of $( is not closed")
        self.at = inner.at + 1
        return Substitution(self._build(symbols), quoted)

    @property
    def _receives(self) -> bool:
        return bool(self.symbols) and self.symbols[-1].type == "PIPE"

    # --- commands ---

    def read(self) -> list[Symbol]:
        """All tokens, without the ends of lines that mean nothing."""
        while self._next():
            pass
        if self._heredocs:
            raise Incomplete(f"the text that ends with a line {self._heredocs[0][1]!r} is not closed")
        while self.symbols and self.symbols[-1].type == "NEWLINE":
            self.symbols.pop()
        return self.symbols

    def _next(self) -> bool:
        self._skip_blanks()
        if self.at >= len(self.source):
            return False
        start, character = self.at, self.source[self.at]
        before = self.symbols[-1].type if self.symbols else "NEWLINE"
        if character == "\n":
            self.at += 1
            self._read_heredocs()
            if before not in _BEFORE_A_COMMAND:
                self._add("NEWLINE", "\n", start)
            return True
        if before in _CLOSING and (found := _REDIRECT.match(self.source, self.at)):
            self.at = found.end()
            self._add("REDIRECT", self._redirect(found[0]), start)
            return True
        if (before == "CASE" or (before == "DSEMI" and self._cases)) and not _ESAC.match(self.source, self.at):
            self._add("PATTERN", self._patterns(), start)
            return True
        if self.source.startswith("|&", self.at):  # errors go through the pipe too
            self.at += 2
            both = Redirect("2>&1", Word())
            if self.symbols and isinstance(self.symbols[-1].value, Simple):
                self.symbols[-1].value.redirects.append(both)
            else:
                self._add("REDIRECT", both, start)
            self._add("PIPE", "|", start)
            return True
        for operator in _OPERATORS:
            if self.source.startswith(operator, self.at) and not _REDIRECT.match(self.source, self.at):
                if operator == ")" and self._closing and self._depth == 0:
                    return False
                self._depth += (operator == "(") - (operator == ")")
                self.at += len(operator)
                self._add(_OPERATORS[operator], operator, start)
                return True
        if character == "!" and self.source[self.at + 1 : self.at + 2] in ("", " ", "\t", "\n"):
            self.at += 1
            self._add("BANG", "!", start)
            return True
        if found := _FUNCTION.match(self.source, self.at):
            self.at = found.end()
            self._add("FUNCTION", found[1], start)
            return True
        word = re.compile(r"[^\s;&|<>()'\"$\\]+").match(self.source, self.at)
        if word and word[0] in KEYWORDS and self.source[word.end() : word.end() + 1] in ("", *" \t\n;&|<>()"):
            self.at = word.end()
            if word[0] == "for":
                self._add("FOR", self._for(), start)
            elif word[0] == "case":
                self._add("CASE", self._case(), start)
                self._cases += 1
            else:
                self._cases -= word[0] == "esac"
                self._add(KEYWORDS[word[0]], word[0], start)
            return True
        self._add("SIMPLE", self._simple(), start)
        return True

    def _add(self, kind: str, value: Any, start: int) -> None:
        self.symbols.append(Symbol(kind, value, self.source[start : self.at], start))

    def _for(self) -> tuple[str, list[Word] | None]:
        self._skip_blanks()
        found = _NAME.match(self.source, self.at)
        if found is None:
            if self.at >= len(self.source):
                raise Incomplete("for needs a name: `for x in a b; do ...; done`")
            raise UsageError(f"for needs a name, found {self._near()!r}: `for x in a b; do ...; done`")
        self.at = found.end()
        self._skip_blanks()
        if not re.compile(r"in(?=\s|$)").match(self.source, self.at):
            return found[0], None
        self.at += 2
        words: list[Word] = []
        while True:
            self._skip_blanks()
            if self.at >= len(self.source) or self.source[self.at] in "\n;":
                return found[0], words
            if self.source[self.at] in ENDS:
                raise UsageError(f"`;` or the end of the line ends the words of for, found {self._near()!r}")
            words.append(self.word())

    def _case(self) -> Word:
        """The head of `case WORD in`."""
        self._skip_blanks()
        if self.at < len(self.source) and self.source[self.at] in ENDS:
            raise UsageError(f"case needs a word, found {self._near()!r}: `case $x in a) ...;; esac`")
        word = self.word()
        self._skip_lines()
        if self.at >= len(self.source):
            raise Incomplete("case needs `in`: `case $x in a) ...;; esac`")
        found = re.compile(r"in(?=\s|$)").match(self.source, self.at)
        if found is None:
            raise UsageError(f"case needs `in` behind its word, found {self._near()!r}: `case $x in a) ...;; esac`")
        self.at = found.end()
        return word

    def _patterns(self) -> list[Word]:
        """`a | b)`, `(a)`."""
        if self.source[self.at] == "(":
            self.at += 1
        patterns: list[Word] = []
        while True:
            self._skip_blanks()
            if self.at >= len(self.source):
                raise Incomplete("a pattern of case ends with `)`")
            if self.source[self.at] in ENDS:
                raise UsageError(f"a pattern of case is wanted, found {self._near()!r}: `case $x in a) ...;; esac`")
            patterns.append(self.word())
            self._skip_blanks()
            if self.at >= len(self.source):
                raise Incomplete("a pattern of case ends with `)`")
            self.at += 1
            if self.source[self.at - 1] == ")":
                return patterns
            if self.source[self.at - 1] != "|":
                self.at -= 1
                raise UsageError(f"a pattern of case ends with `)`, found {self._near()!r}")

    def _skip_lines(self) -> None:
        self._skip_blanks()
        while self.source.startswith("\n", self.at):
            self.at += 1
            self._skip_blanks()

    def _simple(self) -> Simple:
        self.command = self.at
        simple = Simple(line=self._first_line + self.source.count("\n", 0, self.at))
        if self.source[self.at] == "!":
            self.at += 1
            simple.host = True
        expanded: set[str] = set()
        while True:
            self._skip_blanks()
            if self.at >= len(self.source):
                break
            found = _REDIRECT.match(self.source, self.at)
            if found:
                self.at = found.end()
                simple.redirects.append(self._redirect(found[0]))
                continue
            if self.source[self.at] in ENDS:
                break
            if other := _OTHER_DESCRIPTOR.match(self.source, self.at):
                raise UsageError(f"{other[0]!r}: there are no descriptors but 0, 1 and 2 here, as in `2> errors`")
            assigned = ASSIGNMENT.match(self.source, self.at) if not simple.words and not simple.host else None
            if assigned:
                self.at = assigned.end()
                empty = self.at >= len(self.source) or self.source[self.at] in ENDS
                simple.assignments.append((assigned[1], Word() if empty else self.word()))
                continue
            if simple.text is not None:
                raise UsageError(f"{simple.words[0].source}: nothing was expected at {self._near()!r}, behind its text")
            start = self.at
            word = self.word()
            name = word.plain
            if not simple.words and not simple.host and name is not None:
                if name in self._aliases and name not in expanded:
                    expanded.add(name)
                    self.source = self.source[:start] + self._aliases[name] + self.source[self.at :]
                    self.at = start
                    continue
                form = self._forms.get(name)
                if form is not None and form.takes_text:
                    simple.words.append(word)
                    self._text_command(simple, form)
                    continue
            simple.words.append(word)
        simple.source = self.source[self.command : self.at].strip()
        return simple

    # --- redirections ---

    def _redirect(self, operator: str) -> Redirect:
        operator = operator.removeprefix("1").replace(">|", ">")
        if operator in ("2>&1", ">&2"):
            return Redirect(operator, Word())
        self._skip_blanks()
        if self.at >= len(self.source) or self.source[self.at] in ENDS:
            wanted = "a text" if operator == "<<<" else "a file"
            raise UsageError(f"{operator} needs {wanted} behind it, found {self._near()!r}")
        redirect = Redirect(operator, self.word())
        if operator in ("<<", "<<-"):
            end = "".join(part.text for part in redirect.target.parts if isinstance(part, Literal))
            quoted = any(isinstance(part, Literal) and part.quoted for part in redirect.target.parts)
            self._heredocs.append((redirect, end, quoted))
        return redirect

    def _read_heredocs(self) -> None:
        """The texts of `<< END`, which begin at the cursor: lines up to one that says END."""
        while self._heredocs:
            redirect, end, quoted = self._heredocs[0]
            tabs = r"\t*" if redirect.operator == "<<-" else ""
            found = re.compile(rf"^{tabs}{re.escape(end)}$", re.MULTILINE).search(self.source, self.at)
            if found is None:
                raise Incomplete(f"the text that ends with a line {end!r} is not closed")
            text = self.source[self.at : found.start()]
            text = re.sub(r"^\t+", "", text, flags=re.MULTILINE) if tabs else text
            redirect.operator = "<<"
            redirect.target = Word((Literal(text, quoted=True),)) if quoted else self._inside(text)
            self.at = min(found.end() + 1, len(self.source))
            self._heredocs.pop(0)
