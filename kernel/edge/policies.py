"""Policies from modules of the user's: loaded from a file, checked, and kept beside the journal.

They become code in the kernel, which can do all that its user can. So a file must belong to the user whose kernel this
is; where a kernel serves several users, only root and the kernel's own user may name one (kernel/calls/system.py). Each
policy stands in a guard (guards.py).

A text is known by its digest, and kept under it: the next kernel goes on with what this one had, wherever it is started
and whatever has become of the file.
"""

from __future__ import annotations

import difflib
import inspect
import linecache
import os
import re
import stat
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from llmasos.kernel.edge.guards import Guard, GuardedEvictions, GuardedPolicy, GuardedVictims, Hang, Watch, said, where
from llmasos.kernel.edge.standing import Standing
from llmasos.kernel.events import DeviceConfig
from llmasos.kernel.memory.evictions import Evictions
from llmasos.kernel.memory.victims import Victims
from llmasos.kernel.sched.force import DEFAULTS
from llmasos.kernel.sched.policies import POLICIES, Sources
from llmasos.kernel.sched.policy import Policy
from llmasos.syscalls.atomic_file import opened, read_at, replacing, write_all
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.policy_file import SPEC, digest_of
from llmasos.syscalls.records import PolicyOut

MOST_BYTES = 1 << 20  # of a file
MOST_KEPT = 64  # files
FOLDER = "policies"  # beside the journal
NAMES = "names.json"  # in it: which text a name last stood for
_METHODS: dict[type[Any], tuple[str, ...]] = {
    Policy: ("woke", "key", "planned", "ran"),
    Victims: ("came", "ran", "gone", "choose"),
    Evictions: ("worth",),
}


class Modules(Sources):
    """The kernel's policies, and those of the user's modules: `/PATH/FILE.py:CLASS`, or by digest one that was loaded
    before, `FILE.py:CLASS@DIGEST`. Texts are kept in `folder` (None: in memory only)."""

    def __init__(
        self, folder: Path | None, watch: Watch, standing: Standing | None = None, *, strict: bool = False
    ) -> None:
        self._folder, self._watch, self._strict = folder, watch, strict
        self._standing = standing or Standing(folder)
        self._texts: dict[str, bytes] = {}  # by digest
        self._loaded: dict[str, Policy] = {}  # scheduling policies, the latest of each name
        self._made: set[str] = set()  # names
        self._classes: dict[tuple[str, str], type[Any]] = {}  # by digest and name

    def known(self) -> list[str]:
        return [*POLICIES, *(name for name, policy in self._loaded.items() if not policy.fault)]

    def scheduling(self, name: str, quantum: int) -> Policy:
        if not (spec := SPEC.fullmatch(name)):
            return super().scheduling(name, quantum)
        guarded = self.guarded(*self._load(name, spec, Policy), quantum)
        self._loaded[guarded.name] = guarded
        return guarded

    def victims(self, name: str) -> Victims:
        if not (spec := SPEC.fullmatch(name)):
            return super().victims(name)
        return GuardedVictims(self.guard(*self._load(name, spec, Victims)))

    def evictions(self, name: str) -> Evictions:
        if not (spec := SPEC.fullmatch(name)):
            return super().evictions(name)
        return GuardedEvictions(self.guard(*self._load(name, spec, Evictions)))

    def guarded(self, cls: type[Any], name: str, quantum: int) -> Policy:
        """The policy of a class, under a name, in its guard."""
        return GuardedPolicy(quantum, self.guard(cls, name, quantum))

    def guard(self, cls: type[Any], name: str, *arguments: Any) -> Guard:
        """A new policy of a class, in its guard."""
        guard = Guard(name, self._watch, self._standing, strict=self._strict)
        try:
            guard.inner, _ = self._watch.call(name, cls, arguments)
        except (Exception, Hang, SystemExit) as error:
            why = "does not come back" if isinstance(error, Hang) else f"raised {said(error)}{where(error, name)}"
            why = f"{cls.__name__}({', '.join(map(str, arguments))}) {why}"
            if name not in self._made:
                raise Errno.EINVAL(f"policy {name}: {why}") from None
            guard.wrong(why)  # it could be made before, and is in force
        self._made.add(name)
        return guard

    def _load(self, name: str, spec: re.Match[str], base: type[Any]) -> tuple[type[Any], str]:
        """The class, and its name with the digest."""
        file, wanted, digest = spec["file"], spec["cls"], spec["digest"]
        if digest is None:
            text = _read(file)
            digest = digest_of(text)
        else:
            text = self._kept(name, digest)
        short = f"{os.path.basename(file)}:{wanted}@{digest}"
        if why := self._standing.refusal(digest, named=spec["digest"] is None):
            raise Errno.EINVAL(f"policy {short} {why}")
        cls = self._classes.get((digest, wanted))
        if cls is None:
            cls = _class(self._run(text, file, digest, short), wanted, base, short)
            self._classes[digest, wanted] = cls
        check_class(cls, base, short)
        self._keep(text, digest, short.rpartition("@")[0])
        return cls, short

    def _run(self, text: bytes, file: str, digest: str, short: str) -> dict[str, Any]:
        """Execute a module; returns its names."""
        module = types.ModuleType(f"llmasos_policy_{digest}")
        module.__file__ = file
        try:
            code = compile(text, file, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise Errno.EINVAL(f"policy {short} is no Python: {error}") from None
        # So that tracebacks show lines, and dataclasses find the module that they are declared in.
        lines = text.decode(errors="replace").splitlines(keepends=True)
        linecache.cache[file] = (len(text), None, lines, file)
        sys.modules[module.__name__] = module
        try:
            self._watch.call(short, exec, (code, module.__dict__))
        except (Exception, Hang, SystemExit) as error:
            del sys.modules[module.__name__]
            why = "does not come back" if isinstance(error, Hang) else f"raises {said(error)}{where(error, short)}"
            raise Errno.EINVAL(f"policy {short}: the module {why} when it is loaded") from None
        return module.__dict__

    # --- the texts ---

    def recall(self, devices: Iterable[DeviceConfig]) -> list[tuple[str, str]]:
        """Let a configuration that names files which are not there any more, or not from here, mean the texts that an
        earlier kernel kept of files so called; and not mean those that ended it. Returns notes for the log."""
        known, notes = self._index(), self._standing.after_death()
        for device in devices:
            for kind, usual in DEFAULTS.items():
                name = getattr(device, kind)
                spec = SPEC.fullmatch(name)
                if spec is None:
                    continue
                short, digest = f"{os.path.basename(spec['file'])}:{spec['cls']}", spec["digest"]
                if digest is None and os.path.exists(spec["file"]):
                    digest = digest_of(_read(spec["file"]))
                elif digest is None and (digest := known.get(short)):
                    setattr(device, kind, f"{short}@{digest}")
                    notes.append(("warning", f"{name} is not there; what an earlier kernel kept of {short} goes on"))
                if digest and self._standing.refusal(digest, named=False):
                    setattr(device, kind, usual)
                    notes.append(("error", f"{device.name}: {short}@{digest} is out; {kind} is {usual}; see `policy`"))
        return notes

    def outs(self) -> list[PolicyOut]:
        return self._standing.outs

    def _index(self) -> dict[str, str]:
        """The digests of texts that are kept, by `FILE.py:CLASS`: the latest of each."""
        if self._folder is None:
            return {}
        try:
            return msgspec.json.decode((self._folder / NAMES).read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):  # there is none yet
            return {}

    def _enter(self, folder: Path, short: str, digest: str) -> None:
        index = self._index()
        if index.get(short) != digest:
            with replacing(folder / NAMES) as descriptor:
                write_all(descriptor, msgspec.json.encode({**index, short: digest}))

    def _kept(self, name: str, digest: str) -> bytes:
        text = self._texts.get(digest)
        if text is None and self._folder is not None:
            path = self._folder / f"{digest}.py"
            text = _read(os.fspath(path))
            if digest_of(text) != digest:
                raise Errno.EIO(f"the text of policy {name} in {path} has been changed; load its file again")
        if text is None:
            raise Errno.ENOENT(f"no policy {name!r} was loaded into this kernel; name its file: /PATH/FILE.py:CLASS")
        return text

    def _keep(self, text: bytes, digest: str, short: str) -> None:
        known = digest in self._texts
        self._texts[digest] = text
        if self._folder is None:
            return
        path = self._folder / f"{digest}.py"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._enter(self._folder, short, digest)
            if known:
                return
            with replacing(path, durable=True) as descriptor, os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(text)
            kept = sorted(self._folder.glob("*.py"), key=lambda one: one.stat().st_mtime_ns)
            for old in [one for one in kept if one.stem not in self._texts][: max(0, len(kept) - MOST_KEPT)]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise Errno.EIO(f"the policy's text cannot be kept in {self._folder}: {error.strerror}") from None

    def forget(self) -> None:
        """The system was halted, and nothing of it is to come back: remove the texts."""
        if self._folder is None:
            return
        self._standing.forget()
        for one in (*self._folder.glob("*.py"), self._folder / NAMES):
            one.unlink(missing_ok=True)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()


def _read(path: str) -> bytes:
    """The text of a module. It must be a regular file that nobody but its user (or root) can write."""
    if not os.path.isabs(path):
        raise Errno.EINVAL(f"the policy's file {path!r} needs an absolute path: the kernel has a directory of its own")
    try:
        with opened(path) as descriptor:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Errno.EINVAL(f"the policy's file {path} is no regular file")
            if found.st_uid not in (0, os.getuid()) or found.st_mode & stat.S_IWOTH:
                raise Errno.EPERM(
                    f"the policy's file {path} can be written by other users, and would be code in the kernel; it must "
                    "be your own (chmod o-w, or copy it)"
                )
            text = read_at(descriptor, MOST_BYTES + 1)
    except OSError as error:
        raise Errno.ENOENT(f"the policy's file {path} cannot be read: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise Errno.EINVAL(f"the policy's file {path} has more than {MOST_BYTES} bytes")
    return text


def _class(names: dict[str, Any], wanted: str, base: type[Any], short: str) -> type[Any]:
    found = names.get(wanted)
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        return found
    own = [
        name
        for name, one in names.items()
        if isinstance(one, type) and issubclass(one, base) and one.__module__ == names["__name__"]
    ]
    what = "is there, but is no subclass of" if wanted in names else "is not there; wanted is a subclass of"
    there = f"; of that kind there are: {', '.join(own)}" if own else ""
    raise Errno.EINVAL(f"policy {short}: {wanted} {what} {base.__name__}{there}")


def check_class(cls: type[Any], base: type[Any], short: str) -> None:
    """EINVAL if the class cannot be a policy of the kind `base`: a method is none, or takes other arguments."""
    if not issubclass(cls, base):
        raise Errno.EINVAL(f"policy {short}: {cls.__name__} is no subclass of {base.__name__}")
    for name in _METHODS[base]:
        method, wanted = getattr(cls, name), inspect.signature(getattr(base, name))
        form = f"{name}{wanted.replace(return_annotation=inspect.Signature.empty)}"
        if not inspect.isfunction(method) or inspect.iscoroutinefunction(method) or inspect.isgeneratorfunction(method):
            raise Errno.EINVAL(f"policy {short}: `{name}` is no plain method; wanted is {form}")
        try:
            inspect.signature(method).bind(*wanted.parameters)
        except TypeError as error:
            raise Errno.EINVAL(f"policy {short}: `{name}` takes other arguments ({error}); wanted is {form}") from None
    for name, one in vars(cls).items():
        near = difflib.get_close_matches(name.lower(), _METHODS[base], 1, 0.8)
        if inspect.isfunction(one) and near and near[0] not in vars(cls) and not name.startswith("_"):
            raise Errno.EINVAL(
                f"policy {short}: nothing calls `{name}`; did you mean `{near[0]}`? (call a helper `_{name}`)"
            )
