"""The line editor of an interactive shell, by prompt_toolkit: history, search (Ctrl-R), completion, lines that go on.

prompt_toolkit does all of what readline does from Python and draws below the line too, on any terminal and without a C
library. It is kept from asking the terminal where the cursor is (CPR): the answer comes when the terminal likes, and to
whoever reads by then.
"""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import HTML, FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from llmasos.userland.shell import syntax
from llmasos.userland.shell.completion import ShellCompleter
from llmasos.userland.shell.script import whole
from llmasos.userland.shell.situation import fitted
from llmasos.userland.shell.words import COMMANDS

if TYPE_CHECKING:
    from llmasos.userland.shell.session import Session
    from llmasos.userland.shell.situation import Situation

PROMPT = HTML("<b><ansicyan>llmasos</ansicyan></b>&gt; ")
PLAIN_PROMPT = "llmasos> "


class _Kept(FileHistory):
    """A history that leaves out lines that begin with a blank, as bash does with HISTCONTROL=ignorespace."""

    def append_string(self, string: str) -> None:
        if not string.startswith(" "):
            super().append_string(string)


class _Output(Vt100_Output):
    """A terminal that is never asked where its cursor is. Below the line there is room for what is drawn there: where
    there is none, it scrolls."""

    def get_rows_below_cursor_position(self) -> int:
        return 1

    @property
    def responds_to_cpr(self) -> bool:
        return False


class Current:
    """stdout, for what may be printed while a line is edited: then it appears above the line. (Elsewhere it is stdout
    itself, whatever a library puts in its place.)"""

    def __init__(self) -> None:
        self._stdout = sys.stdout
        self.editing = False

    @property
    def _file(self) -> TextIO:
        return sys.stdout if self.editing else self._stdout

    def write(self, text: str) -> int:
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()

    def isatty(self) -> bool:
        return self._stdout.isatty()

    def fileno(self) -> int:
        return self._stdout.fileno()

    @property
    def encoding(self) -> str:
        return self._stdout.encoding

    @contextmanager
    def above(self) -> Iterator[None]:
        """Within this a line is edited."""
        with patch_stdout(raw=True):
            self.editing = True
            try:
                yield
            finally:
                self.editing = False


class Editor:
    """Reads lines from a person. `say` is called with a line about a history that cannot be kept."""

    def __init__(self, shell: Session, situation: Situation, current: Current, say: Callable[[str], object]) -> None:
        self._shell, self._situation, self._current = shell, situation, current
        self._say = say
        self._output = _Output.from_pty(cast(TextIO, sys.stdout), term=os.environ.get("TERM"))
        self._lines = self._history("history")
        self._prompt: PromptSession[str] = PromptSession(
            PROMPT if shell.front.colour else PLAIN_PROMPT,
            color_depth=None if shell.front.colour else ColorDepth.DEPTH_1_BIT,
            output=self._output,
            history=self._lines,
            multiline=True,
            prompt_continuation=lambda width, number, wrapped: "> ".rjust(width),
            key_bindings=self._keys(),
            completer=ShellCompleter(COMMANDS, shell.glance, shell),
            auto_suggest=AutoSuggestFromHistory(),
            complete_while_typing=False,
            bottom_toolbar=self._toolbar,
            style=Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"}),
            enable_suspend=True,
        )
        # A signal tells of a new size; an idle shell is not woken twice a second to look.
        self._prompt.app.terminal_size_polling_interval = None
        self._answers: dict[str, PromptSession[str]] = {}
        situation.shown = self._prompt.app.invalidate
        self._prompt.default_buffer.on_text_changed += lambda _: situation.glance()

    def line(self) -> str:
        """The next command, of several lines where it takes them. Raises EOFError, KeyboardInterrupt."""
        self._situation.look()
        with self._current.above():
            return self._prompt.prompt()

    def ask(self, prompt: str) -> str:
        """A line of another kind, with a history of its own: kept for `chat`, for yes and no only while this runs."""
        if prompt not in self._answers:
            history = self._history("chat_history") if prompt.startswith("you") else InMemoryHistory()
            self._answers[prompt] = PromptSession(output=self._output, history=history)
        with self._current.above():
            return self._answers[prompt].prompt(prompt)

    def forget_typed(self) -> None:
        """What has been typed for the next prompt is not meant any more."""
        clear_typeahead(self._prompt.app.input)
        with suppress(termios.error):  # the terminal has hung up
            termios.tcflush(sys.stdin, termios.TCIFLUSH)

    def lines(self) -> list[str]:
        """The lines of this session and earlier ones, the oldest first."""
        return list(self._lines.get_strings())

    def _toolbar(self) -> FormattedText:
        width = self._output.get_size().columns
        return FormattedText([("class:bottom-toolbar.text", f" {fitted(self._situation.text, width - 2)}")])

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
        def accept(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            text = buffer.text
            if is_text(self._shell, text) or whole(self._shell, text):
                buffer.validate_and_handle()
            else:
                buffer.cursor_position = len(text)
                buffer.newline(copy_margin=False)

        @keys.add("c-d", filter=has_focus(DEFAULT_BUFFER))
        def end(event: KeyPressEvent) -> None:
            """At the end of a text that goes on: no more of it comes, and what is missing is said. In an empty line: the
            end of the shell."""
            buffer = event.current_buffer
            if not buffer.text:
                event.app.exit(exception=EOFError)
            elif "\n" in buffer.text and buffer.document.is_cursor_at_the_end:
                buffer.validate_and_handle()
            else:
                buffer.delete()

        return keys

    def _history(self, name: str) -> History:
        """The lines of earlier sessions, in a file that the user alone can read."""
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        path = state / "llmasos" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            path.chmod(0o600)
        except OSError as error:
            self._say(f"the history of this session will not be kept: {error}")
            return InMemoryHistory()
        return _Kept(path)


def is_text(shell: Session, text: str) -> bool:
    """Whether several lines, as they are pasted, are the text of their first command."""
    return "\n" in text.strip() and syntax.takes_text(text, COMMANDS, shell.variables.aliases)
