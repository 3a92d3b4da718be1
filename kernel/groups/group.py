"""A control group: limits, charges and weight of all processes below it, as Linux's cgroup v2 has them.

Every charge is made to a group and to all groups above it, so a limit holds for the whole subtree. The group that mapped
a frame first pays for it, as for memory in Linux, while any process maps it; so a shared frame is paid for once. A group
that is removed while others still map its frames lives on, unlisted, until they are released.

Entry points: `charge_*`, `enter` and `leave` for the ledger; `kv_room`, `obstacle` and `exhausted` to be asked before a
charge; `share` for policies; `GroupTree` for names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from llmasos.kernel.clock import SECOND
from llmasos.kernel.groups.pressure import Pressure
from llmasos.kernel.objects.owner import ROOT, Owner
from llmasos.kernel.timers import Timer
from llmasos.syscalls.budgets import GROUPS, LOGS
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_GROUP_DEPTH
from llmasos.syscalls.pids import number_of
from llmasos.syscalls.records import GroupSettings

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SESSION = "session-"
_NAMED = 8  # the most groups that an error names
_DEFAULT = GroupSettings()
# A process of nice 0 weighs as much as a group with default settings. Weights are the product of both units,
# so that those of processes and groups add up exactly.
NICE_0_WEIGHT = 1024  # the unit of Linux's sched_prio_to_weight
DEFAULT_CPU_WEIGHT = _DEFAULT.cpu_weight
_BURST = SECOND  # a group that has used nothing may use what its rate allows in this time at once
_TOKEN = 1_000_000 * SECOND  # of credit: a rate of one microtoken a second gives one unit in a nanosecond


class Group:
    """A node of the tree. Sizes are bytes of the whole subtree."""

    def __init__(
        self,
        name: str = "",
        parent: Group | None = None,
        settings: GroupSettings = _DEFAULT,
        owner: Owner | None = None,
    ) -> None:
        """Without an `owner` of its own it belongs to its parent's."""
        self.name, self.parent, self.settings = name, parent, settings
        self.owner: Owner = owner or (
            parent.owner if parent is not None else Owner("0", ROOT, "", 0, operator=True, machine=True)
        )
        self.chain: tuple[Group, ...] = (self, *(parent.chain if parent else ()))  # up to the root
        self.path: str = f"{parent.path.rstrip('/')}/{name}" if parent else "/"
        self.children: dict[str, Group] = {}
        self.inside = 0  # groups in it, at any depth
        self.apart = False  # its processes compete among themselves only, since their owner has turns of his own
        self.home = False  # it is an owner's, and has the sessions of his programs
        self.usual_pids = 0  # where it has no `pids_max` of its own; 0: any number
        self.session = False  # it was made for a program, and ends with its last process
        self.members: set[int] = set()  # pids directly in it
        self.ending: list[Group] | None = None  # where it is put when it ends
        # the ledger
        self.kv = self.swap = self.weights = self.pids = self.tokens = self.logs = 0
        self.refused = 0  # times that it was out of room for logs
        self.images: Counter[int] = Counter()  # processes that map an image
        self.events: Counter[str] = Counter()
        self.pressure = Pressure()
        # tokens per second
        self._credit = 0
        self._refilled: int | None = None  # its burst has not been used yet
        self.line: dict[int, None] = {}  # pids of the processes throttled here, first come first
        self.timer: Timer | None = None
        # weights of what wants each device: processes and groups directly below
        self.load: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Group({self.path!r})"

    def lineage(self) -> Iterator[Group]:
        """Itself and those above it, also when it has ended; `chain` are those who pay."""
        group: Group | None = self
        while group is not None:
            yield group
            group = group.parent

    @property
    def ended(self) -> bool:
        """Whether it is out of the tree."""
        return self.chain[0] is not self

    def below(self, other: Group) -> bool:
        """Whether it is `other`, or in the subtree of `other`."""
        return other in self.chain

    # --- the ledger -------------------------------------------------------------------------------------------------

    def charge_kv(self, size: int) -> None:
        for group in self.chain:
            group.kv += size

    def charge_swap(self, size: int) -> None:
        for group in self.chain:
            group.swap += size

    def charge_logs(self, size: int) -> None:
        for group in self.chain:
            group.logs += size

    def enter(self, pid: int, logs: int) -> None:
        """Enter a process as a member, with the bytes of its log and row."""
        self.members.add(pid)
        for group in self.chain:
            group.pids += 1
            group.logs += logs

    def leave(self, pid: int, logs: int) -> None:
        """A member has gone. A session ends with its last process, and so do all groups in it."""
        self.members.discard(pid)
        for group in self.chain:
            group.pids -= 1
            group.logs -= logs
            if group.session and not group.pids:
                group.end()

    def end(self) -> None:
        """Take the group, and all groups in it, out of the tree. Harmless if it has gone already.

        What it still pays for is on the account of those above alone from here on, and no group that has ended knows
        itself or those in it: the last frame that is released frees it, not the collector of garbage."""
        if self.parent is not None and self.parent.children.get(self.name) is self:
            del self.parent.children[self.name]
            for group in self.parent.chain:
                group.inside -= 1 + self.inside
            for group in list(GroupTree.below(self)):
                if group.ending is not None:
                    group.ending.append(group)
                group.chain = self.parent.chain
                group.children.clear()

    def map_image(self, image: int, size: int) -> None:
        """A process maps an image whose weights take `size` bytes. Each group pays once for an image."""
        for group in self.chain:
            group.images[image] += 1
            if group.images[image] == 1:
                group.weights += size

    def unmap_image(self, image: int, size: int) -> None:
        for group in self.chain:
            group.images[image] -= 1
            if not group.images[image]:
                del group.images[image]
                group.weights -= size

    def charge_tokens(self, count: int, now: int) -> None:
        """Charge tokens that had not been computed before."""
        for group in self.chain:
            group.tokens += count
            if group.settings.tokens_max:
                group._refill(now)
                group._credit -= count * _TOKEN

    @property
    def shares_prefixes(self) -> bool:
        """Whether processes that are born here have the names of their KV's blocks in common with other owners."""
        return any(group.settings.share_prefixes for group in self.chain)

    # --- limits -----------------------------------------------------------------------------------------------------

    def kv_room(self) -> tuple[int, Group | None]:
        """Bytes of KV that may still be mapped, and the group that limits them; a great number if there is no limit."""
        room, narrowest = 1 << 62, None
        for group in self.chain:
            limit = group.settings.kv_max
            if limit and limit - group.kv < room:
                room, narrowest = limit - group.kv, group
        return max(0, room), narrowest

    @property
    def kv_max(self) -> int:
        """The smallest limit on its KV, its own or one above; 0: none."""
        most = 0
        for group in self.chain:
            limit = group.settings.kv_max
            if limit and (limit < most or not most):
                most = limit
        return most

    def with_kv_max(self, most: int) -> Group:
        """The group, itself or one above, whose limit that is."""
        return next(group for group in self.chain if group.settings.kv_max == most)

    def over_high(self) -> Group | None:
        """The topmost group that has more KV than its `kv_high`."""
        over = [g for g in self.chain if g.settings.kv_high and g.kv > g.settings.kv_high]
        return over[-1] if over else None

    def may_swap(self, size: int) -> bool:
        """Whether `size` more bytes may lie in lower tiers."""
        for group in self.chain:
            if group.settings.swap_max and group.swap + size > group.settings.swap_max:
                group.events["swap_max"] += 1
                return False
        return True

    def check_weights(self, image: int, size: int, name: str) -> None:
        """EDQUOT if mapping an image would take more bytes of weights than its limits allow."""
        for group in self.chain:
            limit = group.settings.weights_max
            if limit and image not in group.images and group.weights + size > limit:
                group.events["weights_max"] += 1
                raise Errno.EDQUOT(
                    f"the weights of {name} are {size:,} bytes: too many for weights_max of group {group.path}, with "
                    f"{group.weights:,} of {limit:,}"
                )

    def check_logs(self, size: int) -> None:
        """EDQUOT if `size` more bytes of logs are too many for the session, its owner or the kernel."""
        for group in self.chain:
            most = LOGS.each if group.session else LOGS.owner if group.home else 0 if group.parent else LOGS.all
            if most and group.logs + size > most:
                group.refused += 1
                whose = f"group {group.path}" if group.parent else "all processes"
                raise LOGS.refuse(whose, group.logs, most)

    def check_pids(self, count: int, already: Group | None = None) -> None:
        """EAGAIN if `count` more processes are too many. A group with `already` in its subtree counts them already."""
        for group in self.chain:
            limit = group.settings.pids_max or group.usual_pids
            if limit and group.pids + count > limit and not (already is not None and already.below(group)):
                group.events["pids_max"] += 1
                raise Errno.EAGAIN(
                    f"{count} more would be too many for group {group.path}: it has {group.pids} processes of at most "
                    f"{limit} (pids_max); kill or wait for some first"
                )

    def exhausted(self) -> Group | None:
        """The group, itself or one above, that has used up its `tokens_total`; or None."""
        for group in self.chain:
            if 0 < group.settings.tokens_total <= group.tokens:
                return group
        return None

    def tokens_left(self) -> int:
        """Tokens that it may still compute in its life; a great number if there is no limit."""
        left = 1 << 62
        for group in self.chain:
            limit = group.settings.tokens_total
            if limit and limit - group.tokens < left:
                left = limit - group.tokens
        return max(0, left)

    def obstacle(self, now: int) -> Group | None:
        """The first group, from this one up, whose rate of tokens allows no more now; or None."""
        for group in self.chain:
            if group.settings.tokens_max and group.wait(now) > 0:
                return group
        return None

    def wait(self, now: int) -> int:
        """Nanoseconds until its own rate allows a token."""
        if not self.settings.tokens_max:
            return 0
        self._refill(now)
        return max(0, -((self._credit - _TOKEN) // self._rate))

    def time_for(self, count: int) -> int:
        """Nanoseconds in which its rate allows `count` tokens."""
        return count * _TOKEN // self._rate

    def allowance(self, now: int) -> int:
        """How many tokens its own rate allows now, at least one."""
        self._refill(now)
        return max(1, self._credit // _TOKEN)

    def _refill(self, now: int) -> None:
        most, before, self._refilled = max(_TOKEN, self._rate * _BURST), self._refilled, now
        self._credit = most if before is None else min(most, self._credit + self._rate * (now - before))

    @property
    def _rate(self) -> int:
        """Microtokens per second."""
        return max(1, round(1_000_000 * self.settings.tokens_max))

    # --- weight -----------------------------------------------------------------------------------------------------

    @property
    def weight(self) -> int:
        """Its weight among the processes and groups directly in its parent."""
        return self.settings.cpu_weight * NICE_0_WEIGHT

    def add_load(self, device: str, weight: int) -> None:
        """A process or group directly below, of this weight, begins to want a device; with a negative weight it ceases
        to. A group wants a device while anything below it does."""
        before = self.load.pop(device, 0)
        after = before + weight
        if after:
            self.load[device] = after
        if self.parent is not None and (before == 0) != (after == 0):
            self.parent.add_load(device, self.weight if after else -self.weight)

    def share(self, device: str, weight: int) -> tuple[int, int]:
        """The part of a device, as (part, whole), that is due to a process directly below with this weight, among all
        that want the device now: exact, a product over the levels."""
        part, whole, own, group = 1, 1, weight, self
        while True:
            part, whole = part * own, whole * max(group.load.get(device, 0), own)
            if group.parent is None or group.apart:
                return part, whole
            own, group = group.weight, group.parent

    def change(self, settings: GroupSettings) -> None:
        """Put other settings in force."""
        before = self.weight
        if settings.tokens_max != self.settings.tokens_max:
            self._refilled = None
        self.settings = settings
        if self.parent is not None:
            for device in self.load:
                self.parent.add_load(device, self.weight - before)


class GroupTree:
    """Groups by path."""

    def __init__(
        self,
        user: str,
        operator: Owner,
        session_pids: int = 0,
        user_pids: int = 0,
        quota_of: Callable[[int], GroupSettings] | None = None,
        *,
        parted: bool = False,
    ) -> None:
        """`session_pids`: processes of a program's session, unless its `pids_max` says otherwise; 0: any number;
        `user_pids`: likewise of a user. `quota_of`: the settings that the group of a uid begins with. `parted`: owners
        have turns of their own."""
        self._session_pids, self._user_pids, self._quota_of, self._parted = session_pids, user_pids, quota_of, parted
        self.root = Group(owner=operator)
        self.system = self._add(self.root, "system", _DEFAULT)
        self.users = self._add(self._add(self.root, "users", _DEFAULT), user or "user", _DEFAULT)
        self.users.home, self.users.apart = True, parted
        self.homes = {self.users.name}  # of uids, in /users
        self.refused = 0  # times that a group was one too many

    def __iter__(self) -> Iterator[Group]:
        """All groups, parents first."""
        return self.below(self.root)

    @staticmethod
    def below(top: Group) -> Iterator[Group]:
        """A group and all groups in it, parents first."""
        waiting = [top]
        while waiting:
            group = waiting.pop()
            yield group
            waiting += reversed(group.children.values())

    def home(self, owner: Owner) -> Group:
        """The group of an owner, which has the sessions of its programs; it is made if it is not there. A uid's is in
        /users, a tenant's in that of its uid."""
        group = self.users
        if owner.uid != group.owner.uid:
            group = self._home(group.chain[1], str(owner.uid), owner if not owner.tenant else owner.base)
        return self._home(group, owner.tenant, owner) if owner.tenant else group

    def _home(self, parent: Group, name: str, owner: Owner) -> Group:
        settings = _DEFAULT if owner.tenant or self._quota_of is None else self._quota_of(owner.uid)
        group = parent.children.get(name) or self._add(parent, name, settings)
        if not group.home:
            group.home, group.apart = True, self._parted
            group.usual_pids = 0 if owner.tenant else self._user_pids
            self.homes |= set() if owner.tenant else {name}
            for one in self.below(group):  # somebody may have made it, to set limits
                one.owner = owner
        return group

    def session(self, pid: int, owner: Owner) -> Group:
        """A new group for the processes of a program."""
        return self._as_session(self._add(self.home(owner), f"{_SESSION}{number_of(pid)}", _DEFAULT))

    def _as_session(self, group: Group) -> Group:
        group.session, group.usual_pids = True, self._session_pids
        return group

    def find(self, path: str, base: Group) -> Group:
        """The group of a path, which is relative to `base` unless it begins with a slash. ENOENT names the groups there
        are."""
        group = self.root if path.startswith("/") else base
        for name in names(path):
            if name not in group.children:
                there = ", ".join([*group.children][:_NAMED]) or "nothing"
                there += f" and {len(group.children) - _NAMED} more" if len(group.children) > _NAMED else ""
                raise Errno.ENOENT(f"no group {name!r} in {group.path}, which has: {there}")
            group = group.children[name]
        return group

    def create(self, parent: Group, name: str, settings: GroupSettings) -> Group:
        """A new group. EINVAL if the name is taken or not allowed, EAGAIN if there are too many groups."""
        if parent.home and name.startswith(_SESSION):
            raise Errno.EINVAL(f"names that begin with {_SESSION!r} are for programs' sessions")
        if name in parent.children:
            raise Errno.EINVAL(f"there is a group {parent.children[name].path} already")
        if len(parent.chain) > MAX_GROUP_DEPTH:
            why = f"groups are nested at most {MAX_GROUP_DEPTH} deep; {parent.path} is that deep"
            raise Errno.EINVAL(why)
        for group in parent.chain:
            own = GROUPS.owner if group.home and not group.owner.operator else 0
            most = GROUPS.each if group.session else GROUPS.all if group is self.root else own
            if most and group.inside >= most:
                self.refused += 1
                raise Errno.EAGAIN(f"there are {most} groups in {group.path} already; remove some first")
        return self._add(parent, name, settings)

    def recall(self, path: str) -> Group:
        """The group of an absolute path; it is made if it is not there, a session as a session."""
        group = self.root
        for name in filter(None, path.split("/")):
            if name not in group.children:
                made = self._add(group, name, _DEFAULT)
                if name.startswith(_SESSION) and group.home:
                    self._as_session(made)
            group = group.children[name]
        return group

    def remove(self, group: Group) -> None:
        """Remove a group. EBUSY unless it is empty."""
        if group.parent is None or group in (self.system, self.users, self.users.parent):
            raise Errno.EINVAL(f"{group.path} is the kernel's own and stays")
        if group.children or group.pids:
            what = f"{group.pids} processes" if group.pids else f"{len(group.children)} groups"
            raise Errno.EBUSY(f"{group.path} has {what} in it; end or move them first")
        group.end()
        if group.home and not group.owner.tenant:
            self.homes.discard(group.name)

    @staticmethod
    def _add(parent: Group, name: str, settings: GroupSettings) -> Group:
        for above in parent.chain:
            above.inside += 1
        group = parent.children[name] = Group(name, parent, settings)
        return group


def split(path: str) -> tuple[str, str]:
    """The path of the group that has, or would have, the last name of a path; and that name. EINVAL."""
    *parents, name = names(path) or [""]
    if not name:
        raise Errno.EINVAL(f"{path!r} names no group to create")
    return ("/" if path.startswith("/") else "") + "/".join(parents), name


def names(path: str) -> list[str]:
    found = [name for name in path.split("/") if name]
    if bad := next((name for name in found if name in (".", "..") or not _NAME.fullmatch(name)), None):
        raise Errno.EINVAL(f"{path!r}: {bad!r} is no name of a group; letters, digits, '_', '.' and '-' are allowed")
    return found
