"""The commands for process images: checkpoint, restore."""

from __future__ import annotations

from llmasos.syscalls.printable import printable
from llmasos.userland.programs import images
from llmasos.userland.programs.listing import document
from llmasos.userland.shell.arrival import arrival
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.session import Session, does


@does("checkpoint")
def _checkpoint(shell: Session, line: Line) -> None:
    pid = shell.pid(line.text("PID"), agent=True)
    kv, secret = not line.has("--no-kv"), line.text("--passphrase-file")
    written, said = images.checkpoint(shell.kernel, pid, line.text("FILE"), kv=kv, passphrase_file=secret)
    if line.has("--json"):
        document(shell.screen, written)
    else:
        shell.screen.line(said)


@does("restore")
def _restore(shell: Session, line: Line) -> None:
    name = line.text("NAME")
    if name.isdigit() or name.startswith("-"):
        raise UsageError(f"a name may not be a number or begin with `-`, found {name!r}")
    with arrival(shell):
        info, said = images.restore(
            shell.kernel,
            line.text("FILE"),
            name=name,
            device=line.text("--device"),
            model=line.text("--model"),
            detached=shell.lets_live(line),
            passphrase_file=line.text("--passphrase-file"),
            shown=lambda text: printable(text, one_line=True),
        )
    if line.has("--json"):
        document(shell.screen, info)
    else:
        shell.screen.line(said)
    if info.decoding:
        shell.in_background(info.pid, printable(info.name, one_line=True))
