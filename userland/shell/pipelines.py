"""Pipelines: their members run in threads of this shell, joined by pipes of the operating system.

What carries out a member is the interpreter's; it is handed in, since the interpreter stands above.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from llmasos.userland.shell import directory, pipes
from llmasos.userland.shell.carrying import carry
from llmasos.userland.shell.foreground import foreground, new_job
from llmasos.userland.shell.jobs import Pipeline as Job
from llmasos.userland.shell.session import Session
from llmasos.userland.shell.tree import AndOr, Node, Pipeline, Simple

CarryOut = Callable[[Session, Node], int]
"""Carries out a member, with the streams of a view; returns its status."""


def source(item: AndOr) -> str:
    """What to show of a list, as the source of a job."""

    def of(pipeline: Pipeline) -> str:
        return " | ".join(
            member.source if isinstance(member, Simple) else type(member).__name__.lower() for member in pipeline.members
        )

    return " ".join([of(item.first), *(f"{operator} {of(pipeline)}" for operator, pipeline in item.rest)])


def joined(shell: Session, pipeline: Pipeline, carry_out: CarryOut) -> int:
    """The members of a pipeline, at once. Raises KeyboardInterrupt, after all have ended."""
    statuses = [0] * len(pipeline.members)
    job = shell.job or new_job(shell, source(AndOr(pipeline)), foreground=True)
    views = _views(shell, job, len(pipeline.members))

    def act(position: int) -> None:
        view = views[position]
        directory.own()
        statuses[position] = carry_out(view, pipeline.members[position])
        pipes.close(
            view.screen.out if position < len(views) - 1 else None,
            view.input if position > 0 else None,
        )

    def result() -> int:
        if "pipefail" in shell.variables.switches:
            return next((status for status in reversed(statuses) if status), 0)
        return statuses[-1]

    threads = [
        threading.Thread(target=act, args=(position,), name="llmasos-pipe", daemon=True) for position in range(len(views))
    ]
    if shell.job is not None:  # within another job, in a thread of it
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return result()
    return foreground(shell, job, lambda: job.begin(threads, result))


def links(shell: Session, pipeline: Pipeline) -> bool:
    """Whether it only links agents: none has anything to say yet, and nothing else is joined to them."""
    return shell.job is None and shell.input is None and all(_idles(member) for member in pipeline.members)


def _idles(member: Node) -> bool:
    if not isinstance(member, Simple) or member.text is not None or member.redirects or member.host:
        return False
    return bool(member.words) and member.words[0].plain == "spawn"


def linked(shell: Session, pipeline: Pipeline, carry_out: CarryOut) -> int:
    """`spawn a | spawn b`: agents each of which will be told what the one before it says, as a job in the background."""
    job = new_job(shell, source(AndOr(pipeline)), foreground=False)
    view = shell.view()
    view.job = job
    agents = []
    for member in pipeline.members:
        status = carry_out(view, member)
        if status:
            return status
        agents.append(shell.agent(int(shell.variables.last)))
    threads = [
        threading.Thread(
            target=partial(carry, view, first, second, last=second is agents[-1]), name="llmasos-carry", daemon=True
        )
        for first, second in pairwise(agents)
    ]
    shell.jobs.add(job)
    job.begin(threads, lambda: 0)
    shell.variables.last = f"%{job.number}"
    shell.remark(
        f"%{job.number} what each says is told to the next, carried by this shell: it ends with the shell, and by "
        f"`kill %{job.number}`; `say {agents[0].pid} ...` begins"
    )
    return 0


def _views(shell: Session, job: Job, count: int) -> list[Session]:
    """Views for the members of a pipeline, with pipes between them."""
    views: list[Session] = []
    given = shell.input
    for position in range(count):
        view = shell.subshell()
        view.job, view.input = job, given
        if position < count - 1:
            given, out = pipes.pipe()
            view.redirected(out)
        views.append(view)
    return views
