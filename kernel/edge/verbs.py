"""What verbs of the command line that work without a kernel (`key`, `seal`, `shred`) have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from llmasos.kernel.edge import settings
from llmasos.syscalls.errno import SyscallError


def where() -> argparse.ArgumentParser:
    """The options that say whose configuration it is, as the parent of a verb's parser."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", metavar="FILE.toml", help="the configuration (default: that of the user's kernels)")
    parser.add_argument("--system", action="store_true", help="of the machine's kernel, and not of this user's")
    parser.add_argument("--runtime", metavar="DIR", help=argparse.SUPPRESS)
    return parser


def configured(args: argparse.Namespace) -> settings.File:
    """Raises SyscallError EINVAL, ENOENT."""
    return settings.read(settings.usual(args.config, system=args.system), system=args.system)


def done(verb: str, act: Callable[[], int]) -> int:
    """The exit status; what went wrong is one readable line."""
    try:
        return act()
    except SyscallError as error:
        print(f"llmasos {verb}: {error.reason}", file=sys.stderr)
        return 1
