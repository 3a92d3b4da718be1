"""models, on the command line and in the shell: the kernel's models, and those on the disk. `--found`, `ls`, `du`,
`check`, `pull` and `rm` are about the disk and need no kernel.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from llmasos.modelfiles import check, stores
from llmasos.modelfiles.called import called
from llmasos.syscalls.blocking import Client, connect
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import BootInfoCall, Models
from llmasos.userland.programs import disk, estimate, pull, system
from llmasos.userland.programs.figures import size
from llmasos.userland.programs.listing import Asked, Words, document
from llmasos.userland.programs.screen import Screen

ACTIONS = {
    "ls": "what the hub's cache has",
    "du": "what takes what on disk",
    "pull": "fetch from the hub (what is there stays)",
    "rm": "remove from the cache and what is installed of it",
    "check": "is it whole?",
}


_REFUSALS = (Errno.ENOEXEC, Errno.ENOTSUP, Errno.EIO, Errno.ENOENT, Errno.EINVAL, Errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class Request:
    """The words of the command; without any, it lists the kernel's models."""

    action: str = ""
    names: list[str] = field(default_factory=list)
    found: bool = False
    listing: Asked = field(default_factory=Asked)
    yes: bool = False
    estimate: str = ""
    dtype: str = ""
    device: str = ""
    context: int = 0


def request(line: Words) -> Request:
    """What a command line asks."""
    return Request(
        action=line.text("ACTION"),
        names=line.words,
        found=line.has("--found"),
        listing=Asked.of(line),
        yes=line.has("--yes"),
        estimate=line.text("--estimate"),
        dtype=line.text("--dtype"),
        device=line.text("--device"),
        context=line.integer("--context", 0, least=1),
    )


def run(
    screen: Screen,
    asked: Request,
    where: Path,
    kernel: Callable[[], AbstractContextManager[Client]],
    ask: Callable[[str], str] | None = None,
) -> int:
    """Carry it out; returns the exit status. Opens `kernel` only if it needs one; `ask` asks the person. Raises EINVAL
    for words that exclude each other."""
    if asked.action and asked.action not in ACTIONS:
        raise SyscallError(Errno.EINVAL, f"models has no action {asked.action!r}; there are {', '.join(ACTIONS)}")
    if not asked.estimate and (asked.dtype or asked.device or asked.context):
        raise SyscallError(Errno.EINVAL, "--dtype, --device and --context go with --estimate MODEL")
    if [asked.found, bool(asked.estimate), bool(asked.action)].count(True) > 1:
        what = "--found" if asked.found else "--estimate"
        raise SyscallError(Errno.EINVAL, f"{what} stands by itself; say it without {asked.action or '--estimate'}")
    if asked.found:
        return found(screen, asked.listing)
    if asked.action:
        return act(screen, asked.action, asked.names, where=where, listing=asked.listing, yes=asked.yes, ask=ask)
    with kernel() as client:
        if asked.estimate:
            info = estimate.ask(client, asked.estimate, dtype=asked.dtype, device=asked.device, context=asked.context)
            if asked.listing.json:
                document(screen, info)
            else:
                screen.pairs(estimate.pairs(info))
        else:
            system.MODELS.show(screen, client(Models()), asked.listing)
    return 0


def found(screen: Screen, listing: Asked) -> int:
    """Every model of every store."""
    return _listed(screen, stores.found(), listing, "no model is found in the places where programs keep them")


def act(
    screen: Screen,
    action: str,
    models: list[str],
    *,
    where: Path,
    listing: Asked,
    yes: bool,
    ask: Callable[[str], str] | None = None,
) -> int:
    """Carry out one of ACTIONS; returns the exit status. Raises EINVAL if it does not go with the names."""
    if action in ("ls", "du") and models:
        raise SyscallError(Errno.EINVAL, f"models {action} takes no name, found {models[0]!r}")
    if action in ("pull", "rm", "check") and not models:
        raise SyscallError(Errno.EINVAL, f"models {action} wants the name of a model")
    if action == "ls":
        return _listed(screen, disk.cached(), listing, "the hub's cache has no model; `llmasos models pull` fetches one")
    if action == "du":
        return _usage(screen, listing)
    if action == "check":
        return _check(screen, models, where, listing)
    for model in models:
        if action == "pull":
            pull.pull(screen, model)
        else:
            _remove(screen, model, where, yes, ask)
    return 0


def _listed(screen: Screen, models: list[stores.Found], listing: Asked, nothing: str) -> int:
    disk.FOUND.show(screen, models, listing, nothing)
    return 0


def _usage(screen: Screen, listing: Asked) -> int:
    refused: list[SyscallError] = []
    uses = disk.usage(refused.append)
    disk.USES.show(screen, uses, listing)
    for error in refused:
        print(f"llmasos: {error}", file=sys.stderr)
    if not listing.json:
        screen.line(f"{size(sum(use.size for use in uses))} in all", "bold")
    return 0


def _check(screen: Screen, models: list[str], where: Path, listing: Asked) -> int:
    records = []
    for model in models:
        place, findings = pull.checked(screen, _path_of(model, where), quiet=listing.json)
        if any(one.what == check.CONFIGURATION and one.status == check.OK for one in findings):
            findings.append(_engine(model, place, where))
        records.append(pull.checked_record(model, place, findings))
        if not listing.json:
            if len(models) > 1:
                screen.line(model, "bold")
            pull.FINDINGS.show(screen, findings, listing)
    if listing.json:
        document(screen, records)
    return int(any(record["broken"] or record["refused"] for record in records))


def _path_of(model: str, where: Path) -> str:
    """The path of a model that the running kernel knows by this name, as `models` lists it; else the name itself."""
    if "/" in model or os.path.exists(model):
        return model
    try:
        with connect(where, name="models", reconnect=0.0) as kernel:
            known = {name: row.path for row in kernel(Models()) for name in (row.name, called(row.name)) if row.path}
    except SyscallError as error:
        if error.errno is not Errno.ECONNREFUSED:
            raise
        known = {}
    path = known.get(model, model)
    return path if "/" in path else model


def _engine(model: str, place: Path, where: Path) -> check.Finding:
    """Whether a driver would run the model, in the words of the one that knows: the driver of the kernel's first device
    that is not simulated."""
    try:
        with connect(where, name="models", reconnect=0.0) as kernel:
            device = next((one.name for one in kernel(BootInfoCall()).devices if one.kind != "sim"), None)
            if device is None:
                return check.Finding(
                    check.ENGINE,
                    check.NOTE,
                    f"the kernel of {where} has simulated devices only; they run no files",
                )
            info = estimate.ask(kernel, os.fspath(place.absolute()), device=device)
    except SyscallError as error:
        if error.errno is Errno.ECONNREFUSED:
            return check.Finding(
                check.ENGINE,
                check.NOTE,
                f"whether it can be run was not asked, as no kernel runs in {where}; once one does (`llmasos boot "
                f"--detach`), this and `llmasos models --estimate {shlex.quote(model)}` ask it",
            )
        if error.errno in _REFUSALS:
            return check.Finding(check.ENGINE, check.REFUSED, error.reason)
        return check.Finding(check.ENGINE, check.NOTE, f"whether it can be run was not learnt: {error.reason}")
    if info.refused:
        return check.Finding(check.ENGINE, check.REFUSED, info.refused)
    return check.Finding(check.ENGINE, check.OK, f"{info.device} runs {info.architecture}, here in {info.dtype}")


def _remove(screen: Screen, model: str, where: Path, yes: bool, ask: Callable[[str], str] | None = None) -> None:
    """Remove a model from the disk, after asking (on standard input, unless told otherwise). Raises EBUSY for a model
    that a kernel runs, unless told to remove it all the same."""
    removed = disk.removal(model)
    using = disk.users(_known(where), removed)
    if using and not yes:
        raise SyscallError(
            Errno.EBUSY,
            f"the kernel of {where} has {', '.join(using)} loaded; evict it first, or remove it with --yes all the same",
        )
    what = f"{removed.repo or model}: {size(removed.size)}" + (f", {len(removed.made)} installed" if removed.made else "")
    if not yes:
        if ask is None and not sys.stdin.isatty():
            raise SyscallError(Errno.EINVAL, f"rm asks before it removes {what}, and nobody is there to answer: --yes")
        if (ask or input)(f"remove {what}? [y/N] ").strip().lower() not in ("y", "yes"):
            screen.line("nothing was removed")
            return
    removed.act()
    screen.line(f"removed {what}")
    if using:
        screen.line(f"the kernel goes on with what it has in memory of {', '.join(using)}; once evicted it is gone")


def _known(where: Path) -> list[tuple[str, str]]:
    """The models on a device of the running kernel, if one runs: name and path."""
    try:
        with connect(where, name="models", reconnect=0.0) as kernel:
            return [(called(row.name), row.path) for row in kernel(Models()) if row.device]
    except SyscallError as error:
        if error.errno is Errno.ECONNREFUSED:
            return []
        raise
