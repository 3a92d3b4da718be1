"""From the command line to a running kernel: `python -m llmasos.kernel.edge.boot`.

The boot sequence is that of any daemon: read the configuration, take the runtime directory (refusing politely where
another kernel has it), build the core, open the sockets, serve until halted, clean up. In the foreground the kernel log
goes to the terminal; with --detach it goes to a file, and the command returns once programs can connect.

A halt ends the processes. A signal that ends the kernel (logout, reboot, Ctrl-C) does not, where it keeps a journal: the
next kernel goes on with them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import stat
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from llmasos.kernel.core import Kernel
from llmasos.kernel.edge import boot_config, lock, service, settings
from llmasos.kernel.edge.audit_file import open_audit
from llmasos.kernel.edge.audit_keeper import AuditKeeper
from llmasos.kernel.edge.console import console, open_log
from llmasos.kernel.edge.copies import PLACE as COPIES
from llmasos.kernel.edge.detached import detach, note_words, without_place
from llmasos.kernel.edge.ending import every, reasons
from llmasos.kernel.edge.figures import hidden
from llmasos.kernel.edge.files import Files
from llmasos.kernel.edge.garbage import short_pauses
from llmasos.kernel.edge.guards import Watchdog, end_kernel, stop_watching
from llmasos.kernel.edge.hand_over import relieve
from llmasos.kernel.edge.images import Images
from llmasos.kernel.edge.journal_file import Opened, open_journal
from llmasos.kernel.edge.journal_keeper import Fsync
from llmasos.kernel.edge.keys import Keys, keys_of
from llmasos.kernel.edge.listening import PRIVATE, Reach
from llmasos.kernel.edge.machine import stamp
from llmasos.kernel.edge.place import Place
from llmasos.kernel.edge.policies import FOLDER, Modules
from llmasos.kernel.edge.progress import Progress
from llmasos.kernel.edge.server import Server
from llmasos.kernel.edge.server_key import authorized_keys, server_key
from llmasos.kernel.edge.standing import MARK, Standing
from llmasos.kernel.events import Event
from llmasos.syscalls import runtime, undumped
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.spare_memory import one_pool
from llmasos.syscalls.version import version

if TYPE_CHECKING:  # what encrypts is loaded where the kernel listens to other machines
    from llmasos.kernel.edge.gate import Gate

_NEVER: Fsync = "never"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llmasos boot", description="Boot an LLMasOS kernel.")
    add = parser.add_argument
    add("--runtime", metavar="DIR", help=f"runtime directory (default: {runtime.own()})")
    add("--system", action="store_true", help=f"the kernel of this machine, for all its users, in {runtime.system()}")
    add("--unit", action="store_true", help="with --system: print the systemd unit that boots it")
    add("--config", metavar="FILE.toml", help="configuration file (default: $XDG_CONFIG_HOME/llmasos/kernel.toml)")
    add("--device", metavar="KIND[:K=V,...]", action="append", default=[], help="a device, e.g. cpu:threads=2")
    add("--policy", metavar="NAME", default="", help="scheduling policy of every device, or FILE.py:CLASS")
    add("--victims", metavar="NAME", default="", help="which process loses its pages first, or FILE.py:CLASS")
    add("--evictions", metavar="NAME", default="", help="which model's weights go first, or FILE.py:CLASS")
    add("--max-runs", metavar="N", type=_positive, default=0, help="processes in one step at most")
    add("--step-tokens", metavar="N", type=_positive, default=0, help="tokens in one step at most")
    add("--model", metavar="NAME=PATH", action="append", default=[], help="a model to know by name")
    add("--kv-bytes", metavar="SIZE", default="", help="KV memory of every device, e.g. 512MiB")
    add("--weight-bytes", metavar="SIZE", default="", help="memory for the weights of every device, e.g. 2GiB")
    journal = parser.add_mutually_exclusive_group()
    journal.add_argument("--no-journal", action="store_true", help="remember nothing for after the kernel's death")
    journal.add_argument(
        "--journal", metavar="DIR", default="", help="where to remember it (default: see `llmasos status`)"
    )
    add("--plain", action="store_true", help="encrypt neither the journal nor process images")
    add("--tcp", metavar="HOST:PORT", default="", help="let programs on other machines come, by their keys (llmasos key)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--detach", action="store_true", help="run in the background; return once it answers")
    ways.add_argument("--die-with-parent", action="store_true", help="halt at end-of-file on standard input")
    add("--hand-over", action="store_true", help="go on with the processes of the kernel that runs there, which halts")
    add("--ready", metavar="FD", type=int, default=-1, help="say there how far it is; an empty line: the devices are up")
    add("--own-runtime", action="store_true", help="remove the runtime directory in the end")
    add("--log", metavar="FILE", default="", help="write the log to this file, and keep it short")
    add("--debuggable", action="store_true", help="let debuggers of this user look into the kernel's memory")
    add("--quiet", action="store_true", help="no log on the terminal but warnings and errors")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 after a halt; 1 with a readable line if the kernel cannot be booted, or could not end in good order."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parse(given)
    try:
        if args.unit:
            return _print_unit(args)
        directory, args.manager = _place(args), service.Manager()
        over = boot_config.Overrides(
            args.device,
            args.model,
            args.policy,
            args.max_runs,
            args.step_tokens,
            args.kv_bytes,
            args.weight_bytes,
            False if args.no_journal else True if args.journal else None,
            args.journal,
            args.die_with_parent,
            victims=args.victims,
            evictions=args.evictions,
            plain=args.plain,
            tcp=args.tcp,
            system=args.system,
            file=_configured(args) or "",
            arguments=without_place(given),
        )
        file = settings.read(_configured(args), system=args.system)
        config = boot_config.build(file, over, directory, version() or "unknown (not installed)")
        core = Kernel(config)
        if args.die_with_parent and not _is_pipe(sys.stdin.fileno()):
            raise Errno.EINVAL("--die-with-parent needs a pipe as standard input; it ends with it")
        args.own_runtime = lock.prepare(directory) or args.own_runtime
        if args.hand_over:
            relieve(directory, keys_of(config.seal))
        if args.detach:
            return detach(directory, given, Path(args.log) if args.log else None)
        if not args.debuggable:
            undumped.shut()
        one_pool()  # before there are threads
        return _serve(core, config, directory, args)
    except (OSError, SyscallError, BaseExceptionGroup, trio.TrioInternalError) as error:
        if not (found := reasons(error)):
            raise
        return _told(found)


def _told(troubles: list[str]) -> int:
    """The exit status, after a line for each trouble."""
    for trouble in troubles:
        print(f"llmasos boot: {trouble}", file=sys.stderr, flush=True)
    return 1 if troubles else 0


def _print_unit(args: argparse.Namespace) -> int:
    if not args.system:
        raise Errno.EINVAL("--unit is of the machine's kernel: `llmasos boot --system --unit`")
    print(service.unit(), end="")
    return 0


def _place(args: argparse.Namespace) -> Path:
    """The runtime directory. Raises SyscallError EINVAL: it is the machine's, or --system has another."""
    if not args.system:
        directory = runtime.locate(args.runtime, boot=True)
        if runtime.is_system(directory):
            raise Errno.EINVAL(f"{directory} is for the kernel of the machine: `llmasos boot --system`")
        return directory
    if args.runtime or args.die_with_parent or args.hand_over:
        raise Errno.EINVAL(
            f"the kernel of the machine is in {runtime.system()} and ends with no program: leave out --runtime, "
            "--die-with-parent and --hand-over, or --system"
        )
    os.umask(0o077)  # what it and its drivers write is theirs
    return runtime.system()


def _serve(core: Kernel, config: boot_config.BootConfig, directory: Path, args: argparse.Namespace) -> int:
    place = Place(directory, lock.hold(directory))
    halted = kept = failed = False
    journal, standing, gate = None, Standing(), None
    try:
        gate = _gate(config.net, config.models)
        if args.log:
            open_log(Path(args.log))
        log, fsync = console(quiet=args.quiet, log=Path(args.log) if args.log else None), _NEVER
        progress = Progress(log, args.ready, place.lock, args.manager)
        keys, why = _keys(config)
        if config.journal is not None:
            journal, fsync = open_journal(Path(config.journal.directory), keys, progress.read), config.journal.fsync
            stamp(journal.state, damaged=any(level != "info" for level, _ in journal.notes))
            config.journal_path = os.fspath(journal.path)
            if (sign := _sign(directory, journal)).is_symlink():
                place.sign = sign, journal.path.absolute()
            notes = journal.notes
        else:
            notes = _left_alone(directory / runtime.JOURNAL)
        audit = _open_audit(config, fsync, notes)
        folder = journal.path.parent / FOLDER if journal is not None else None
        standing = Standing(folder, directory / MARK if folder is not None else None)
        core.sources = modules = Modules(folder, Watchdog(standing, end_kernel), standing)
        notes += modules.recall(config.devices)
        images = _images(keys, why, journal, notes)
        server = Server(
            core,
            config.devices,
            place,
            log,
            die_with_parent=args.die_with_parent,
            journal=journal,
            fsync=fsync,
            audit=audit,
            notes=[*config.notes, *(hidden() if config.shared else ()), *notes],
            wanted=config.devices_named,
            ready=partial(_ready, args, journal, config.arguments, progress),
            progress=progress,
            images=images,
            gate=gate,
            files=_files(core, config, journal, directory),
            reach=_reach(config),
        )
        with short_pauses():
            kept = trio.run(server.run)
        halted = True
        if failed := bool(server.failed):
            raise Errno.ENODEV(server.failed)
    finally:
        stop_watching()
        steps: list[Callable[[], object]] = [standing.close, *([gate[1].close] if gate is not None else [])]
        if journal is not None and halted and not kept:
            steps += [partial(sign.unlink, missing_ok=True), modules.forget]
        let_go = partial(_let_go, journal, remove=halted and not kept)
        release = partial(lock.release, directory, place.lock, keep_log=failed or not halted)
        status = _told(every(*steps, let_go, release))
        if args.own_runtime:
            _remove_empty(directory)
    return status or int(server.late)


def _remove_empty(directory: Path) -> None:
    """Remove the runtime directory, if nothing is in it; the program that made it may be gone."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def _reach(config: boot_config.BootConfig) -> Reach:
    """Who may connect."""
    if not config.shared:
        return PRIVATE
    operators = frozenset({0, config.uid, *config.operators})
    return Reach(0o666 if config.group is None else 0o660, config.group, operators)


def _gate(wanted: settings.Net, models: Collection[str]) -> tuple[Gate, socket.socket] | None:
    """The gate for programs on other machines, and its socket. Raises SyscallError: nobody could come, a file of keys is
    wrong or others may change it, the address cannot be had, or the package for CURVE is missing (ENOTSUP)."""
    if not wanted.tcp:
        return None
    try:
        from llmasos.kernel.edge.gate import Gate
    except ImportError as error:
        why = f"--tcp needs the package PyNaCl: pip install 'llmasos[net]' ({error})"
        raise Errno.ENOTSUP(why) from None
    found = Gate(wanted.tcp, server_key(wanted), authorized_keys(wanted), models)
    return found, found.listen()


def _files(core: Kernel, config: boot_config.BootConfig, journal: Opened | None, directory: Path) -> Files | None:
    """What takes the files that users show, where a kernel opens none for them. Raises SyscallError EIO."""
    if not config.shared:
        return None
    place = (journal.path.parent if journal is not None else directory) / COPIES
    try:
        return Files(place, core.files)
    except OSError as error:
        raise Errno.EIO(f"{place}, where copies of files are kept, cannot be used: {error.strerror or error}") from None


def _let_go(journal: Opened | None, *, remove: bool) -> None:
    """Give back the journal. `remove` it: programs that were expected back have ended with the system."""
    if journal is not None:
        journal.close(remove=remove)
        if not journal.path.exists():
            journal.path.with_name(runtime.BOOTED).unlink(missing_ok=True)


def _open_audit(
    config: boot_config.BootConfig, fsync: Fsync, notes: list[tuple[str, str]]
) -> Callable[[Callable[[Event], None]], AuditKeeper] | None:
    """What makes the keeper of the audit log, which is held from now on. Raises SyscallError as open_audit does."""
    wanted = config.audit_log
    if wanted is None:
        return None
    fsync = fsync if config.journal is not None else "interval"
    keys = Path(wanted.keys) if wanted.keys else None
    file = open_audit(Path(wanted.directory), keys, wanted.keep, wanted.readers)
    notes += file.notes
    file.notes = []
    return partial(AuditKeeper, file, fsync, wanted.anchor, wanted.head_seconds)


def _ready(args: argparse.Namespace, journal: Opened | None, words: list[str], progress: Progress) -> str:
    """The devices are up: these words boot a kernel. Tell the command that waits for it. Returns what went wrong."""
    trouble = note_words(journal.path.with_name(runtime.BOOTED), words) if journal is not None else ""
    args.manager.tell("READY=1")
    if args.ready >= 0:
        progress.ready()
    return trouble


def _keys(config: boot_config.BootConfig) -> tuple[Keys | None, str]:
    """The keys as they are configured, or why there are none. A command that gives the master key is run now, since it
    may take its time."""
    try:
        keys = keys_of(config.seal)
        if config.seal.key == "command" and not keys.plain:
            keys.masters()
    except SyscallError as error:
        if config.seal.key == "command" or config.journal is not None:
            raise
        return None, error.reason
    return keys, ""


def _images(keys: Keys | None, why: str, journal: Opened | None, notes: list[tuple[str, str]]) -> Images:
    """The keys of process images; from here on this thread handles events."""
    if keys is not None and not keys.plain and (trouble := keys.serve(images=journal is not None)):
        notes.append(("warning", f"the keys of process images are not at hand: {trouble}; each image tries again"))
    return Images(keys, why, journal.seal if journal is not None else None)


def _configured(args: argparse.Namespace) -> str | None:
    """The configuration file to read: a kernel that ends with its parent has that which is named, and no other."""
    if args.die_with_parent:
        return str(args.config) if args.config is not None else None
    return settings.usual(args.config, system=args.system)


def _sign(directory: Path, journal: Opened) -> Path:
    """Put the sign into the runtime directory that tells programs, if this kernel dies, that it kept a journal: the
    journal itself, or a symbolic link to it.

    Raises SyscallError EBUSY: a kernel that died has left its own journal there; EIO: the link cannot be made.
    """
    sign, place = directory / runtime.JOURNAL, journal.path.absolute()
    if sign.absolute() == place or (sign.is_symlink() and sign.resolve() == place.resolve()):
        return sign
    if sign.exists() and not sign.is_symlink():
        raise Errno.EBUSY(
            f"a kernel that died has left its journal {sign}, with what is to come back; boot without --journal to have "
            f"it back, move it to {place}, or remove it"
        )
    try:
        if sign.exists():
            text = f"journal: the one of the kernel that died here is {sign.resolve()}; it stays there, and is not used"
            journal.notes.append(("warning", text))
        sign.unlink(missing_ok=True)
        sign.symlink_to(place)
    except OSError as error:
        raise Errno.EIO(f"the link {sign} to the journal cannot be made: {error.strerror}") from None
    return sign


def _left_alone(journal: Path) -> list[tuple[str, str]]:
    """The notes for the log if a dead kernel has left a journal and this kernel keeps none."""
    if not os.path.lexists(journal):
        return []
    text = f"journal: that of the kernel that died here, {journal}, is left alone; `llmasos boot --detach` has it back"
    return [("warning", text)]


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number, 1 or more, found {text!r}")
    return int(text)


def _is_pipe(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


if __name__ == "__main__":
    sys.exit(main())
