"""`top`, as the shell and the command line start it: full-screen on a terminal, one look in plain text elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.programs.screen import Screen
from llmasos.userland.top import plain
from llmasos.userland.top.live import Client, Done, Live, Trouble
from llmasos.userland.top.player import Player
from llmasos.userland.top.record import Writer, read
from llmasos.userland.top.sample import take

SECONDS = 2.0  # between two samples
SECONDS_MIN = 0.1
_LOOK_SECONDS = 0.5  # what one look takes at most
# What textual sets, or what is set here while it runs.
_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT, signal.SIGTTOU,
    signal.SIGTTIN,
)  # fmt: skip


def run(
    screen: Screen,
    kernel: Client,
    *,
    seconds: float = SECONDS,
    once: bool = False,
    record: str = "",
    again: Callable[[], Client] | None = None,
) -> None:
    """Show the kernel until `q`; with `once`, or without a terminal, print one look. `record` names a new file for what
    is seen; without a terminal it is written until Ctrl-C. `again` connects to the kernel's successor.

    Raises SyscallError: ENOTSUP where textual is not installed, EINVAL where the file exists.
    """
    full = not once and screen.terminal and sys.stdin.isatty()
    if full:
        _check_textual()
    writer = Writer(record) if record else None
    if full:
        _open(Live(kernel, seconds, writer, again), None)
    elif writer is not None and not once:
        _record(screen, Live(kernel, seconds, writer, again), record)
    else:
        before = take(kernel)
        time.sleep(min(seconds, _LOOK_SECONDS))
        now = take(kernel)
        if writer is not None:
            writer.add(before)
            writer.add(now)
            writer.close()
        plain.show(screen, before, now)


def replay(screen: Screen, path: str, *, once: bool = False) -> None:
    """Show a recording; with `once`, or without a terminal, print its last sample. No kernel is needed. Raises
    SyscallError."""
    recording = read(path)
    if once or not screen.terminal or not sys.stdin.isatty():
        before, now = ([*recording.moments][-2:] * 2)[-2:]
        plain.show(screen, before.sample, now.sample)
        return
    _check_textual()
    _open(None, Player(recording))


def _check_textual() -> None:
    try:
        import textual  # noqa: F401 - only whether it is there
    except ImportError:
        raise SyscallError(
            Errno.ENOTSUP,
            "the full-screen `top` needs textual, which is not installed: pip install textual; `top --once` does without",
        ) from None


def _open(live: Live | None, player: Player | None) -> None:
    from llmasos.userland.top.app import TopApp

    app = TopApp(live, player)
    with _signals_kept():
        try:
            app.run()
        finally:
            if live is not None:
                live.stop()
    if app.return_code:  # textual has printed the traceback
        raise SyscallError(Errno.EIO, "`top` has ended by a fault of its own, which stands above; please report it")
    if app.ended_by in (signal.SIGTERM, signal.SIGHUP):
        signal.raise_signal(app.ended_by)  # the terminal is as it was: now it may do what it does elsewhere


def _record(screen: Screen, live: Live, path: str) -> None:
    """Without a terminal: until the program is interrupted."""
    ended = threading.Event()

    def hear(news: object) -> None:
        if isinstance(news, Trouble):
            screen.error(news.why or "the kernel answers again")
        elif isinstance(news, Done):
            screen.error(news.said)

    live.start(hear)
    screen.line(f"recording into {path}; Ctrl-C ends")
    try:
        ended.wait()
    except KeyboardInterrupt:
        pass
    finally:
        live.stop()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """What signals do is afterwards as before: textual leaves handlers of its own behind."""
    kept = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if handler is not None:
                signal.signal(number, handler)
