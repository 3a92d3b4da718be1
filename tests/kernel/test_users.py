"""`[users]`: whom the names in the configuration mean, what each has, and what is wrong with a name."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from llmasos.kernel.edge import users
from llmasos.kernel.edge.boot_config import BootConfig, Overrides, build
from llmasos.kernel.edge.settings import read
from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupSettings

PEOPLE = {"root": (0, 0), "ada": (1001, 100), "bob": (1002, 100), "eve": (1003, 300)}  # uid, group
GROUPS: dict[str, tuple[int, list[str]]] = {"users": (100, []), "wheel": (200, ["eve", "gone"]), "eve": (300, [])}


@pytest.fixture(autouse=True)
def people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who the operating system knows."""
    rows = {name: pwd.struct_passwd((name, "x", *ids, "", "/", "/bin/sh")) for name, ids in PEOPLE.items()}
    groups = {name: grp.struct_group((name, "x", gid, members)) for name, (gid, members) in GROUPS.items()}
    monkeypatch.setattr(pwd, "getpwnam", rows.__getitem__)
    monkeypatch.setattr(pwd, "getpwall", lambda: list(rows.values()))
    monkeypatch.setattr(grp, "getgrnam", groups.__getitem__)


def configured(tmp_path: Path, text: str, *, system: bool = True) -> BootConfig:
    file = tmp_path / "kernel.toml"
    file.write_text(text)
    over = Overrides(["sim"], system=system, journal=False, file=str(file))
    return build(read(str(file)), over, tmp_path, "test")


def wrong(tmp_path: Path, text: str, *, system: bool = True) -> str:
    with pytest.raises(SyscallError) as caught:
        configured(tmp_path, text, system=system)
    assert caught.value.errno in (Errno.EINVAL, Errno.EPERM)
    return caught.value.reason.removeprefix(f"the configuration {tmp_path / 'kernel.toml'} is wrong: ")


def test_a_quota_adds_what_it_says_to_that_of_everybody(tmp_path: Path) -> None:
    found = configured(
        tmp_path,
        """
        [users]
        default = { pids_max = 3, kv_max = "1MiB" }
        [users.quota.ada]
        kv_max = "2MiB"
        """,
    )
    assert found.shared
    assert found.quota_of(1002) == GroupSettings(pids_max=3, kv_max=1 << 20)
    assert found.quota_of(1001) == GroupSettings(pids_max=3, kv_max=2 << 20)


def test_who_is_named_comes_before_groups_and_the_first_group_before_others(tmp_path: Path) -> None:
    found = configured(
        tmp_path,
        """
        [users.quota]
        "@users".pids_max = 10
        "@wheel".pids_max = 20
        "@eve".pids_max = 30
        "1002".pids_max = 40
        """,
    )
    assert [found.quota_of(uid).pids_max for uid in (1001, 1002, 1003, 1004)] == [10, 40, 20, 0]


def test_operators_are_named_like_users_and_have_a_quota_only_if_they_are_named(tmp_path: Path) -> None:
    text = (
        'users = { operators = ["@wheel", 1001, "1002"], default = { pids_max = 3 }, quota = { ada = { pids_max = 9 } } }'
    )
    found = configured(tmp_path, text)
    assert found.operators == [1003, 1001, 1002]
    assert [found.quota_of(uid).pids_max for uid in (1001, 1002, 1003, 1004)] == [9, 0, 0, 3]


def test_names_that_are_nobodys_are_told_and_harmless(tmp_path: Path) -> None:
    found = configured(
        tmp_path,
        'users = { operators = ["ida", "@none"], quota = { ida = { pids_max = 9 }, root = { pids_max = 9 } } }',
    )
    assert (found.operators, found.quotas) == ([], {})
    assert [level for level, _ in found.notes] == ["warning"] * 4
    said = "\n".join(text for _, text in found.notes)
    assert f"{tmp_path / 'kernel.toml'}: [users] operators: no user of this machine is called 'ida'" in said
    assert "[users] operators: no group of this machine is called 'none'" in said
    assert "[users.quota.\"ida\"]: no user of this machine is called 'ida'" in said
    assert '[users.quota."root"]: that is the operator of this kernel' in said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("users = { who = 1 }", "[users]: there is no key 'who'"),
        ("users = { default = { pid_max = 1 } }", "[users.default]: there is no key 'pid_max' (is 'pids_max' meant?)"),
        ('users = { quota = { ada = { kv_max = "lots" } } }', '[users.quota."ada"] kv_max'),
        ("users = { quota = { ada = 3 } }", '[users.quota."ada"]: wanted a table, found 3'),
        ("users = { default = { kv_max = 10, kv_high = 20 } }", "[users.default]: kv_high"),
        ("users = { quota = { ada = { kv_max = 10, kv_high = 20 } } }", '[users.quota."ada"]: kv_high'),
        ('users = { quota = { "@" = { pids_max = 1 } } }', '[users.quota."@"]: wanted the name of a user'),
        ("users = { operators = [4294967295] }", "[users] operators: 4294967295 is greater than any user id"),
        ("users = { operators = [true] }", "[users] operators"),
        ('users = { group = "none" }', "[users] group: no group of this machine is called 'none'"),
    ],
)
def test_what_is_wrong_is_named_by_table_and_key(tmp_path: Path, text: str, why: str) -> None:
    assert wrong(tmp_path, text).startswith(why)


def test_a_group_is_for_the_kernel_of_the_machine_only(tmp_path: Path) -> None:
    assert configured(tmp_path, 'users = { group = "users" }').group == 100
    assert "only the kernel of the machine" in wrong(tmp_path, 'users = { group = "users" }', system=False)


def test_a_group_that_the_kernels_user_is_not_in_cannot_have_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 998)
    monkeypatch.setattr(os, "getgroups", lambda: [100])
    assert users.group_id("users") == 100
    with pytest.raises(SyscallError, match="SupplementaryGroups=wheel") as caught:
        users.group_id("wheel")
    assert caught.value.errno is Errno.EPERM


def test_what_the_machines_kernel_keeps_is_in_the_machines_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(runtime.SYSTEM, os.fspath(tmp_path))
    found = build(read(None, system=True), Overrides(["sim"], system=True), runtime.system(), "test")
    state = f"{tmp_path}/var/lib/llmasos"
    assert found.runtime == f"{tmp_path}/run/llmasos"
    assert found.journal is not None
    assert found.journal.directory == state
    assert found.audit == f"{state}/audit"
    assert (found.seal.key_file, found.seal.directory) == (f"{state}/seal.key", f"{state}/keys")
    assert (found.net.key, found.net.authorized_keys) == (f"{state}/server.key", f"{state}/authorized_keys")
