"""What an error tells people to do fits its reason: every raise in the tree is read, and its hint looked at."""

from __future__ import annotations

import pytest

from llmasos.syscalls.errno import Errno, SyscallError
from tests.syscalls.raised import raises


def test_the_whole_tree_is_read() -> None:
    assert len(raises()) > 500
    assert {one.errno for one in raises()} == set(Errno)


# What a hint speaks of, and the places whose errors are about that.
ABOUT = {
    "passphrase": ("drivers/checkpoint_file.py",),
    "the right that this call needs": ("kernel/dispatch.py", "kernel/calls/lookup.py"),
    "`dmesg`": ("kernel/", "drivers/", "userland/sdk/answers.py"),
    "the hub": ("modelfiles/",),
    "of your own group": ("kernel/calls/lookup.py",),
    "the limit of the group": ("kernel/enforce.py", "kernel/groups/", "kernel/calls/context.py"),
    "longer one": ("kernel/", "userland/sdk/"),
    "`groups` lists": ("kernel/groups/", "kernel/rights.py", "userland/programs/groups.py"),
    "who may use it": ("drivers/checkpoint", "kernel/edge/", "syscalls/calls.py", "syscalls/showing.py", "userland/"),
    "client library": ("kernel/calls/",),
    "`models` lists": (
        "modelfiles/",
        "syscalls/showing.py",
        "userland/programs/",
        "userland/sdk/",
        "kernel/",
        "drivers/",
    ),
    "architecture and form": ("drivers/", "modelfiles/"),
    "the disk": ("modelfiles/download.py",),
}


@pytest.mark.parametrize("words", ABOUT)
def test_a_hint_is_given_where_it_fits(words: str) -> None:
    with_it = [one for one in raises() if words in one.hint]
    assert with_it, "nobody is told so"
    strange = [one for one in with_it if not one.place.startswith(ABOUT[words])]
    assert strange == []


@pytest.mark.parametrize(
    ("errno", "place", "words"),
    [
        (Errno.EPERM, "drivers/checkpoint_file.py", "passphrase"),
        (Errno.EPERM, "kernel/dispatch.py", "attach with the right"),
        (Errno.EPERM, "kernel/edge/lock.py", "who may use it"),
        (Errno.EPERM, "modelfiles/hub_api.py", "the hub"),
        (Errno.EPERM, "modelfiles/web.py", "the hub"),
        (Errno.EPERM, "userland/shell/files.py", "who may use it"),
        (Errno.ENOENT, "kernel/groups/group.py", "`groups`"),
        (Errno.ENOENT, "modelfiles/source.py", "`models`"),
        (Errno.EDQUOT, "modelfiles/download.py", "disk"),
        (Errno.ENOMEM, "userland/sdk/public.py", "this program"),
    ],
)
def test_and_all_errors_there_have_it(errno: Errno, place: str, words: str) -> None:
    there = [one for one in raises() if one.errno is errno and one.place == place and one.reason.strip("… ")]
    assert there
    assert [one for one in there if words not in one.hint] == []


def test_a_kernel_that_does_not_boot_is_to_be_booted_again() -> None:
    assert "boot again" in SyscallError(Errno.EIO, "the kernel did not boot: device cpu0 cannot start").hint


def test_what_holds_for_one_cause_only_is_no_kinds_general_advice() -> None:
    for errno in Errno:
        for words in ABOUT:
            assert words not in errno.advice
