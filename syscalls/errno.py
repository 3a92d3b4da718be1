"""The errors of LLMasOS: one small enum, shared by kernel, drivers and programs.

Names, and meanings where POSIX has them, are those of errno.h; the numbers are an ABI of our own and never change. seL4's
manual is the model: few errors, each of which says what the caller can do. An errno never travels without a reason, a
sentence that says what was wanted, what was found and what to do.
"""

from __future__ import annotations

import enum

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
    EDQUOT = 122  # a limit is reached
    ERESTART = 85  # the driver was restarted

    def __call__(self, reason: str) -> SyscallError:
        """The error of this kind, to be raised: `raise Errno.EBUSY("process 7 is decoding")`."""
        return SyscallError(self, reason)

    @property
    def advice(self) -> str:
        """What the caller can do."""
        return _ADVICE[self]


_ADVICE: dict[Errno, str] = {
    Errno.OK: "nothing to do",
    Errno.EPERM: "attach with the right that this call needs",
    Errno.ENOENT: "check the name or path; `models` and `groups` list what is known",
    Errno.ESRCH: "list the processes; pids are never reused",
    Errno.EINTR: "call again if the result is still wanted",
    Errno.EIO: "read the kernel log (`dmesg`); the data or the device is broken",
    Errno.E2BIG: "shorten the context, or use a model or device with more room",
    Errno.ENOEXEC: "use a model whose architecture the driver supports",
    Errno.ECHILD: "wait only for your own children",
    Errno.EAGAIN: "try again later",
    Errno.ENOMEM: "evict a model, kill or truncate processes, or give the device more memory",
    Errno.EBUSY: "wait for what is running on the process, or interrupt it",
    Errno.ENODEV: "name a device that `boot_info` lists",
    Errno.EINVAL: "correct the arguments; the reason names the wrong one",
    Errno.EPIPE: "reconnect; the kernel or peer has gone",
    Errno.ENOSYS: "use a call that this kernel has; client and kernel may be of different versions",
    Errno.ETIME: "allow more time, or find out what the process waits for",
    Errno.EPROTO: "use a client of this kernel's protocol version",
    Errno.EMSGSIZE: "send less in one call",
    Errno.ENOTSUP: "do without the feature, or use a driver that declares it",
    Errno.ECONNREFUSED: "boot a kernel (`llmasos boot`), or name the runtime directory of one that runs",
    Errno.EDQUOT: "raise the limit (setlimits) or use less",
    Errno.ERESTART: "call again: the driver was restarted and nothing was lost",
}


class SyscallError(Exception):
    """A system call failed: `errno` is the kind, `reason` the sentence for people.

    The clients raise it for an errno that the kernel answered. Kernel and drivers raise it inside, and one boundary of
    theirs makes it such an answer.
    """

    errno: Errno
    """The kind of the error."""
    reason: str
    """What was wanted, what was found and what to do."""

    @property
    def hint(self) -> str:
        """What the caller can do about an error of this kind."""
        return self.errno.advice

    def __init__(self, errno: Errno, reason: str) -> None:
        self.errno = errno
        self.reason = printable(reason, one_line=True)
        super().__init__(f"{errno.name}: {self.reason}")

    def __reduce__(self) -> tuple[type[SyscallError], tuple[Errno, str]]:
        return type(self), (self.errno, self.reason)
