"""What a kernel is booted with: configuration file (settings.py) and command line, made into what core and edge need."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import secrets
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from llmasos.drivers import protocol
from llmasos.drivers.protocol import KINDS
from llmasos.kernel.edge import users
from llmasos.kernel.edge.settings import (
    MOST_BYTES,
    Device,
    File,
    Journal,
    Net,
    Seal,
    Trust,
    Tuning,
    Users,
    check_place,
    driver_option,
    user_name,
)
from llmasos.kernel.events import DeviceConfig, KernelConfig, Partition
from llmasos.syscalls import audit_chain, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.policy_file import located_policy
from llmasos.syscalls.size import Size, size

MOST_SLIP = 1000  # bytes of memory, below which nothing can run


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
    spec = importlib.util.find_spec("llmasos.models")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        _add_model(found, Path(place).resolve() / "tiny")
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
    system: bool = False  # it is the kernel of the machine
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
    readers: list[int] | None  # uids, beside the kernel's own; None: that is left as it is


@dataclasses.dataclass(slots=True)
class BootConfig(KernelConfig):
    """The configuration of the core, and of what the core does not know."""

    journal: JournalConfig | None = None  # None: no journal is kept
    audit_log: AuditConfig | None = None  # None: none is kept
    devices_named: bool = False  # on the command line or in the file
    seal: Seal = dataclasses.field(default_factory=Seal)
    net: Net = dataclasses.field(default_factory=Net)
    group: int | None = None  # of the machine's users, if it is not for all of them
    notes: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # level and text, for the log


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
                options={key: driver_option(key, value, Path.cwd()) for key, value in wanted.options.items()},
            )
        )
    return configs


def build(file: File, over: Overrides, directory: Path, version: str) -> BootConfig:
    """What a kernel is booted with. Raises SyscallError EINVAL for values that make no sense."""
    configs, models = _devices(file, over), _models(file, over)
    known, group = _users(file.users, over)
    audit = _audit(file, over, journal := _journal(file.journal, over, directory), directory, known.operators)
    return BootConfig(
        devices=configs,
        models=models,
        default_model=_default_model(file, models, {one.kind for one in configs}, over),
        runtime=os.fspath(directory.absolute()),
        os_pid=os.getpid(),
        version=version,
        user=user_name(),
        uid=os.getuid(),
        shared=over.system,
        operators=known.operators,
        quota=file.users.default.settings("[users.default]"),
        quotas=known.quotas,
        group=group,
        notes=[("warning", f"the configuration {over.file}: {text}") for text in known.nobody],
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
        plain=over.plain or not file.seal.enabled,
        net=msgspec.structs.replace(file.net, tcp=over.tcp or file.net.tcp),
        journal_path=os.path.join(journal.directory, runtime.JOURNAL) if journal is not None else "",
        fsync=journal.fsync if journal is not None else "",
        arguments=list(over.arguments),
        grace=file.journal.grace,
        cut_grace=file.net.grace,
        **_tuned(file.kernel),
    )


def _users(wanted: Users, over: Overrides) -> tuple[users.Found, int | None]:
    """The users that the file names, and the group of those who can connect. EINVAL, EPERM for a group that cannot be
    it."""
    group = None
    if wanted.group:
        said = f"the configuration {over.file} is wrong: [users] group"
        if not over.system:
            raise Errno.EINVAL(f"{said}: only the kernel of the machine (boot --system) has more than one user")
        try:
            group = users.group_id(wanted.group)
        except SyscallError as error:
            raise error.errno(f"{said}: {error.reason}") from None
    quotas = {name: one.settings(f"users.quota.{name}") for name, one in wanted.quota.items()}
    return users.found([str(one) for one in wanted.operators], quotas), group


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


def _audit(
    file: File, over: Overrides, journal: JournalConfig | None, directory: Path, operators: list[int]
) -> AuditConfig | None:
    """The audit log. Where nothing is said, there is one beside a journal that outlives the runtime directory; a kernel
    that was booted elsewhere for a while has none."""
    wanted = file.audit
    lasts = over.system or directory.absolute() == runtime.usual().absolute()
    lasts |= bool(over.journal_directory or file.journal.directory)
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
    readers = operators if over.system else None
    return AuditConfig(os.fspath(place.absolute()), keys, anchor, wanted.head_seconds, wanted.keep, readers)


def _model_path(path: str) -> str:
    """A directory made absolute; anything else (a hub name, a simulated model) as it is."""
    place = Path(path).expanduser()
    return os.fspath(place.absolute()) if place.is_dir() else path
