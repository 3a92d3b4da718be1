"""The command line: `llmasos` boots a kernel if none runs and opens the shell; `llmasos VERB` does one thing and ends.

The programs behind the verbs are those behind the shell's commands (userland/programs). Each verb is a program of its
own, attached to the kernel of a runtime directory, and imports only what it needs, so that it starts at once. An expected
error is one line on stderr and status 1; a wrong command line is status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError

if TYPE_CHECKING:
    from llmasos.syscalls.blocking import Client
    from llmasos.userland.programs.screen import Screen

Act = Callable[[argparse.Namespace], int]
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args, unknown = parser.parse_known_args(words)
    if unknown and args.verb != "boot":
        parser.error(f"not understood: {' '.join(unknown)}")
    args.rest = unknown
    act: Act = args.act
    try:
        return act(args)
    except SyscallError as error:
        from llmasos.syscalls.printable import printable

        print(printable(f"llmasos: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `llmasos ps | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--runtime",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help=f"runtime directory of the kernel (default: $LLMASOS_RUNTIME, else {runtime.default()})",
    )
    parser = argparse.ArgumentParser(
        prog="llmasos",
        description="An operating system for language models. Without a verb: open the shell on your kernel, which runs "
        "in the background and is booted if need be.",
        epilog="`llmasos VERB --help` explains a verb; `help` in the shell explains its commands.",
        parents=[where],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--private", action="store_true", help="on a kernel that ends with this shell")
    parser.set_defaults(act=_alone, verb="", rest=[])
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")

    def verb(name: str, act: Act, summary: str, *, help_flag: bool = True) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}."
        made = verbs.add_parser(
            name,
            help=summary,
            description=description,
            parents=[where],
            allow_abbrev=False,
            add_help=help_flag,
        )
        made.set_defaults(act=act)
        return made

    verb("boot", _boot, "boot a kernel in the foreground, or with --detach in the background", help_flag=False)
    opened = verb("shell", _shell, "open a shell on your kernel, booted if need be (commands may be piped in)")
    opened.add_argument("--private", action="store_true", help="on a kernel that ends with this shell")
    about = verb("status", _status, "what kernel runs where, since when, how large, with how many agents")
    about.add_argument("--json", action="store_true", help="print it as JSON")
    shown = verb("ps", _ps, "list the processes")
    shown.add_argument("pid", type=int, nargs="?", help="this one in detail")
    live = verb("top", _top, "watch processes, device and memory live, or as they were recorded")
    live.add_argument("file", nargs="?", default="", help="a recording (default: the running kernel)")
    live.add_argument("--seconds", type=_seconds, default=2.0, help="seconds between two looks (default 2)")
    live.add_argument("--once", action="store_true", help="print one look and return")
    live.add_argument("--record", metavar="FILE", default="", help="write what is seen into a new file, for `top FILE`")
    known = verb("models", _models, "list the models and their memory; those on disk: pull, rm, ls, du, check")
    known.add_argument(
        "action",
        nargs="?",
        choices=("ls", "du", "pull", "rm", "check"),
        help="ls: the models in the hub's cache; du: the use of the disk; pull: fetch from the hub (files that are there "
        "stay); rm: remove from the cache, with the files installed of it; check: is it whole? (default: the kernel's)",
    )
    known.add_argument("names", nargs="*", metavar="NAME", help="org/name, org/name@revision, org/name:Q4_K_M, ...")
    known.add_argument(
        "--found",
        action="store_true",
        help="list other programs' models too: Ollama, LM Studio, llama.cpp, Hugging Face",
    )
    known.add_argument("--json", action="store_true", help="of --found, ls, du and check: print it as JSON")
    known.add_argument("--yes", action="store_true", help="of rm: remove without asking")
    known.add_argument(
        "--estimate",
        metavar="MODEL",
        default="",
        help="say how much memory a model would take, and which models would have to make room",
    )
    known.add_argument("--dtype", default="", help="of an estimate: fp32, bf16, int8 or int4 (default: the device's)")
    known.add_argument("--device", default="", help="of an estimate: the device (default: the first)")
    known.add_argument("--context", type=_count, default=0, help="of an estimate: tokens of the context to reckon with")
    tree = verb("groups", _groups, "list the control groups; with settings, make one or change it")
    tree.add_argument("path", nargs="?", default="/", help="a group (default: all)")
    tree.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="e.g. kv_max=64MiB tokens_max=50 cpu_weight=200")
    tree.add_argument("--remove", action="store_true", help="remove the group")
    hint = verb("advise", _advise, "say how a model will be used")
    hint.add_argument("model", help="a known name, a directory, or a hub name")
    hint.add_argument("advice", help="willneed, dontneed, pin or normal")
    hint.add_argument("--device", default="", help="the device (default: the first)")
    hint.add_argument("--dtype", default="", help="fp32, bf16, int8 or int4 (default: the device's)")
    log = verb("dmesg", _dmesg, "print the kernel log")
    log.add_argument("-f", "--follow", action="store_true", help="go on printing new lines until Ctrl-C")
    trace = verb("strace", _strace, "print the system calls of a process, decoded, and what they cause")
    trace.add_argument("pid", help="a pid, or `all`")
    trace.add_argument("--count", type=_count, default=0, help="stop after this many events")
    saved = verb("checkpoint", _checkpoint, "write the image of a process to a file; the process goes on")
    saved.add_argument("pid", type=int, help="the process")
    saved.add_argument("file", help="the file; an image of that name is replaced")
    saved.add_argument("--no-kv", action="store_true", help="leave the KV out: a small file, a slower restore")
    saved.add_argument("--passphrase-file", metavar="FILE", default="", help="encrypt with the first line of this file")
    back = verb("restore", _restore, "start a process from an image; it outlives this command")
    back.add_argument("file", help="the image")
    back.add_argument("--name", default="", help="its name (default: as in the image)")
    back.add_argument("--model", default="", help="its model (default: as in the image)")
    back.add_argument("--device", default="", help="its device (default: as in the image)")
    back.add_argument(
        "--passphrase-file", metavar="FILE", default="", help="the passphrase is the first line of this file"
    )
    program = verb("run", _run, "run a Python program on the kernel; its exit status is the program's")
    program.add_argument("file", help="the program")
    program.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    end = verb("halt", _halt, "shut the running kernel down, and end its agents")
    end.add_argument("--keep", action="store_true", help="keep its agents: the next kernel goes on with them")
    tour = verb("demo", _demo, "a guided tour that does each thing and shows it, on a kernel of its own")
    tour.add_argument("--here", action="store_true", help="use the running kernel instead of a kernel of its own")
    tour.add_argument("--fast", action="store_true", help="without pauses between the steps")
    check = verb("doctor", _doctor, "what this machine and installation can and cannot do")
    check.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _seconds(word: str) -> float:
    """An interval of `top`."""
    from llmasos.syscalls.limits import MAX_TIMEOUT
    from llmasos.userland.top.main import SECONDS_MIN

    seconds = float(word)
    if not SECONDS_MIN <= seconds <= MAX_TIMEOUT:  # false for nan
        raise argparse.ArgumentTypeError(
            f"it wants at least {SECONDS_MIN:g} and at most {MAX_TIMEOUT:g} seconds, found {word}"
        )
    return seconds


def _count(word: str) -> int:
    """A number of events, or of tokens."""
    count = int(word)
    if count < 1:
        raise argparse.ArgumentTypeError(f"it wants at least 1, found {word}")
    return count


def _where(args: argparse.Namespace) -> Path:
    return runtime.locate(getattr(args, "runtime", None))


def _kernel(args: argparse.Namespace, *, stays: bool = False) -> Client:
    """Attach to the running kernel as a program named after the verb. One that `stays` goes on with the next kernel if
    this one dies."""
    from llmasos.syscalls.blocking import connect
    from llmasos.syscalls.reconnect import RECONNECT_SECONDS

    return connect(_where(args), name=args.verb, reconnect=RECONNECT_SECONDS if stays else 0.0)


def _screen() -> Screen:
    from llmasos.userland.programs.screen import Screen

    return Screen()


# --- verbs ----------------------------------------------------------------------------------------------------------


def _alone(args: argparse.Namespace) -> int:
    if args.version:
        from importlib.metadata import version

        print(f"llmasos {version('llmasos')}")
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        args.here, args.fast = False, False
        return _demo(args)
    return _shell(args)


def _boot(args: argparse.Namespace) -> int:
    place = ["--runtime", str(_where(args))]
    sys.stdout.flush()
    os.execve(
        sys.executable,
        [*runtime.module("llmasos.kernel.edge.boot"), *place, *args.rest],
        runtime.environment(),
    )


def _shell(args: argparse.Namespace) -> int:
    from llmasos.userland.shell.main import open_private, open_shell

    return (open_private if args.private else open_shell)(_where(args))


def _status(args: argparse.Namespace) -> int:
    import json

    from llmasos.userland.programs import status

    where = _where(args)
    if runtime.holder(where) is None:
        print(json.dumps(None) if args.json else status.nobody(where))
        return status.NOT_RUNNING
    with _kernel(args) as kernel:
        facts = status.read(kernel, where)
    if args.json:
        print(json.dumps(facts))
    else:
        _screen().pairs(status.pairs(facts))
    return 0


def _ps(args: argparse.Namespace) -> int:
    from llmasos.syscalls.table import Getinfo
    from llmasos.userland.programs import ps

    screen = _screen()
    with _kernel(args) as kernel:
        if args.pid is None:
            screen.table(ps.table(ps.processes(kernel)))
        else:
            screen.pairs(ps.details(kernel(Getinfo(pid=_pid(args.pid)))))
    return 0


def _top(args: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from llmasos.userland.top import main as top

    if args.file:
        if args.record:
            raise SyscallError(Errno.EINVAL, "top opens a recording or makes one, not both: leave out FILE or --record")
        top.replay(_screen(), args.file, once=args.once)
        return 0
    with ExitStack() as held:

        def attach() -> Client:
            return held.enter_context(_kernel(args, stays=True))

        top.run(_screen(), attach(), seconds=args.seconds, once=args.once, record=args.record, again=attach)
    return 0


def _models(args: argparse.Namespace) -> int:
    from llmasos.userland.programs import models

    asked = models.Asked(
        action=args.action or "",
        names=args.names,
        found=args.found,
        as_json=args.json,
        yes=args.yes,
        estimate=args.estimate,
        dtype=args.dtype,
        device=args.device,
        context=args.context,
    )
    return models.run(_screen(), asked, _where(args), lambda: _kernel(args))


def _groups(args: argparse.Namespace) -> int:
    from llmasos.syscalls.table import GroupRemove
    from llmasos.userland.programs import groups

    with _kernel(args) as kernel:
        if args.remove:
            kernel(GroupRemove(args.path))
        elif args.settings:
            _screen().pairs(groups.details(groups.change(kernel, args.path, args.settings)))
        else:
            _screen().table(groups.table(groups.read(kernel, args.path)))
    return 0


def _advise(args: argparse.Namespace) -> int:
    from llmasos.syscalls.table import Advise
    from llmasos.userland.programs.system import advice_named
    from llmasos.userland.sdk import script
    from llmasos.userland.sdk.options import located

    advice = advice_named(args.advice)
    with _kernel(args) as kernel:
        kernel(Advise(script.run(kernel, located(args.model)), advice, args.device, args.dtype))
    return 0


def _dmesg(args: argparse.Namespace) -> int:
    from llmasos.userland.programs import log

    with _kernel(args, stays=args.follow) as kernel:
        if args.follow:
            log.follow(_screen(), kernel)
        else:
            log.show(_screen(), log.read(kernel))
    return 0


def _strace(args: argparse.Namespace) -> int:
    from llmasos.syscalls.table import Getinfo
    from llmasos.userland.programs import strace

    if args.pid != "all" and not args.pid.isdigit():
        raise SyscallError(Errno.EINVAL, f"strace wants a pid or `all`, found {args.pid!r}")
    pid = 0 if args.pid == "all" else _pid(int(args.pid))
    with _kernel(args, stays=True) as kernel:
        if pid:
            kernel(Getinfo(pid=pid))  # ESRCH now rather than silence for ever
        strace.follow(_screen(), kernel, pid, kernel.pid, count=args.count)
    return 0


def _checkpoint(args: argparse.Namespace) -> int:
    from llmasos.userland.programs.images import checkpoint

    with _kernel(args) as kernel:
        said = checkpoint(kernel, _pid(args.pid), args.file, kv=not args.no_kv, passphrase_file=args.passphrase_file)
    _screen().line(said)
    return 0


def _restore(args: argparse.Namespace) -> int:
    from llmasos.syscalls.printable import printable
    from llmasos.userland.programs.images import restore

    with _kernel(args) as kernel:
        _, said = restore(
            kernel,
            args.file,
            name=args.name,
            device=args.device,
            model=args.model,
            detached=True,
            passphrase_file=args.passphrase_file,
            shown=lambda name: printable(name, one_line=True),
        )
    _screen().line(said)
    return 0


def _run(args: argparse.Namespace) -> int:
    from llmasos.userland.programs.program import run

    return run(_where(args), args.file, args.args)


def _halt(args: argparse.Namespace) -> int:
    from llmasos.userland.programs.power import halt

    halt(_where(args), keep=args.keep)
    kept = "; the next one goes on with its agents" if args.keep else ""
    _screen().line(f"the kernel of {_where(args)} has halted{kept}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from llmasos.userland.demo.tour import main as demo

    return demo(_where(args) if args.here else None, fast=args.fast)


def _doctor(args: argparse.Namespace) -> int:
    from llmasos.userland.doctor import main as doctor

    return doctor(_where(args), as_json=args.json)


def _pid(number: int) -> int:
    if number < 1:
        raise SyscallError(Errno.EINVAL, f"a pid is 1 or greater, found {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
