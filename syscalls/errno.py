"""The errors of LLMasOS: one small enum, shared by kernel, drivers and programs.

Names, and meanings where POSIX has them, are those of errno.h; the numbers are an ABI of our own and never change. seL4's
manual is the model: few errors, each of which says what the caller can do. An errno never travels without a reason, a
sentence that says what was wanted, what was found and what to do.
"""

from __future__ import annotations

import enum
import re

from llmasos.syscalls.printable import printable


class Errno(enum.IntEnum):
    """The outcome of a system call; 0 is success. `Errno.X.advice` says what the caller can do."""

    OK = 0  # success
    EPERM = 1  # a right is missing
    ENOENT = 2  # no such model, file or group
    ESRCH = 3  # no such process
    EINTR = 4  # the call was cancelled
    EIO = 5  # data or device are broken
    E2BIG = 7  # too long for the context
    ENOEXEC = 8  # an architecture that no driver supports
    ECHILD = 10  # no such child
    EAGAIN = 11  # not at the moment
    ENOMEM = 12  # no memory on the device
    EBUSY = 16  # in use
    ENODEV = 19  # no such device
    EINVAL = 22  # a wrong argument
    EPIPE = 32  # the kernel or the peer has gone
    ENOSYS = 38  # no such system call
    ETIME = 62  # not within the time
    EPROTO = 71  # another protocol version
    EMSGSIZE = 90  # a request or reply that is too long
    ENOTSUP = 95  # a feature that the driver or model does not have
    ECONNREFUSED = 111  # no kernel runs there
    ESTALE = 116  # the journal is older than what the program was told
    EDQUOT = 122  # a limit is reached
    ERESTART = 85  # the driver was restarted

    def __call__(self, reason: str, plain: str = "") -> SyscallError:
        """The error of this kind, to be raised: `raise Errno.EBUSY("process 7 is decoding")`."""
        return SyscallError(self, reason, plain)

    @property
    def advice(self) -> str:
        """What the caller can do."""
        return _ADVICE[self]


_ADVICE: dict[Errno, str] = {  # true of every error of the kind
    Errno.OK: "nothing to do",
    Errno.EPERM: "do it as somebody who may; the reason says what is not allowed",
    Errno.ENOENT: "check the name or path that the reason has",
    Errno.ESRCH: "`ps` lists the processes, `jobs` the jobs; a pid is never used again",
    Errno.EINTR: "call again if the result is still wanted",
    Errno.EIO: "mend or replace what the reason names, and try again",
    Errno.E2BIG: "make it shorter, or take what has more room; the reason says how much there is",
    Errno.ENOEXEC: "use what is of a kind that can be run here; the reason says what is",
    Errno.ECHILD: "wait only for your own children",
    Errno.EAGAIN: "try again later, or do first what the reason says",
    Errno.ENOMEM: "evict a model, kill or truncate processes, or give the device more memory",
    Errno.EBUSY: "wait until it is free, or do first what the reason says",
    Errno.ENODEV: "use a device that is there; `devices` lists them, with what is wrong with each",
    Errno.EINVAL: "correct what the reason names",
    Errno.EPIPE: "connect anew; the kernel or peer has gone",
    Errno.ENOSYS: "use a call that this kernel has; client and kernel may be of different versions",
    Errno.ETIME: "allow more time, or find out what is waited for",
    Errno.EPROTO: "use a kernel, drivers and programs of one version",
    Errno.EMSGSIZE: "send less in one call",
    Errno.ENOTSUP: "do without the feature, or use a driver or model that has it",
    Errno.ECONNREFUSED: "boot a kernel (`llmasos boot`), or name the runtime directory of one that runs",
    Errno.ESTALE: "look at what there is (`ps`, `log`), and connect anew: answers of before the kernel's death are lost",
    Errno.EDQUOT: "raise the limit that the reason names, or use less",
    Errno.ERESTART: "call again: the driver was restarted and nothing was lost",
}

# What helps with some errors of a kind, by words of their reasons: the first that fits.
_FITTING: tuple[tuple[Errno, str, str], ...] = (
    (Errno.EPERM, r"passphrase", "give the passphrase that the file was written with"),
    (Errno.EPERM, r"not yours|do not have", "have its owner do it, or the operator of the machine"),
    (Errno.EPERM, r"gave up|needs the right", "attach with the right that this call needs"),
    (Errno.EPERM, r"not trusted", "use a model that [trust] knows, or add its digest or its signer's key there"),
    (Errno.EPERM, r"group of the caller", "name a process of your own group, or of one below it"),
    (Errno.EPERM, r"attach first", "attach first"),
    (
        Errno.EPERM,
        r"\bhub\b|token|terms|redirects|does not let|HF_HUB",
        "give the hub what it asks for, or take the model from elsewhere",
    ),
    (Errno.EPERM, r"client library", "connect by the client library, which shows your files to the kernel"),
    (Errno.EPERM, r"file|director|place|may not be|\bread\b", "name another place, or change who may use it (`ls -l`)"),
    (Errno.ENOENT, r"\bmodel\b", "check the name or path; `models` lists what is known"),
    (Errno.ENOENT, r"\bgroup\b", "check the name or path; `groups` lists what is known"),
    (Errno.EIO, r"has to be audited", "make room for the audit log, or mend what keeps it from being written"),
    (Errno.EIO, r"did not boot", "correct what the reason names, and boot again"),
    (Errno.EIO, r"no space|memory", "free some, or choose another place"),
    (Errno.EIO, r"driver|device|\bstep\b", "read the kernel log (`dmesg`): a device or its driver is broken"),
    (Errno.E2BIG, r"\btokens\b|context|window", "shorten the context, or use a model with a longer one"),
    (Errno.ENOEXEC, r"architecture|model|weights|GGUF|tensor", "use a model whose architecture and form are supported"),
    (Errno.ENOMEM, r"this program", "free memory in this program"),
    (Errno.ECONNREFUSED, r"too many", "try again later"),
    (Errno.EDQUOT, r"disk", "free some of the disk, or name another place"),
    (Errno.EDQUOT, r"weights_max|tokens_total", "raise the limit of the group (`group`), or use less"),
    (Errno.EDQUOT, r"decoded tokens|limits", "raise the limit of the process (`limits`), or use less"),
)


class SyscallError(Exception):
    """A system call failed: `errno` is the kind, `reason` the sentence for people.

    The clients raise it for an errno that the kernel answered. Kernel and drivers raise it inside, and one boundary of
    theirs makes it such an answer.
    """

    errno: Errno
    """The kind of the error."""
    reason: str
    """What was wanted, what was found and what to do."""
    plain: str
    """Within the kernel, the same as others than its operator are told it; empty: in the same words."""

    @property
    def hint(self) -> str:
        """What the caller can do about it."""
        fitting = (hint for errno, words, hint in _FITTING if errno is self.errno and re.search(words, self.reason))
        return next(fitting, self.errno.advice)

    def __init__(self, errno: Errno, reason: str, plain: str = "") -> None:
        self.errno, self.plain = errno, plain
        self.reason = printable(reason, one_line=True)
        super().__init__(f"{errno.name}: {self.reason}")

    def reason_for(self, *, operator: bool) -> str:
        """The reason, as an operator or somebody else is told it."""
        return self.reason if operator or not self.plain else self.plain

    def __reduce__(self) -> tuple[type[SyscallError], tuple[Errno, str, str]]:
        return type(self), (self.errno, self.reason, self.plain)
