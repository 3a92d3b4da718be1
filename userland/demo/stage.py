"""The presentation of the tour: headings, short explanations, the commands that a person would type, and checked claims.

On a terminal there are colours and short pauses; elsewhere it is plain text without waiting. It never asks for input.
"""

from __future__ import annotations

import time

from llmasos.userland.programs.screen import Screen

WIDTH = 78
PAUSE_SECONDS = 1.2


class ClaimFailed(Exception):
    """A claim of the tour does not hold here."""


class Stage:
    """Presents the tour on a screen. `fast` leaves the pauses out, and so does a screen that is no terminal."""

    def __init__(self, screen: Screen, *, fast: bool) -> None:
        self.screen = screen
        self._pause = PAUSE_SECONDS if screen.terminal and not fast else 0.0
        self._act = 0
        self.claims = 0

    def act(self, title: str) -> None:
        """Open an act."""
        self.pause()
        self._act += 1
        self.screen.line()
        self.screen.line(f"── {self._act}. {title} ".ljust(WIDTH, "─"), "bold cyan")

    def tell(self, text: str) -> None:
        """Explain."""
        import textwrap

        self.screen.line(textwrap.fill(" ".join(text.split()), WIDTH))
        self.pause()

    def typed(self, command: str) -> None:
        """The command that a person would type in the shell for this."""
        self.screen.line(f"llmasos> {command}", "bold")

    def say(self, who: str, text: str) -> None:
        """A line that an agent or a person said."""
        self.screen.write(f"{who:>9}: ", "cyan")
        self.screen.line(text)

    def claim(self, holds: bool, claim: str, otherwise: str = "") -> None:
        """Check a claim: print it, or raise ClaimFailed with the facts."""
        if not holds:
            self.screen.line(f"  ✗ {claim}", "bold red")
            raise ClaimFailed(f"{claim}: {otherwise}" if otherwise else claim)
        self.claims += 1
        self.screen.line(f"  ✓ {claim}", "green")

    def pause(self) -> None:
        if self._pause:
            time.sleep(self._pause)
