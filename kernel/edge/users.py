"""The users of this machine that the configuration names: by name, by user id, or as the members of a "@group".

The operating system knows them; what it says is taken at the boot, as a login takes it: who joins a group later is in it
from the next boot on. A name that is nobody's does no harm (the account was removed, say), and is told.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import GroupSettings

_ROOT = 0


@dataclass(slots=True)
class Found:
    """What a configuration says of users, by their ids."""

    operators: list[int] = field(default_factory=list)
    quotas: dict[int, GroupSettings] = field(default_factory=dict)
    nobody: list[str] = field(default_factory=list)  # what was named in vain, and why


def check_name(name: str) -> None:
    """Raises SyscallError EINVAL: no user can be called so."""
    if not name.lstrip("@") or "@@" in name or any(c in "/:," or not c.isprintable() for c in name):
        raise Errno.EINVAL(f'wanted the name of a user, a user id or "@GROUP", found {name!r}')
    if name.isdecimal() and int(name) > pids.MOST_UID:
        raise Errno.EINVAL(f"{name} is greater than any user id ({pids.MOST_UID})")


def found(operators: Sequence[str], quotas: Mapping[str, GroupSettings]) -> Found:
    """The users of these names. A quota by name or id comes before those of groups, and among these the first counts;
    the kernel's own user and root have none."""
    result, own = Found(), {_ROOT, os.getuid()}
    for name in operators:
        result.operators += [uid for uid in _uids(name, "[users] operators", result) if uid not in own]
    for name in sorted(quotas, key=lambda one: one.startswith("@")):  # in the order of the file otherwise
        where = f'[users.quota."{name}"]'
        for uid in _uids(name, where, result):
            if uid not in own:
                result.quotas.setdefault(uid, quotas[name])
            elif not name.startswith("@"):
                result.nobody.append(f"{where}: that is the operator of this kernel, who has no quota")
    return result


def group_id(name: str) -> int:
    """The id of the group to which a socket is given. Raises SyscallError EINVAL: there is none; EPERM: this process
    cannot give it anything."""
    try:
        gid = int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise Errno.EINVAL(f"no group of this machine is called {name!r}; `groupadd {name}` makes one") from None
    if os.geteuid() != _ROOT and gid not in (os.getegid(), *os.getgroups()):
        raise Errno.EPERM(
            f"the kernel's user is not in the group {name}, so it cannot give it its socket; add it (`usermod -aG {name} "
            f"{_name_of(os.geteuid())}`, or SupplementaryGroups={name} in its systemd unit)"
        )
    return gid


def _uids(name: str, where: str, result: Found) -> list[int]:
    if name.isdecimal():
        return [int(name)]
    try:
        return _members(name[1:]) if name.startswith("@") else [pwd.getpwnam(name).pw_uid]
    except KeyError:
        kind = "group" if name.startswith("@") else "user"
        result.nobody.append(f"{where}: no {kind} of this machine is called {name.lstrip('@')!r}, so it is for nobody")
        return []


def _members(name: str) -> list[int]:
    """Those whose group it is in the list of users, and those in its own list. KeyError: there is no such group."""
    about = grp.getgrnam(name)
    uids = {one.pw_uid for one in pwd.getpwall() if one.pw_gid == about.gr_gid or one.pw_name in about.gr_mem}
    for member in about.gr_mem:  # of directories that do not list all their users
        try:
            uids.add(pwd.getpwnam(member).pw_uid)
        except KeyError:  # it was removed, and is still in the group's list
            continue
    return sorted(uids)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
