"""The command `llmasos`: boots a kernel if none runs and opens the shell; `llmasos VERB` does one thing and ends.

Every command of the shell is a verb, by the same code (userland/shell/oneshot.py). The verbs declared here are those that
are no commands: they boot kernels, need none, or are for the operating system's shell. Each verb is a program of its own,
attached to the kernel of a runtime directory, and imports only what it needs, so that it starts at once.

Exit statuses: 0 done; 1 an error, in one line on stderr; 2 if that is EINVAL, of a wrong command line; 130 Ctrl-C.
"""

from __future__ import annotations

import sys

try:
    import argparse
    import atexit
    import gc
    import os
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path
    from typing import TYPE_CHECKING

    from llmasos.syscalls import runtime
    from llmasos.syscalls.errno import SyscallError
except KeyboardInterrupt:  # whoever is impatient gets a prompt, and no traceback
    sys.stderr.write("llmasos: interrupted\n")
    sys.exit(130)

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

Act = Callable[[argparse.Namespace], int]
LINES_SECONDS = 1  # for the other end of a pipe to write something
FAILED, INTERRUPTED = 1, 130  # 128 + SIGINT, as shells report it

# The kernel's program takes the place of this one. Ctrl-C while it is imported is one line; later the kernel sees to it.
_LAUNCH = """\
import sys
try:
    from llmasos.kernel.edge.boot import main
    status = main(sys.argv[2:])
except KeyboardInterrupt:
    sys.stderr.write("llmasos boot: interrupted\\n")
    status = 130
sys.exit(status)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    for name in ("stdout", "stderr"):  # closed by the caller (`>&-`): what is written goes nowhere
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the life of the program)
    atexit.register(gc.freeze)  # the end does not look through all that was imported for cycles
    try:
        status = _act(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except SyscallError as error:
        from llmasos.userland.shell.grammar import status_of
        from llmasos.userland.shell.remedy import told

        status = _failed(told(error), status_of(error))
    except KeyboardInterrupt:
        sys.stderr.write("llmasos: interrupted\n")
        status = INTERRUPTED
    except BrokenPipeError:  # `llmasos ps | head`: the reader has seen enough
        status = FAILED
    except OSError as error:
        what = error.filename if error.filename is not None else "the output cannot be written"
        status = _failed(f"{what}: {error.strerror}")
    try:
        sys.stdout.flush()
    except OSError:  # what is left has nowhere to go, and Python would complain of it at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or FAILED
    return status


def _failed(reason: str, status: int = FAILED) -> int:
    from llmasos.userland.programs.screen import Screen

    Screen().error(f"llmasos: {reason}")
    return status


def _act(words: list[str]) -> int:
    from llmasos.userland.shell import oneshot
    from llmasos.userland.shell.grammar import UsageError

    place, private, rest = oneshot.before_the_verb(words)
    if private and rest and rest[0] != "shell" and not rest[0].startswith("-"):
        why = f"--private is for a shell: `llmasos --private`, or `llmasos shell --private`; {rest[0]!r} does without"
        raise UsageError(why)
    if rest and rest[0] in oneshot.VERBS:
        return oneshot.main(place, rest[0], rest[1:])
    if rest and rest[0] == "__complete":
        from llmasos.userland.shell import completing

        return completing.main(runtime.locate(place), rest[1:])
    parser, own = _parser()
    if rest and rest[0] not in own and not rest[0].startswith("-"):
        raise UsageError(oneshot.no_verb(rest[0], own))
    try:
        args, unknown = parser.parse_known_args(words)
        if unknown and args.verb not in ("boot", "key", "seal", "shred"):
            parser.error(f"not understood: {' '.join(unknown)}")
    except SystemExit as ended:  # after --help, or a usage error
        return int(ended.code or 0)
    args.rest = unknown
    act: Act = args.act
    return act(args)


class _Parser(argparse.ArgumentParser):
    """argparse's own drops what cannot be written; an error of the output is to be seen."""

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        (file or sys.stdout).write(self.format_help())


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """The parser of the verbs that are no commands of the shell, and their names."""
    where = _Parser(add_help=False)
    where.add_argument(
        "--runtime",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help=f"runtime directory of the kernel (default: $LLMASOS_RUNTIME, else {runtime.default()})",
    )
    parser = _Parser(
        prog="llmasos",
        description="An operating system for language models. Without a verb: open the shell on\n"
        "your kernel, which runs in the background and is booted if need be.",
        epilog=_epilog(),
        parents=[where],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--private", action="store_true", help="on a kernel that ends with this shell")
    parser.set_defaults(act=_alone, command=None, file="", args=[], verb="", rest=[])
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
    opened = verb(
        "shell", _shell, "open a shell on your kernel, booted if need be, or run a script (commands may be piped in)"
    )
    # No default here: it would take the place of what was given before the verb.
    opened.add_argument(
        "--private", action="store_true", default=argparse.SUPPRESS, help="on a kernel that ends with this shell"
    )
    opened.add_argument("-c", dest="command", metavar="COMMANDS", help="run these commands, and end")
    opened.add_argument(
        "file", nargs="?", default="", help="a script; its first line may be `#!/usr/bin/env -S llmasos shell`"
    )
    opened.add_argument("args", nargs=argparse.REMAINDER, help="the arguments of the script, $1 and so on")
    about = verb("status", _status, "what kernel runs where, since when, how large, with how many agents")
    about.add_argument("--json", action="store_true", help="print it as JSON")
    end = verb("halt", _halt, "shut the running kernel down, and end its agents")
    end.add_argument("--keep", action="store_true", help="keep its agents: the next kernel goes on with them")
    tour = verb("demo", _demo, "a guided tour that does each thing and shows it, on a kernel of its own")
    tour.add_argument("--here", action="store_true", help="use the running kernel instead of a kernel of its own")
    tour.add_argument("--fast", action="store_true", help="without pauses between the steps")
    check = verb("doctor", _doctor, "what this machine and installation can and cannot do")
    check.add_argument("--json", action="store_true", help="print it as JSON")
    other = verb("verify", _verify, "is another installation the same as this one, and as its installer left it")
    other.add_argument("package", help="its directory, .../site-packages/llmasos")
    other.add_argument("--json", action="store_true", help="print it as JSON")
    for name, summary in (
        ("seal", "the keys of journal and process images: status, rotate, load"),
        ("shred", "destroy process images, or all that an owner has said: FILE, or a user, a uid, UID/TENANT"),
        ("key", "who may come from other machines: new, trust, server, add, list, revoke"),
    ):
        verb(name, _keys, summary, help_flag=False)
    done = verb("completion", _completion, "print a script that completes llmasos in bash, zsh or fish")
    done.add_argument("shell", choices=("bash", "zsh", "fish"), help="for bash: `source <(llmasos completion bash)`")
    return parser, verbs.choices


def _epilog() -> str:
    """The commands of the shell that are verbs too."""
    import shutil
    import textwrap

    from llmasos.userland.shell.oneshot import VERBS
    from llmasos.userland.shell.words import GROUPS

    width = shutil.get_terminal_size().columns - 2
    lines = ["commands of the shell, each a verb:"]
    for title, names in GROUPS:
        known = [name for name in names if name in VERBS]
        lines += [f"  {title}:"] if known else []
        for name in known:
            lines += textwrap.wrap(f"    {name:<12} {VERBS[name].summary}", width, subsequent_indent=" " * 17)
    return "\n".join([*lines, "", "`llmasos VERB --help` explains a verb, as `man VERB` in the shell does."])


def _where(args: argparse.Namespace) -> Path:
    return runtime.locate(getattr(args, "runtime", None))


# --- verbs ----------------------------------------------------------------------------------------------------------


def _alone(args: argparse.Namespace) -> int:
    if args.version:
        from llmasos.syscalls.version import version

        print(f"llmasos {version() or 'unknown (not installed)'}")
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        if _is_given_lines():
            from llmasos.userland.shell.grammar import UsageError

            raise UsageError("standard input has lines in it: `llmasos shell` takes commands, `llmasos demo` is the tour")
        args.here, args.fast = False, False
        return _demo(args)
    return _shell(args)


def _is_given_lines() -> bool:
    """Whether standard input is a file or a pipe with something in it; of a pipe this is known once its writer has
    written or ended."""
    import select
    import stat

    try:
        about = os.fstat(0)
        if stat.S_ISREG(about.st_mode):
            return about.st_size > os.lseek(0, 0, os.SEEK_CUR)
        if not stat.S_ISFIFO(about.st_mode):
            return False
    except OSError:  # it is closed
        return False
    ready = select.poll()
    ready.register(0, select.POLLIN)
    return any(event & select.POLLIN for _, event in ready.poll(LINES_SECONDS * 1000))


def _boot(args: argparse.Namespace) -> int:
    place = ["--runtime", str(_where(args))] if hasattr(args, "runtime") else []
    sys.stdout.flush()
    os.execve(
        sys.executable,
        [sys.executable, "-P", "-c", _LAUNCH, "llmasos.kernel.edge.boot", *place, *args.rest],
        runtime.environment(),
    )


def _keys(args: argparse.Namespace) -> int:
    sys.stdout.flush()
    module = ("llmasos.kernel.edge.key",) if args.verb == "key" else ("llmasos.kernel.edge.seal", args.verb)
    words = [*runtime.module(module[0]), *module[1:], *args.rest]
    named = {"LLMASOS_RUNTIME": str(_where(args))} if hasattr(args, "runtime") else {}
    os.execve(sys.executable, words, runtime.environment() | named)


def _shell(args: argparse.Namespace) -> int:
    from llmasos.userland.shell.main import open_private, open_shell

    given = [args.file, *args.args] if args.command is not None and args.file else args.args
    return (open_private if args.private else open_shell)(
        _where(args), file="" if args.command is not None else args.file, command=args.command, arguments=given
    )


def _status(args: argparse.Namespace) -> int:
    import json

    from llmasos.syscalls.blocking import connect
    from llmasos.userland.programs import status
    from llmasos.userland.programs.screen import Screen

    where = _where(args)
    if runtime.holder(where) is None:
        print(json.dumps(None) if args.json else status.nobody(where))
        return status.NOT_RUNNING
    with connect(where, name="status", reconnect=0.0) as kernel:
        facts = status.read(kernel, where)
    if args.json:
        print(json.dumps(facts))
    else:
        Screen().pairs(status.pairs(facts))
    return 0


def _halt(args: argparse.Namespace) -> int:
    from llmasos.userland.programs.power import halt

    where = _where(args)
    halt(where, keep=args.keep)
    kept = "; the next one goes on with its agents" if args.keep else ""
    print(f"the kernel of {where} has halted{kept}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from llmasos.userland.demo.tour import main as demo

    return demo(_where(args) if args.here else None, fast=args.fast)


def _verify(args: argparse.Namespace) -> int:
    from llmasos.userland.programs.inventory import verify
    from llmasos.userland.programs.screen import Screen

    return verify(Screen(), Path(args.package), as_json=args.json)


def _doctor(args: argparse.Namespace) -> int:
    from llmasos.userland.doctor import main as doctor

    return doctor(_where(args), as_json=args.json)


def _completion(args: argparse.Namespace) -> int:
    from llmasos.userland.shell.completing import script

    print(script(args.shell), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
