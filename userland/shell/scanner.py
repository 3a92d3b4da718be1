"""The tokens of the shell's language.

A scanner of our own, because what a word is depends on the command: `say` and `spawn NAME` take the rest of the line as
it stands (`Scanner.text`), and an apostrophe within a word (o'brien) opens no quotes. A simple command is one token:
syntax.py's grammar is about what stands between them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmasos.userland.shell.grammar import Command, Kind, UsageError
from llmasos.userland.shell.tree import Literal, Part, Redirect, Script, Simple, Substitution, Sum, Variable, Word


class Incomplete(UsageError):
    """The text ends where more is needed: another line may complete it."""


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
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]|[?$!#@*]")
_BRACED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?$!#@*])(:[-+=?]|[-+=?]|##?|%%?)?")
_LENGTH = re.compile(r"\$\{#([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*])\}")
_ESCAPED = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{1,4}|U[0-9A-Fa-f]{1,8}|0?[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "v": "\v"}
_BLANKS = " \t"
_ENDS = " \t\n;&|<>()"  # of a word that is not quoted
LONE = "|<>"  # behind `spawn NAME`, one of these by itself begins no text


def unescaped(text: str) -> str:
    """Text with its escapes as `$'...'` and `echo -e` have them: `\\t`, `\\x41`, `\\u00e9`, `\\101`."""

    def character(found: re.Match[str]) -> str:
        said = found[1]
        if said[0] in "xuU" and len(said) > 1:
            return chr(int(said[1:], 16)) if int(said[1:], 16) <= sys.maxunicode else "\ufffd"
        if said[0] in "01234567":
            return chr(int(said, 8))
        return _ESCAPES.get(said, said if said in "\\'\"?" else found[0])

    return _ESCAPED.sub(character, text)


@dataclass
class Symbol:
    """A token: its type for the grammar, and what it carries."""

    type: str
    value: Any
    source: str
    start: int


class Scanner:
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
        self.source, self.at = source, start
        self._first_line = first_line
        self._forms, self._aliases, self._build = forms, aliases, build
        self._closing, self._whole_text = closing, whole_text
        self._depth = 0  # of parentheses within a `$(`
        self._cases = 0  # `case` that have not met their `esac`
        self._heredocs: list[tuple[Redirect, str, bool]] = []  # that begin at the next end of line
        self.symbols: list[Symbol] = []
        self.command = self.at  # where the last simple command begins, for completion

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
            if self.source[self.at] in _ENDS:
                raise UsageError(f"`;` or the end of the line ends the words of for, found {self._near()!r}")
            words.append(self.word())

    def _case(self) -> Word:
        """The head of `case WORD in`."""
        self._skip_blanks()
        if self.at < len(self.source) and self.source[self.at] in _ENDS:
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
            if self.source[self.at] in _ENDS:
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
            if self.source[self.at] in _ENDS:
                break
            if other := _OTHER_DESCRIPTOR.match(self.source, self.at):
                raise UsageError(f"{other[0]!r}: there are no descriptors but 0, 1 and 2 here, as in `2> errors`")
            assigned = ASSIGNMENT.match(self.source, self.at) if not simple.words and not simple.host else None
            if assigned:
                self.at = assigned.end()
                empty = self.at >= len(self.source) or self.source[self.at] in _ENDS
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

    # --- free text ---

    def _text_command(self, simple: Simple, form: Command) -> None:
        """The words of `say PID [OPTIONS] TEXT` and its like."""
        options = {option.flag: option for option in form.options}
        places = [param for param in form.params if not param.flagged]
        text = next(param for param in places if param.kind is Kind.TEXT)
        left = places.index(text)
        while True:
            self._skip_blanks(comments=False)
            if self.at >= len(self.source) or self.source[self.at] == "\n":
                return
            if self._closing and self._depth == 0 and self.source[self.at] == ")":
                return
            dashed = re.compile(r"--?[A-Za-z][A-Za-z-]*").match(self.source, self.at)
            option = options.get(dashed[0]) if dashed else None
            if option is not None or (dashed is not None and dashed[0].startswith("--")):
                word = self.word()
                simple.words.append(word)
                if option is not None and option.kind is not None and "=" not in word.source:
                    self._skip_blanks(comments=False)
                    if self.at < len(self.source) and self.source[self.at] not in _ENDS:
                        simple.words.append(self.word())
                continue
            if left > 0:
                if self.source[self.at] in _ENDS:
                    return
                simple.words.append(self.word())
                left -= 1
                continue
            if (not text.required or self._receives) and self._operator():
                return
            simple.text = self.text(simple)
            return

    @property
    def _receives(self) -> bool:
        """Whether something comes in by a pipe, so that there need be no text."""
        return bool(self.symbols) and self.symbols[-1].type == "PIPE"

    def _operator(self) -> bool:
        """Whether an operator stands where a text could: one of LONE by itself, or what no text begins with."""
        after = self.source[self.at + 1 : self.at + 2]
        lone = self.source[self.at] in LONE and (after == "" or after.isspace())
        return lone or self.source.startswith((";", "&&", "||"), self.at)

    def text(self, simple: Simple) -> Word | None:
        """The free text at the cursor. In quotes that close before a blank or the end, with an operator or nothing behind
        them: what is in the quotes, and the rest of the line is grammar. Else the rest of the line as it stands, but for
        a last ` &`; within `$(...)` up to its parenthesis."""
        start = self.at
        quoted = self._quoted_text()
        if quoted is not None:
            return quoted
        self.at = start
        end = len(self.source) if self._whole_text else self.source.find("\n", start)
        end = len(self.source) if end < 0 else end
        if self._closing:
            end = self._unbalanced(start, end)
        text = self.source[start:end].rstrip()
        self.at, simple.verbatim = end, True
        if text == "&" or text.endswith((" &", "\t&")):
            self.at = start + len(text) - 1  # grammar: the command goes to the background
            text = text[:-1].rstrip()
        return Word((Literal(text, quoted=True),), text, start) if text else None

    def _quoted_text(self) -> Word | None:
        if self.source[self.at] not in "\"'":
            return None
        start = self.at
        line = self.source.find("\n", start)
        try:
            parts = self._quoted()
        except UsageError:  # it is not closed: an apostrophe
            return None
        if line >= 0 and self.at > line and not self._whole_text:
            return None
        behind = self.source[self.at : self.at + 1]
        word = Word(tuple(parts) or (Literal("", quoted=True),), self.source[start : self.at], start)
        if behind and not behind.isspace() and behind not in ";&|<>)":
            return None
        at = self.at
        self._skip_blanks()
        behind = self.source[self.at : self.at + 1]
        self.at = at
        return word if behind == "" or behind in "\n;&|<>)" or self._redirects_errors() else None

    def _redirects_errors(self) -> bool:
        return re.compile(r"[ \t]*[12]>").match(self.source, self.at) is not None

    def _unbalanced(self, start: int, end: int) -> int:
        depth = 0
        for index in range(start, end):
            depth += {"(": 1, ")": -1}.get(self.source[index], 0)
            if depth < 0:
                return index
        return end

    # --- words ---

    def word(self) -> Word:
        """The word at the cursor, which is neither blank nor an operator."""
        start = self.at
        parts: list[Part] = []
        plain = ""

        def keep() -> None:
            nonlocal plain
            if plain:
                parts.append(Literal(plain))
                plain = ""

        while self.at < len(self.source) and (character := self.source[self.at]) not in _ENDS:
            if character == "\\":
                if self.at + 1 >= len(self.source):
                    raise Incomplete("the line ends with a backslash, so that the next one belongs to it")
                keep()
                if self.source[self.at + 1] != "\n":
                    parts.append(Literal(self.source[self.at + 1], quoted=True))
                self.at += 2
            elif character in "\"'" and not (character == "'" and plain and plain[-1].isalnum()):
                keep()
                parts += self._quoted() or [Literal("", quoted=True)]
            elif character == "`":
                raise UsageError("a backquote runs no command here: write $(COMMAND), or quote it")
            elif character == "$" and (part := self._dollar(quoted=False)) is not None:
                keep()
                parts.append(part)
            else:
                plain += character
                self.at += 1
        keep()
        return Word(tuple(parts), self.source[start : self.at], start)

    def _quoted(self) -> list[Part]:
        """What is in the quotes at the cursor."""
        quote, start = self.source[self.at], self.at
        self.at += 1
        if quote == "'":
            end = self.source.find("'", self.at)
            if end < 0:
                self.at = start
                raise Incomplete("the quote ' is not closed")
            text, self.at = self.source[self.at : end], end + 1
            return [Literal(text, quoted=True)]
        parts: list[Part] = []
        plain = ""
        while self.at < len(self.source) and (character := self.source[self.at]) != '"':
            if character == "\\" and self.source[self.at + 1 : self.at + 2] in ('"', "\\", "$", "`", "\n"):
                plain += self.source[self.at + 1].replace("\n", "")
                self.at += 2
            elif character == "$" and (part := self._dollar(quoted=True)) is not None:
                if plain:
                    parts.append(Literal(plain, quoted=True))
                plain = ""
                parts.append(part)
            else:
                plain += character
                self.at += 1
        if self.at >= len(self.source):
            self.at = start
            raise Incomplete('the quote " is not closed')
        self.at += 1
        if plain:
            parts.append(Literal(plain, quoted=True))
        return parts

    def _dollar(self, *, quoted: bool) -> Part | None:
        """What begins with the `$` at the cursor; None if that is only a character."""
        start = self.at
        if self.source.startswith("$((", start):
            return self._sum(quoted=quoted)
        if self.source.startswith("$(", start):
            inner = Scanner(
                self.source,
                self._forms,
                self._aliases,
                self._build,
                start + 2,
                closing=True,
                first_line=self._first_line,
            )
            symbols = inner.read()
            self.source = inner.source  # aliases may have been replaced in it
            if not self.source.startswith(")", inner.at):
                raise Incomplete("the parenthesis of $( is not closed")
            self.at = inner.at + 1
            return Substitution(self._build(symbols), quoted)
        if found := _LENGTH.match(self.source, start):
            self.at = found.end()
            return Variable(found[1], quoted, "length")
        if self.source.startswith("${", start):
            return self._braced(quoted=quoted)
        if not quoted and self.source.startswith("$'", start):
            return self._escapes()
        found = _PARAMETER.match(self.source, start + 1)
        if found is None:
            return None
        self.at = found.end()
        return Variable(found[0], quoted)

    def _braced(self, *, quoted: bool) -> Variable:
        start = self.at
        found = _BRACED.match(self.source, start + 2)
        if found is None:
            raise UsageError(f"${{NAME}} or ${{NAME:-WORD}} is wanted, found {self.source[start : start + 20]!r}")
        self.at = found.end()
        end = self._closing_brace(self.at)
        if not found[2] and end != self.at:
            raise UsageError(f"${{NAME}} or ${{NAME:-WORD}} is wanted, found {self.source[start : end + 1]!r}")
        within, operator = self.source[self.at : end], found[2] or ""
        word = None
        if operator[:1] in ("#", "%"):
            word = self._pattern(within)
        elif operator:
            word = self._operand(within, quoted=quoted)
        self.at = end + 1
        return Variable(found[1], quoted, operator, word)

    def _closing_brace(self, at: int) -> int:
        depth = 0
        while at < len(self.source):
            if self.source[at] == "\\":
                at += 1
            elif self.source.startswith("${", at):
                depth += 1
            elif self.source[at] == "}":
                if depth == 0:
                    return at
                depth -= 1
            at += 1
        raise Incomplete("the brace of ${ is not closed")

    def _operand(self, text: str, *, quoted: bool) -> Word:
        """The word of `${x:-word}`: in double quotes it is quoted too, and then ' is a character."""
        scanner = Scanner(text, self._forms, self._aliases, self._build, first_line=self._first_line)
        parts: list[Part] = []
        while scanner.at < len(scanner.source):
            character = scanner.source[scanner.at]
            if character == '"' or (character == "'" and not quoted):
                parts += scanner._quoted()
            elif character == "$" and (part := scanner._dollar(quoted=quoted)) is not None:
                parts.append(part)
            else:
                scanner.at += 1 + (character == "\\" and scanner.at + 1 < len(scanner.source))
                parts.append(Literal(scanner.source[scanner.at - 1], quoted=True))
        return Word(tuple(parts), text)

    def _pattern(self, text: str) -> Word:
        """The pattern of `${x%...}`: a word, in which what is quoted is no pattern."""
        scanner = Scanner(text, self._forms, self._aliases, self._build)
        word = scanner.word() if text else Word()
        if scanner.at < len(text):
            raise UsageError(f"a pattern with {text[scanner.at]!r} in it is quoted, as in `${{x%' ' *}}`")
        return word

    def _escapes(self) -> Literal:
        """`$'...'`."""
        found = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL).match(self.source, self.at)
        if found is None:
            raise Incomplete("the quote $' is not closed")
        self.at = found.end()
        return Literal(unescaped(found[1]), quoted=True)

    def _sum(self, *, quoted: bool) -> Sum:
        start, depth = self.at, 0
        for index in range(start + 1, len(self.source)):
            depth += {"(": 1, ")": -1}.get(self.source[index], 0)
            if depth == 0:
                break
        else:
            raise Incomplete("the parentheses of $(( are not closed")
        if not self.source.startswith("))", index - 1):
            raise UsageError(f"$((...)) is wanted, found {self.source[start : index + 1]!r}")
        inside = re.sub(r"(?<![\w$])([A-Za-z_]\w*)", r"$\1", self.source[start + 3 : index - 1])
        self.at = index + 1
        return Sum(self._inside(inside), quoted)

    def _redirect(self, operator: str) -> Redirect:
        operator = operator.removeprefix("1").replace(">|", ">")
        if operator in ("2>&1", ">&2"):
            return Redirect(operator, Word())
        self._skip_blanks()
        if self.at >= len(self.source) or self.source[self.at] in _ENDS:
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

    def _skip_blanks(self, *, comments: bool = True) -> None:
        while self.at < len(self.source):
            if self.source[self.at] in _BLANKS:
                self.at += 1
            elif self.source.startswith("\\\n", self.at):
                self.at += 2
            elif comments and self.source[self.at] == "#":
                end = self.source.find("\n", self.at)
                self.at = len(self.source) if end < 0 else end
            else:
                return

    def _near(self) -> str:
        return self.source[self.at : self.at + 20].split("\n")[0] or "the end of the line"

    def _inside(self, text: str) -> Word:
        """A text as within double quotes."""
        escaped = re.sub(r'(?<!\\)"', r"\"", text)
        scanner = Scanner(f'"{escaped}"', self._forms, self._aliases, self._build)
        return Word(tuple(scanner._quoted()), text)
