"""How commands end other than by a status of their own: by an error, a `break`, the end of the shell, Ctrl-C.

Errors of calls are printed where the command is carried out, and become its status: 1 for an error of a call, 2
for a wrong line. Where the kernel has gone a script ends; somebody's shell stays.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.programs.screen import Unwritable
from llmasos.userland.shell import expansion
from llmasos.userland.shell.grammar import UsageError, status_of
from llmasos.userland.shell.session import INTERRUPTED, Session
from llmasos.userland.shell.tty import Interrupted

BROKEN_PIPE = 141  # 128 + SIGPIPE
STOPPED = 128 + signal.SIGTSTP
MAX_DEPTH = 50  # of functions that call functions, and of substitutions
_local = threading.local()


class Ended(Exception):
    """The shell, or subshell, ends; its `status` says how."""


class CutOff(Interrupted):
    """The kernel has gone for good: a line at the prompt ends, and the shell stays. As Ctrl-C, it ends loops."""


class Left(Exception):
    """`break` and `continue` leave `levels` loops; `return` leaves a function, or a file that is read."""

    def __init__(self, how: str, amount: int) -> None:
        super().__init__(f"{how} outside of what it leaves")
        self.how, self.amount = how, amount


def goes_on(left: Left) -> bool:
    """Whether the loop goes on after `break` or `continue` in its body. Raises what is meant for an outer one."""
    if left.how == "return":
        raise left
    if left.amount > 1:
        raise Left(left.how, left.amount - 1)
    return left.how == "continue"


def leave_by_errexit(shell: Session, status: int) -> None:
    if "errexit" in shell.variables.switches and shell.status is None:
        shell.status = status


def failed(shell: Session, error: SyscallError) -> int:
    """Print an error; returns the status that it is. If the kernel has gone, a script ends; somebody's shell stays."""
    if not (isinstance(error, Unwritable) and error.told):
        shell.complain(error)
    if isinstance(error, expansion.Unset) and not shell.interactive:
        shell.status = 1
    if error.errno is Errno.EPIPE and not shell.alive():
        if shell.interactive:
            shell.outage.lost()
        else:
            shell.status = 1
    return status_of(error)


def reported(shell: Session, error: SyscallError) -> int:
    """Print the error of a command; returns the status that it is. Raises CutOff if the kernel has gone."""
    status = failed(shell, error)
    if shell.outage.gone and error.errno is Errno.EPIPE:
        raise CutOff from None
    return status


def guarded(view: Session, act: Callable[[], int]) -> int:
    """Carry out what a thread is for; whatever ends it becomes a status."""
    try:
        return act()
    except BrokenPipeError:
        return BROKEN_PIPE
    except SyscallError as error:
        return failed(view, error)
    except Ended:
        return view.status or 0
    except Left as left:
        return left.amount if left.how == "return" else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # nobody else sees what a thread raises
        view.screen.error(f"EIO: {type(error).__name__}: {error}")
        return 1


@contextmanager
def deeper(refusal: str) -> Iterator[None]:
    """What is carried out within this stands in something of its kind. Raises EINVAL with `refusal` where that is so more
    than MAX_DEPTH times."""
    depth = getattr(_local, "depth", 0)
    if depth >= MAX_DEPTH:
        raise UsageError(refusal)
    _local.depth = depth + 1
    try:
        yield
    finally:
        _local.depth = depth
