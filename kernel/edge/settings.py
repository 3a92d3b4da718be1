"""The configuration file: TOML, typed, and checked by file, table and key. boot_config.py makes of it, and of the
command line, what a kernel is booted with.

    default_model = "tiny"

    [kernel]                  # any field of KernelConfig from `quantum` on
    quantum = 32

    [[device]]                # any field of DeviceConfig
    name = "cpu0"
    kind = "cpu"
    policy = "fair"
    kv_bytes = "512MiB"
    options = { threads = 2 }

    [models]
    story = "/srv/models/story"

    [journal]                 # what survives the kernel's death (kernel/journal)
    enabled = true            # false: as `llmasos boot --no-journal`
    fsync = "interval"        # each second; "always": before any answer leaves; "never": when the system likes
    directory = "/var/lib/llmasos"   # empty: $XDG_STATE_HOME/llmasos; of a kernel elsewhere its runtime directory
    grace = 30.0              # seconds that programs have to come back

    [audit]                   # who did what (docs/audit.md)
    enabled = true            # unset: where the journal has a place that lasts
    required = ["rights", "files"]   # classes of calls that are not made if their line cannot be written
    anchor = ["ssh", "log@host", "cat >> heads"]   # gets the signed head each minute; or the path of a file

    [seal]                    # how the journal and process images are encrypted (kernel/edge/keys.py)
    enabled = true            # false: as `llmasos boot --plain`
    key = "file"              # where the master key is; "keyring": the operating system's; "command": what it prints
    key_file = "/etc/llmasos/seal.key"   # empty: $XDG_CONFIG_HOME/llmasos/seal.key, made at the first boot
    key_command = "pass show llmasos"
    directory = "/var/lib/llmasos/keys"  # of the keys that it wraps; empty: $XDG_STATE_HOME/llmasos/keys

    [net]                     # programs on other machines (docs/howto/remote.md)
    tcp = "0.0.0.0:7411"      # as `llmasos boot --tcp`; empty: the kernel listens on no network address
    key = "/etc/llmasos/server.key"      # empty: $XDG_CONFIG_HOME/llmasos/server.key, made at the first such boot
    authorized_keys = "/etc/llmasos/authorized_keys"   # empty: $XDG_CONFIG_HOME/llmasos/authorized_keys
    grace = 30.0              # seconds that a program has to come back after its connection was cut

    [partition]               # these users share neither frames nor steps with anybody (kernel/sched/partition.py)
    owners = ["1001", "1002"]
    turn_seconds = 0.05

    [users]                   # of the kernel of a machine (boot --system, docs/howto/system.md): who, and how much
    group = "llm"             # only its members can connect; empty: everybody
    operators = ["ada", "@wheel"]   # have every right, as root has
    default = { kv_max = "1GiB" }   # what each user has at most: any field of GroupSettings
    quota.bob.kv_max = "4GiB"       # of one, by name or user id, or of the members of a "@group"

    [groups."/users/ada"]     # control groups to be made at boot: any field of GroupSettings
    kv_max = "256MiB"
    cpu_weight = 200

Like systemd's unit files it is declarative and small; unlike them an unknown or mistyped key is an error, named with
its path. The command line overrides the file.
"""

from __future__ import annotations

import getpass
import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llmasos.drivers.protocol import KINDS
from llmasos.kernel.calls.group import check_settings
from llmasos.kernel.edge.users import check_name
from llmasos.kernel.groups.group import names as group_names
from llmasos.kernel.memory.evictions import make_evictions
from llmasos.kernel.memory.victims import make_victims
from llmasos.kernel.sched.policies import make_policy
from llmasos.syscalls import curve_keys, limits, runtime
from llmasos.syscalls.checked import Wrong, record
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.policy_file import located_policy
from llmasos.syscalls.records import GroupSettings, KvAction
from llmasos.syscalls.size import Size, size

IDLE_SECONDS = 600.0  # a model that nobody has run for so long leaves memory, unless the file says otherwise

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0.0, le=1e9)]


class Device(msgspec.Struct, forbid_unknown_fields=True):
    """A `[[device]]` of the file; the fields are those of DeviceConfig."""

    kind: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]*$", description=f"one of {', '.join(KINDS)}")]
    name: Annotated[
        str, Meta(pattern="^[A-Za-z][A-Za-z0-9_-]*$", description="a letter, then letters, digits, '_' and '-'")
    ] = ""
    kv_bytes: Size = 0
    image_kv_bytes: Size = 0
    weight_bytes: Size = 0
    policy: str = "fair"
    victims: str = "cost"
    evictions: str = "lru"
    max_runs: Annotated[int, Meta(ge=0)] = 0
    step_tokens: Annotated[int, Meta(ge=0)] = 0
    options: dict[str, str | int | float | bool] = {}


class Tuning(msgspec.Struct, forbid_unknown_fields=True):
    """The `[kernel]` of the file; a field that is not set keeps KernelConfig's default."""

    quantum: Positive | UnsetType = UNSET
    weight_quantum: Seconds | UnsetType = UNSET
    aging_seconds: Seconds | UnsetType = UNSET
    hang_seconds: Seconds | UnsetType = UNSET
    start_seconds: Seconds | UnsetType = UNSET
    restart_first: Seconds | UnsetType = UNSET
    restart_max: Seconds | UnsetType = UNSET
    restart_forgiven: Seconds | UnsetType = UNSET
    idle_seconds: Annotated[float, Meta(ge=0.0, le=1e9)] = IDLE_SECONDS
    pagein_seconds: Seconds | UnsetType = UNSET
    max_processes: Positive | UnsetType = UNSET
    session_processes: Positive | UnsetType = UNSET
    max_crashes: Positive | UnsetType = UNSET
    trace_events: Positive | UnsetType = UNSET
    log_lines: Positive | UnsetType = UNSET


class GroupFile(msgspec.Struct, forbid_unknown_fields=True):
    """A `[groups."PATH"]` of the file; the fields are those of GroupSettings."""

    kv_max: Size = 0
    kv_high: Size = 0
    swap_max: Size = 0
    weights_max: Size = 0
    tokens_max: Annotated[float, Meta(ge=0.0, le=1e12)] = 0.0
    tokens_total: Annotated[int, Meta(ge=0)] = 0
    pids_max: Annotated[int, Meta(ge=0)] = 0
    cpu_weight: Annotated[int, Meta(ge=limits.MIN_CPU_WEIGHT, le=limits.MAX_CPU_WEIGHT)] = 100
    kv_action: KvAction = KvAction.SPILL
    share_prefixes: bool = False

    def settings(self, path: str) -> GroupSettings:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        for name in ("kv_max", "kv_high", "swap_max", "weights_max"):
            fields[name] = size(fields[name], f"{name} of group {path}")
        return GroupSettings(**fields)


UserName = Annotated[str, Meta(min_length=1)] | int


class Users(msgspec.Struct, forbid_unknown_fields=True):
    """The `[users]` of the file: who uses this kernel, and how much of it. What `quota` does not say of a user is as
    `default` has it."""

    group: str = ""  # whose members alone can connect to the kernel of the machine; empty: everybody can
    operators: list[UserName] = []  # by name, user id or "@GROUP": they have every right, as root has
    default: GroupFile = msgspec.field(default_factory=GroupFile)  # of each user's group, /users/UID
    quota: dict[str, GroupFile] = {}  # of some users, by name, user id or "@GROUP"; the first group that one is in counts


class PartitionFile(msgspec.Struct, forbid_unknown_fields=True):
    """`[partition]`: turns and frames of their own for owners, so that they do not feel each other."""

    owners: list[Annotated[str, Meta(pattern=r"\A[0-9]{1,10}(/[^/]+)?\Z")]] = []  # user ids, as "1000", or "1000/TENANT"
    turn_seconds: Annotated[float, Meta(ge=0.001, le=10.0)] = 0.05  # a step begins with each turn, and takes no longer


class Journal(msgspec.Struct, forbid_unknown_fields=True):
    """The `[journal]` of the file. `enabled` unset: a journal is kept, unless the kernel ends with its parent."""

    enabled: bool | UnsetType = UNSET  # false: as `llmasos boot --no-journal`
    # `interval`: each second; `always`: before any answer leaves; `never`: when the system likes.
    fsync: Literal["always", "interval", "never"] = "interval"
    directory: str = ""  # empty: $XDG_STATE_HOME/llmasos; of a kernel elsewhere its runtime directory
    grace: Annotated[float, Meta(ge=0.0, le=limits.MAX_TIMEOUT)] = 30.0


Digest = Annotated[
    str, Meta(pattern="^(sha256:)?[0-9a-f]{64}$", description="64 hexadecimal digits, as `llmasos inventory` prints them")
]


class Trust(msgspec.Struct, forbid_unknown_fields=True):
    """The `[trust]` of the file. With any of them, all models but those are refused."""

    digests: list[Digest] = []  # of models, as `llmasos inventory` prints them
    keys: list[str] = []  # files of public keys (PEM) that models may be signed by, with model-signing


AuditClass = Literal["sessions", "processes", "rights", "limits", "models", "files", "system"]


class Audit(msgspec.Struct, forbid_unknown_fields=True):
    """The `[audit]` of the file. `enabled` unset: there is an audit log where the journal has a place that lasts."""

    enabled: bool | UnsetType = UNSET  # unset: where the journal has a place that lasts
    directory: str = ""  # empty: `audit`, beside the journal
    required: list[AuditClass] = []  # classes of calls that are not made if their line cannot be written
    anchor: str | list[str] = ""  # gets the signed head: the path of a file, or a program with its arguments
    head_seconds: Seconds = 60.0  # between two signed heads, where there are new lines
    verification_keys: str = ""  # the file of the keys that check all seals; empty: in the directory
    keep: Annotated[int, Meta(ge=0)] = 64  # files of 8 MiB that are kept; 0: all


class Privacy(msgspec.Struct, forbid_unknown_fields=True):
    """The `[privacy]` of the file."""

    # What users see of others' processes: how many there are in each one's group, or, as with Unix's `ps`, their rows,
    # without what only their users may know: names of agents, groups and models of their own.
    ps: Literal["count", "rows"] = "count"


class Seal(msgspec.Struct, forbid_unknown_fields=True):
    """The `[seal]` of the file: how the journal and process images are encrypted."""

    enabled: bool = True  # false: as `llmasos boot --plain`
    # `file`: a file of mode 0600; `keyring`: the operating system's, which a reboot empties; `command`: what one prints.
    key: Literal["file", "keyring", "command"] = "file"
    key_file: str = ""  # empty: $XDG_CONFIG_HOME/llmasos/seal.key
    key_command: str = ""  # prints the master key, in hexadecimal
    directory: str = ""  # of the keys that it wraps; empty: $XDG_STATE_HOME/llmasos/keys


class Net(msgspec.Struct, forbid_unknown_fields=True):
    """The `[net]` of the file: programs on other machines, by CURVE only."""

    tcp: str = ""  # HOST:PORT to listen on, as `llmasos boot --tcp`; empty: nowhere
    key: str = ""  # the file of the kernel's secret key; empty: $XDG_CONFIG_HOME/llmasos/server.key
    authorized_keys: str = ""  # the file of the keys that may come; empty: $XDG_CONFIG_HOME/llmasos/authorized_keys
    # Seconds that a program has to come back after its connection was cut; 0: it ends at once.
    grace: Annotated[float, Meta(ge=0.0, le=limits.MAX_TIMEOUT)] = 30.0


class File(msgspec.Struct, forbid_unknown_fields=True):
    default_model: str = ""  # empty: the embedded one; where all devices are simulated, a simulated one
    kernel: Tuning = msgspec.field(default_factory=Tuning)  # `[kernel]`
    device: list[Device] = []  # `[[device]]`, one for each; none: the CPU, and a GPU where there is one
    models: dict[str, str] = {}  # `[models]`: names of directories, `story = "/srv/models/story"`
    groups: dict[str, GroupFile] = {}  # `[groups."/PATH"]`: control groups to be made at boot
    journal: Journal = msgspec.field(default_factory=Journal)  # `[journal]`
    trust: Trust = msgspec.field(default_factory=Trust)  # `[trust]`: which models may be loaded
    audit: Audit = msgspec.field(default_factory=Audit)  # `[audit]`
    privacy: Privacy = msgspec.field(default_factory=Privacy)  # `[privacy]`
    seal: Seal = msgspec.field(default_factory=Seal)  # `[seal]`
    partition: PartitionFile = msgspec.field(default_factory=PartitionFile)  # `[partition]`
    net: Net = msgspec.field(default_factory=Net)  # `[net]`
    users: Users = msgspec.field(default_factory=Users)  # `[users]`


CONFIGURATION = "kernel.toml"
MOST_BYTES = 1 << 20  # of a configuration file
_FILES = ("script",)  # options of drivers that name a file


def usual(named: str | None, *, system: bool = False) -> str | None:
    """The path of the configuration file: what is named, else the machine's or the user's own; None: there is none."""
    if named is not None:
        return named
    place = runtime.system_settings() / CONFIGURATION if system else runtime.configuration()
    return os.fspath(place) if place is not None and place.exists() else None


def read(path: str | None, *, system: bool = False) -> File:
    """Read the configuration file (None: all defaults); of the machine's kernel with the places of its keys. Raises
    SyscallError EINVAL naming the key that is wrong; EPERM: what the machine's kernel has is another user's."""
    found = _read(path)
    return _with_places(found) if system else found


def _with_places(found: File) -> File:
    """The configuration of the machine's kernel, which has no home: what it makes is in /var/lib/llmasos."""
    place = runtime.system_state()
    with suppress(OSError):  # it is not there yet
        if (owner := place.stat().st_uid) != os.geteuid():
            name = user_name(owner)
            raise Errno.EPERM(f"{place} belongs to user {name}; do this as that one (`sudo -u {name} ...`)")
    if not found.seal.key_file:
        found.seal.key_file = os.fspath(place / "seal.key")
    if not found.seal.directory:
        found.seal.directory = os.fspath(place / "keys")
    if not found.net.key:
        found.net.key = os.fspath(place / curve_keys.SERVER)
    if not found.net.authorized_keys:
        found.net.authorized_keys = os.fspath(place / curve_keys.AUTHORIZED)
    return found


def _read(path: str | None) -> File:
    if path is None:
        return File()
    try:
        with open(Path(path).expanduser(), "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise Errno.EINVAL(f"{path} has more than {MOST_BYTES} bytes and is no configuration; name a TOML file")
        found = record(_with_defaults(msgspec.toml.decode(text)), File)
        _check(found)
    except OSError as error:
        raise Errno.ENOENT(f"the configuration {path} cannot be read: {error.strerror}; name a TOML file") from None
    except (msgspec.DecodeError, UnicodeError, Wrong) as error:
        raise Errno.EINVAL(f"the configuration {path} is wrong: {error}") from None
    place = Path(path).expanduser().parent  # files of policies are named from there
    for one in found.device:
        one.policy, one.victims, one.evictions = (
            located_policy(name, place) for name in (one.policy, one.victims, one.evictions)
        )
        one.options = {key: driver_option(key, value, place) for key, value in one.options.items()}
    return found


def _with_defaults(found: dict[str, Any]) -> dict[str, Any]:
    """The tables of a file, with what is everybody's added to the quota of each."""
    users = found.get("users")
    if not isinstance(users, dict):
        return found
    quota, usual = users.get("quota"), users.get("default")
    if not (isinstance(quota, dict) and isinstance(usual, dict)):
        return found
    whole = {name: {**usual, **one} if isinstance(one, dict) else one for name, one in quota.items()}
    return {**found, "users": {**users, "quota": whole}}


def _check(found: File) -> None:
    """What the types do not say. Raises Wrong."""
    for number, one in enumerate(found.device, 1):
        table = f"[[device]] {number}"
        if one.kind not in KINDS:
            raise Wrong(f"{table} kind", f"there is no driver {one.kind!r}; there are: {', '.join(KINDS)}")
        with _where(f"{table} policy"):
            _ = ":" in one.policy or make_policy(one.policy, 1)
        with _where(f"{table} victims"):
            _ = ":" in one.victims or make_victims(one.victims)
        with _where(f"{table} evictions"):
            _ = ":" in one.evictions or make_evictions(one.evictions)
    for name, path in found.models.items():
        with _where(f"[models] {name}"):
            check_place(path)
    if found.seal.key == "command" and not found.seal.key_command.strip():
        raise Wrong("[seal] key_command", 'wanted the command that prints the key, since key = "command"; found nothing')
    with _where("[users.default]"):
        check_settings(found.users.default.settings("users"))
    for name, group in found.users.quota.items():
        with _where(f'[users.quota."{name}"]'):
            check_name(name)
            check_settings(group.settings(name))
    for name in map(str, found.users.operators):
        with _where("[users] operators"):
            check_name(name)
    for path, group in found.groups.items():
        with _where(f'[groups."{path}"]'):
            _check_group(path, group)


@contextmanager
def _where(place: str) -> Iterator[None]:
    try:
        yield
    except SyscallError as error:
        raise Wrong(place, error.reason) from None


def _check_group(path: str, group: GroupFile) -> None:
    if not path.startswith("/") or not group_names(path):
        raise Errno.EINVAL(f'the path of a group begins with a slash, as "/users/{user_name()}" does; found {path!r}')
    if re.match(r"/+users/+[^/]+/+session-", path):
        raise Errno.EINVAL("names that begin with 'session-' are for programs' sessions")
    check_settings(group.settings(path))


def check_place(path: str) -> None:
    """ENOENT for the path of a model that is not there. Other names are the drivers' to look for."""
    if not path:
        raise Errno.EINVAL("wanted a directory, a file or the name of a model, found nothing")
    if path.startswith(("/", "~", "./", "../")) and not Path(path).expanduser().exists():
        raise Errno.ENOENT(f"there is no {path}; name the directory of a model, or a file of one")


def user_name(uid: int | None = None) -> str:
    """The name of a user, or of the one that boots the kernel, in a form that a control group can have."""
    try:
        name = getpass.getuser() if uid is None else pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):  # no name for this user id
        name = str(os.getuid() if uid is None else uid)
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).strip(".") or "user"


def driver_option(key: str, value: str | int | float | bool, directory: Path) -> str:
    """An option of a driver as it gets it: as text; the path of a file made absolute, since a kernel may be started anew
    elsewhere."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return os.path.normpath(directory.absolute() / Path(text).expanduser()) if key in _FILES and text else text
