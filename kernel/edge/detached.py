"""A kernel in the background, and the words that it was booted with.

`--detach` starts it anew in a session of its own and returns once programs can connect. The words that tell what was
booted, not where and how, are kept beside the journal: the next kernel is booted with them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from llmasos.kernel.edge import lock
from llmasos.syscalls import readiness, runtime
from llmasos.syscalls.atomic_file import replacing, write_all
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.policy_file import located_policy

DETACH_SECONDS = 30.0  # until a detached kernel must answer, or say how far it has come
_HOW = ("--detach", "--die-with-parent", "--hand-over", "--own-runtime", "--quiet", "--debuggable", "--system")


def detach(directory: Path, given: list[str], log: Path | None = None) -> int:
    """Start the kernel anew in a session of its own, and wait until it answers. Its log is `log`, or in the runtime
    directory. Raises OSError, SyscallError."""
    # Refuse here, readably, where another kernel runs. The log of one that died may say why: this one's comes after it.
    lock.release(directory, lock.hold(directory), keep_log=True)
    log = log or directory / runtime.LOG
    command = [*runtime.module("llmasos.kernel.edge.boot"), *without_place(given)]
    place = ["--system"] if "--system" in given else ["--runtime", os.fspath(directory.absolute())]
    command += [*place, "--log", os.fspath(log.absolute())]
    command += ["--debuggable"] if "--debuggable" in given else []
    ready, told = os.pipe()
    private = partial(os.open, mode=0o600)
    with open(log, "ab", opener=private) as output, os.fdopen(ready, "rb") as heard:
        before = output.tell()
        child = subprocess.Popen(
            [*command, "--ready", str(told)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=runtime.environment(),
            pass_fds=[told],
        )
        os.close(told)
        up = readiness.await_ready(heard, DETACH_SECONDS, lambda line: print(line, flush=True))
    # If another kernel was booted at the same moment, that one listens.
    late = up is None
    listens = child.poll() is None and runtime.holder(directory) == child.pid and runtime.listening(directory)
    if up or (late and listens):
        slow = "" if up else "; its devices have not started yet"
        print(f"kernel {child.pid} runs in {directory}; its log is {log}{slow}")
        child.returncode = 0  # it is no longer ours to wait for
        return 0
    if late:
        child.kill()
        child.wait()
        raise Errno.ETIME(f"the kernel did not answer within {DETACH_SECONDS:g} s; its log is {log}")
    child.wait()
    words = log.read_bytes()[before:].decode(errors="replace").strip() if log.exists() else ""
    why = [line for line in words.splitlines() if line.startswith("llmasos boot: ")]  # beside the log's lines
    print("\n".join(why) or words or f"the kernel ended with status {child.returncode}", file=sys.stderr)
    return 1


def without_place(given: list[str]) -> list[str]:
    """The words of the command line that tell what is booted, not where and how: `status` shows them, and a newer version
    that takes over boots with them."""
    words: list[str] = []
    rest = iter(given)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--policy", "--victims", "--evictions"):  # the next kernel is started in a directory of its own
            words.append(f"{name}={located_policy(value if equals else next(rest, ''))}")
        elif name in ("--runtime", "--log", "--ready"):
            if not equals:
                next(rest, None)
        elif name not in _HOW:
            words.append(word)
    return words


def note_words(path: Path, words: list[str]) -> str:
    """Keep the words of the command line beside the journal: who boots the next kernel and says nothing of its own gets
    the same devices and models, which the processes want. Without this file they have to be said. Returns why they could
    not be kept."""
    try:
        with replacing(path) as file:
            write_all(file, json.dumps({"directory": os.getcwd(), "arguments": words}).encode())
    except OSError as error:
        why = f"the words that the next kernel is to be booted with cannot be kept in {path}: {error.strerror or error}"
        return f"{why}; name its devices and models when you boot it"
    return ""
