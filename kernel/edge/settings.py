"""Configuration: a TOML file and the command line, typed, into what the core and the edge need.

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

    [partition]               # these users share neither frames nor steps with anybody (kernel/sched/partition.py)
    owners = ["1001", "1002"]
    turn_seconds = 0.05

    [groups."/users/ada"]     # control groups to be made at boot: any field of GroupSettings
    kv_max = "256MiB"
    cpu_weight = 200

Like systemd's unit files it is declarative and small; unlike them an unknown or mistyped key is an error, named with
its path. The command line overrides the file.
"""

from __future__ import annotations

import dataclasses
import getpass
import importlib.util
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llmasos.drivers import protocol
from llmasos.drivers.protocol import KINDS
from llmasos.kernel.calls.group import check_settings
from llmasos.kernel.events import DeviceConfig, KernelConfig, Partition
from llmasos.kernel.groups.group import names as group_names
from llmasos.kernel.memory.evictions import make_evictions
from llmasos.kernel.memory.victims import make_victims
from llmasos.kernel.sched.policies import make_policy
from llmasos.syscalls import audit_chain, limits, runtime
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
    keep: Annotated[int, Meta(ge=0)] = 16  # files of 8 MiB that are kept; 0: all


class Privacy(msgspec.Struct, forbid_unknown_fields=True):
    """The `[privacy]` of the file."""

    # What users see of others' processes: how many there are in each one's group, or, as with Unix's `ps`, their rows.
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


MOST_BYTES = 1 << 20  # of a configuration file
MOST_SLIP = 1000  # bytes of memory, below which nothing can run
_FILES = ("script",)  # options of drivers that name a file


def read(path: str | None) -> File:
    """Read the configuration file (None: all defaults). Raises SyscallError EINVAL naming the key that is wrong."""
    if path is None:
        return File()
    try:
        with open(Path(path).expanduser(), "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise Errno.EINVAL(f"{path} has more than {MOST_BYTES} bytes and is no configuration; name a TOML file")
        found = record(msgspec.toml.decode(text), File)
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
        one.options = {key: _whole(key, _option(value), place) for key, value in one.options.items()}
    return found


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
        raise Errno.EINVAL(f'the path of a group begins with a slash, as "/users/{_user()}" does; found {path!r}')
    if re.match(r"/+users/+[^/]+/+session-", path):
        raise Errno.EINVAL("names that begin with 'session-' are for programs' sessions")
    check_settings(group.settings(path))


def check_place(path: str) -> None:
    """ENOENT for the path of a model that is not there. Other names are the drivers' to look for."""
    if not path:
        raise Errno.EINVAL("wanted a directory, a file or the name of a model, found nothing")
    if path.startswith(("/", "~", "./", "../")) and not Path(path).expanduser().exists():
        raise Errno.ENOENT(f"there is no {path}; name the directory of a model, or a file of one")


def device(text: str) -> Device:
    """A device of the command line, `KIND[:key=value,...]`. Keys that are no field of Device are options of the
    driver."""
    kind, _, rest = text.partition(":")
    fields: dict[str, Any] = {"kind": kind}
    options: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise Errno.EINVAL(f"--device {text}: {item!r} is not key=value; e.g. --device cpu:threads=2")
        target = fields if key in Device.__struct_fields__ and key not in ("kind", "options") else options
        target[key] = value
    try:
        # Not strict: numbers on the command line are text.
        return msgspec.convert({**fields, "options": options}, Device, strict=False)
    except msgspec.ValidationError as error:
        raise Errno.EINVAL(f"--device {text}: {error}") from None


def default_devices() -> list[Device]:
    """The CPU, and a GPU where NVIDIA's kernel driver lists one."""
    gpus = Path("/proc/driver/nvidia/gpus")
    has_gpu = gpus.is_dir() and any(gpus.iterdir())
    return [Device("cpu"), Device("cuda")] if has_gpu else [Device("cpu")]


def known_models() -> dict[str, str]:
    """The embedded model, and the model directories in (or named by) $LLMASOS_MODELS."""
    found: dict[str, str] = {}
    spec = importlib.util.find_spec("models")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        _add_model(found, Path(place) / "tiny")
    for place in filter(None, os.environ.get("LLMASOS_MODELS", "").split(":")):
        path = Path(place).expanduser()
        if not _add_model(found, path) and path.is_dir():
            for inner in sorted(path.iterdir()):
                _add_model(found, inner)
    return found


def _add_model(found: dict[str, str], path: Path) -> bool:
    if not (path / "config.json").is_file():
        return False
    found[path.name] = os.fspath(path.absolute())
    return True


@dataclasses.dataclass(slots=True)
class Overrides:
    """The part of the configuration that the command line gives; an empty field: nothing."""

    devices: list[str] = dataclasses.field(default_factory=list)
    models: list[str] = dataclasses.field(default_factory=list)  # NAME=PATH
    policy: str = ""
    max_runs: int = 0
    step_tokens: int = 0
    kv_bytes: str = ""
    weight_bytes: str = ""
    journal: bool | None = None  # whether one is kept; None: as the file says
    journal_directory: str = ""
    private: bool = False  # the kernel ends with its parent
    victims: str = ""
    evictions: str = ""
    plain: bool = False  # nothing is encrypted
    tcp: str = ""  # HOST:PORT
    file: str = ""  # the path of the configuration, for what is said of it
    arguments: list[str] = dataclasses.field(default_factory=list)  # all words of the command line, for `status`


@dataclasses.dataclass(slots=True)
class JournalConfig:
    """Where the journal is kept, and when it reaches the disk (kernel/edge/journal_keeper.py)."""

    directory: str
    fsync: Literal["always", "interval", "never"] = "interval"


@dataclasses.dataclass(slots=True)
class AuditConfig:
    """Where the audit log is kept, and who is told of its heads (kernel/edge/audit_keeper.py)."""

    directory: str
    keys: str
    anchor: str | list[str]
    head_seconds: float
    keep: int


@dataclasses.dataclass(slots=True)
class BootConfig(KernelConfig):
    """The configuration of the core, and of what the core does not know."""

    journal: JournalConfig | None = None  # None: no journal is kept
    audit_log: AuditConfig | None = None  # None: none is kept
    devices_named: bool = False  # on the command line or in the file
    seal: Seal = dataclasses.field(default_factory=Seal)
    net: Net = dataclasses.field(default_factory=Net)


def _devices(file: File, over: Overrides) -> list[DeviceConfig]:
    """The devices of the command line, else of the file, else those that there are. EINVAL."""
    devices = [device(text) for text in over.devices] or file.device or default_devices()
    names: dict[str, int] = {}
    configs = []
    for wanted in devices:
        if wanted.kind not in KINDS:
            raise Errno.EINVAL(f"no driver for a device of kind {wanted.kind!r}; there are: {', '.join(KINDS)}")
        number = names[wanted.kind] = names.get(wanted.kind, -1) + 1
        name = wanted.name or f"{wanted.kind}{number}"
        configs.append(
            DeviceConfig(
                name=name,
                kind=wanted.kind,
                kv_bytes=_memory(over.kv_bytes or wanted.kv_bytes, f"kv_bytes of {name}"),
                image_kv_bytes=_memory(wanted.image_kv_bytes, f"image_kv_bytes of {name}"),
                weight_bytes=_memory(over.weight_bytes or wanted.weight_bytes, f"weight_bytes of {name}"),
                policy=located_policy(over.policy or wanted.policy),
                victims=located_policy(over.victims or wanted.victims),
                evictions=located_policy(over.evictions or wanted.evictions),
                max_runs=over.max_runs or wanted.max_runs,
                step_tokens=over.step_tokens or wanted.step_tokens,
                options={key: _whole(key, _option(value), Path.cwd()) for key, value in wanted.options.items()},
            )
        )
    return configs


def build(file: File, over: Overrides, directory: Path, version: str) -> BootConfig:
    """What a kernel is booted with. Raises SyscallError EINVAL for values that make no sense."""
    configs, models = _devices(file, over), _models(file, over)
    audit = _audit(file, over, journal := _journal(file.journal, over, directory), directory)
    return BootConfig(
        devices=configs,
        models=models,
        default_model=_default_model(file, models, {one.kind for one in configs}, over),
        runtime=os.fspath(directory.absolute()),
        os_pid=os.getpid(),
        version=version,
        user=_user(),
        uid=os.getuid(),
        show_all=file.privacy.ps == "rows",
        salt=secrets.randbits(63),
        groups={path: group.settings(path) for path, group in file.groups.items()},
        journal=journal,
        audit_log=audit,
        audit=audit.directory if audit is not None else "",
        audit_required=list(file.audit.required),
        trust=_trust(file.trust),
        partition=Partition(file.partition.owners, file.partition.turn_seconds),
        devices_named=bool(over.devices or file.device),
        seal=msgspec.structs.replace(file.seal, enabled=file.seal.enabled and not over.plain),
        net=msgspec.structs.replace(file.net, tcp=over.tcp or file.net.tcp),
        journal_path=os.path.join(journal.directory, runtime.JOURNAL) if journal is not None else "",
        fsync=journal.fsync if journal is not None else "",
        arguments=list(over.arguments),
        grace=file.journal.grace,
        **_tuned(file.kernel),
    )


def _models(file: File, over: Overrides) -> dict[str, str]:
    """The models that are known by name, and where they are."""
    models = known_models() | {name: _model_path(path) for name, path in file.models.items()}
    for text in over.models:
        name, equals, path = text.partition("=")
        if not name or not equals or not path:
            raise Errno.EINVAL(f"--model {text}: wanted NAME=PATH")
        try:
            check_place(path)
        except SyscallError as error:
            raise error.errno(f"--model {text}: {error.reason}") from None
        models[name] = _model_path(path)
    return models


def _tuned(found: Tuning) -> dict[str, Any]:
    """The fields of KernelConfig that the file sets."""
    return {name: value for name in Tuning.__struct_fields__ if (value := getattr(found, name)) is not UNSET}


def _memory(wanted: Size, what: str) -> int:
    """Bytes of a device's memory. So few are a unit that was forgotten."""
    found = size(wanted, what)
    if 0 < found < MOST_SLIP:
        raise Errno.EINVAL(
            f"{what}: {found} bytes hold no page and no model; write e.g. 512MiB, or 0 for the device's own"
        )
    return found


def _default_model(file: File, models: dict[str, str], kinds: set[str], over: Overrides) -> str:
    """The model of those who name none. EINVAL, ENOENT for one of the file that the file's devices cannot run, or that is
    not there; devices of the command line have theirs instead."""
    usual = "sim" if kinds == {"sim"} else "tiny"
    if not (wanted := file.default_model):
        return usual
    said = f"the configuration {over.file} is wrong: default_model = {wanted!r}: "
    simulated = re.match(r"sim\b", models.get(wanted, wanted)) is not None
    fits = "sim" in kinds if simulated else kinds != {"sim"} or wanted in file.models
    if not fits and over.devices:
        return usual
    if not fits and simulated:
        raise Errno.EINVAL(
            f"{said}that is a simulated model, and no device is simulated (there is {', '.join(sorted(kinds))}): add "
            f'a [[device]] with kind = "sim", or name one of: {", ".join(models)}'
        )
    if not fits:
        raise Errno.EINVAL(
            f"{said}all devices are simulated, and run the models whose names begin with 'sim', as 'sim:7b'"
        )
    if simulated or wanted in models:
        return wanted
    try:
        check_place(wanted)
    except SyscallError as error:
        raise error.errno(f"{said}{error.reason}") from None
    if not re.search("[/:]", wanted) and not Path(wanted).exists():  # others are names that drivers look for
        raise Errno.ENOENT(f"{said}no model is called so; there are: {', '.join(models)}; others: see [models]")
    return wanted


def _journal(wanted: Journal, over: Overrides, directory: Path) -> JournalConfig | None:
    kept = over.journal
    if kept is None:
        kept = not over.private if wanted.enabled is UNSET else wanted.enabled
    if not kept:
        return None
    try:
        named = over.journal_directory or wanted.directory
        place = Path(named).expanduser() if named else runtime.journal_place(directory)
    except RuntimeError as error:
        why = f"no place for the journal: {error}; name one (--journal DIR), or boot without (--no-journal)"
        raise Errno.ENOENT(why) from None
    return JournalConfig(os.fspath(place.absolute()), wanted.fsync)


def _trust(wanted: Trust) -> protocol.Trust | None:
    """Which models may be loaded; the keys are read now, whatever is at their paths later."""
    if not (wanted.digests or wanted.keys):
        return None
    keys = []
    for name in wanted.keys:
        try:
            with open(Path(name).expanduser(), "rb") as file:
                keys.append(file.read(MOST_BYTES).decode())
        except (OSError, UnicodeError) as error:
            raise Errno.ENOENT(f"[trust] keys: {name} cannot be read: {error}; name a public key, in PEM") from None
        if "PUBLIC KEY" not in keys[-1]:
            raise Errno.EINVAL(f"[trust] keys: {name} is no public key in PEM; name one")
    return protocol.Trust([digest.removeprefix("sha256:") for digest in wanted.digests], keys)


def _audit(file: File, over: Overrides, journal: JournalConfig | None, directory: Path) -> AuditConfig | None:
    """The audit log. Where nothing is said, there is one beside a journal that outlives the runtime directory; a kernel
    that was booted elsewhere for a while has none."""
    wanted = file.audit
    lasts = bool(over.journal_directory or file.journal.directory) or directory.absolute() == runtime.usual().absolute()
    if not (journal is not None and lasts if wanted.enabled is UNSET else wanted.enabled):
        if wanted.required:
            raise Errno.EINVAL("[audit] required names classes, and there is no audit log: set enabled = true")
        return None
    if wanted.directory:
        place = Path(wanted.directory).expanduser()
    elif journal is not None:
        place = Path(journal.directory) / audit_chain.DIRECTORY
    else:
        raise Errno.EINVAL("an audit log without a journal has no place: set [audit] directory")
    keys = os.fspath(Path(wanted.verification_keys).expanduser().absolute()) if wanted.verification_keys else ""
    anchor = wanted.anchor
    if isinstance(anchor, str) and anchor:
        anchor = os.fspath(Path(anchor).expanduser().absolute())
    return AuditConfig(os.fspath(place.absolute()), keys, anchor, wanted.head_seconds, wanted.keep)


def _user() -> str:
    """The name of the user that boots the kernel, in a form that a control group can have."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no name for this user id
        name = str(os.getuid()) if hasattr(os, "getuid") else ""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).strip(".") or "user"


def _model_path(path: str) -> str:
    """A directory made absolute; anything else (a hub name, a simulated model) as it is."""
    place = Path(path).expanduser()
    return os.fspath(place.absolute()) if place.is_dir() else path


def _whole(key: str, value: str, directory: Path) -> str:
    """An option of a driver; the path of a file made absolute, since a kernel may be started anew elsewhere."""
    return os.path.normpath(directory.absolute() / Path(value).expanduser()) if key in _FILES and value else value


def _option(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
