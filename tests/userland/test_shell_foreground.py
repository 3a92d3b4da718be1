"""A job in the foreground, and Ctrl-C at any moment of it."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmasos.userland.shell.foreground import foreground
from llmasos.userland.shell.jobs import Pipeline
from tests.booted import eventually


def test_ctrl_c_while_a_job_begins_interrupts_the_job_and_leaves_none_behind() -> None:
    job = Pipeline(cast(Any, None), 1, "a member", None)
    shell = cast(Any, SimpleNamespace(terminal=None, jobs=SimpleNamespace(remove=lambda _: None)))
    before = signal.getsignal(signal.SIGINT)

    def begin() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        member = threading.Thread(target=lambda: eventually(lambda: job.interrupted, "it is interrupted"))
        job.begin([member], lambda: 0)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        foreground(shell, job, begin)
    assert job.done
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_just_after_a_job_has_ended_is_heard_too() -> None:
    job = Pipeline(cast(Any, None), 1, "nothing", None)
    shell = cast(Any, SimpleNamespace(terminal=None))
    shell.jobs = SimpleNamespace(remove=lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        foreground(shell, job, lambda: job.begin([], lambda: 0))
