"""A shared kernel that runs as root, and two users who have nothing in common: whose files does it open, and for whom?

The kernel may open everything, so whatever a user gets by it that he could not open himself is its fault. That a file was
not opened is what the operating system says: a lease on it is broken by whoever opens it.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmasos.syscalls import blocking, runtime, shown
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice
from llmasos.syscalls.showing import Attempt
from llmasos.syscalls.table import (
    BY_RECORD,
    Call,
    Checkpoint,
    Decode,
    Dmesg,
    Exec,
    Getinfo,
    Models,
    Pagein,
    Read,
    Restore,
    Spawn,
)
from tests.booted import PATIENCE, eventually

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        os.getuid() != 0 or sys.platform != "linux", reason="only root can be other users, and leases are Linux's"
    ),
]

ANN, BEN = 4001, 4002
TINY = Path(__file__).parents[2] / "models" / "tiny"


class Kernel:
    """The kernel of a machine whose root directory is `base`."""

    def __init__(self, base: Path, *flags: str) -> None:
        base.chmod(0o711)
        self.base, self.flags = base, flags
        self.place, self.files = base / "run" / "llmasos", base / "var" / "lib" / "llmasos" / "files"
        self.environment = {**runtime.environment(), runtime.SYSTEM: os.fspath(base)}
        self.process: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        words = [*runtime.module("llmasos.kernel.edge.boot"), "--system", "--plain", *self.flags]
        (self.base / "run").mkdir(exist_ok=True)
        (self.base / "run").chmod(0o755)  # whatever the umask is
        with (self.base / "log").open("wb") as log:
            self.process = subprocess.Popen(words, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        eventually(self._listens, "the kernel listens")

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.base / "log").read_text()
        return runtime.holder(self.place) == self.process.pid and runtime.listening(self.place)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def end(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(PATIENCE)

    def make_home(self, uid: int) -> Path:
        """A home that only this user may look into, with a model and a script."""
        home = self.home(uid)
        home.mkdir(mode=0o700)
        shutil.copytree(TINY, home / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        (home / "script.toml").write_text('default = "hello"\n')
        for path in (home, *home.rglob("*")):
            os.chown(path, uid, uid)
            path.chmod(0o700 if path.is_dir() else 0o600)
        return home

    def connect(self, **options: Any) -> blocking.Client:
        return blocking.connect(self.place, timeout=PATIENCE, **options)

    def home(self, uid: int) -> Path:
        return self.base / str(uid)

    def as_user(self, uid: int, work: Callable[..., Any], *given: Any) -> Any:
        """What `work` returns in a process of that user, which has nothing of root's any more; or the error."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                os.environ["XDG_CACHE_HOME"] = os.fspath(self.home(uid) / "cache")
                os.chdir("/")
                try:
                    found: Any = work(*given)
                except BaseException as error:
                    found = error if isinstance(error, SyscallError) else repr(error)
                os.write(writing, pickle.dumps(found))
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            data = file.read()
        os.waitpid(child, 0)
        return pickle.loads(data)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    base = Path(tempfile.mkdtemp(prefix="llmasos-"))  # pytest's own are below one that only root may enter
    shared = Kernel(base, "--device", "cpu:threads=1", "--device", "sim:time_scale=0", "--kv-bytes", "64MiB")
    shared.make_home(ANN)
    shared.make_home(BEN)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv(runtime.SYSTEM, os.fspath(base))
    shared.boot()
    try:
        yield shared
    finally:
        shared.end()
        monkeypatch.undo()
        shutil.rmtree(base)


def said(kernel: Kernel, model: str, device: str = "", **before: Any) -> tuple[list[int], str]:
    """What a model says, and what it is called."""
    with kernel.connect() as program:
        pid = program(Spawn(model, [1, 2, 3], device=device), timeout=PATIENCE)
        tokens = program(Decode(pid, 4), timeout=PATIENCE).tokens
        return tokens, program(Getinfo(pid)).model


def models(kernel: Kernel) -> list[str]:
    with kernel.connect() as program:
        return [row.path for row in program(Models())]


@contextmanager
def unopened(*paths: Path) -> Iterator[None]:
    """Nobody opens these files meanwhile: whoever did would break the lease."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptors = [os.open(path, os.O_RDWR) for path in paths]
    try:
        for descriptor in descriptors:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
        for descriptor, path in zip(descriptors, paths, strict=True):
            assert fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_WRLCK, f"{path} was opened"
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        signal.signal(signal.SIGIO, signal.SIG_DFL)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_user_runs_a_model_that_only_he_may_read_and_no_other_does(kernel: Kernel) -> None:
    model = os.fspath(kernel.home(ANN) / "model")
    with kernel.connect() as operator:
        pid = operator(Spawn("tiny", [1, 2, 3]), timeout=PATIENCE)
        expected = operator(Decode(pid, 4), timeout=PATIENCE).tokens
    assert kernel.as_user(ANN, said, kernel, model) == (expected, model)  # under the name that he knows
    assert model in kernel.as_user(ANN, models, kernel)  # in her next program, too
    assert model not in kernel.as_user(BEN, models, kernel)
    found = kernel.as_user(BEN, said, kernel, model)
    assert isinstance(found, SyscallError)
    assert found.errno is Errno.EPERM


def test_the_socket_for_files_comes_back_when_somebody_has_removed_it(kernel: Kernel) -> None:
    socket = kernel.place / runtime.FILES
    before = socket.stat()
    socket.unlink()
    eventually(socket.exists, "the kernel makes its socket again")
    assert (socket.stat().st_mode, socket.stat().st_uid) == (before.st_mode, before.st_uid)
    assert kernel.as_user(ANN, said, kernel, f"sim:script={kernel.home(ANN) / 'script.toml'}", "sim0")[0]


def test_a_script_is_a_file_too(kernel: Kernel) -> None:
    name = f"sim:1b,script={kernel.home(ANN)}/script.toml"
    tokens, model = kernel.as_user(ANN, said, kernel, name, "sim0")
    assert tokens
    assert model == name
    for path in (f"{kernel.home(BEN)}/script.toml", "/etc/shadow"):
        found = kernel.as_user(ANN, said, kernel, f"sim:1b,script={path}", "sim0")
        assert (found.errno, "no right" in found.reason) == (Errno.EPERM, True)


def naming(record: type[Call[Any]], field: str, name: str, pid: int) -> Call[Any]:
    values = {"path": "/nowhere", field: name, "pid": pid, "advice": Advice.WILLNEED}
    wanted = {one.name for one in msgspec.structs.fields(record) if one.required} | {field}
    return record(**{key: value for key, value in values.items() if key in wanted})


def refusals(kernel: Kernel, names: list[str]) -> list[tuple[str, str, str]]:
    """Calls that were not refused as they should be, of a program that shows nothing."""
    found = []
    with kernel.connect() as program:
        program.showing = None
        pid = program(Spawn("tiny", [1, 2, 3]), timeout=PATIENCE)
        for record, fields in shown.NAMING.items():
            for field, _ in fields:
                for name in names:
                    call = naming(record, field, name, pid)
                    try:
                        answer = str(program(call, timeout=PATIENCE))
                    except SyscallError as error:
                        answer = f"{error.errno.name} {error.reason}"
                    if not (answer.startswith("EPERM") and shown.NOT_YOURS in answer):
                        found.append((BY_RECORD[record].name, field, answer))
    return found


def test_a_call_that_names_a_path_and_shows_nothing_is_refused_and_nothing_is_opened(kernel: Kernel) -> None:
    secret = kernel.base / "secret"
    secret.write_bytes(shown.IMAGE_MAGIC)
    secret.chmod(0o600)
    folder = kernel.base / "folder"
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(TINY / "config.json", folder)
    copy = os.fspath(next((kernel.files / "models").iterdir(), folder))  # what another has shown
    with unopened(secret, folder / "config.json"):
        names = [
            os.fspath(secret),
            os.fspath(folder),
            f"sim:1b,script={secret}",
            "owner/model",
            "../etc",
            os.fspath(copy),
        ]
        assert kernel.as_user(BEN, refusals, kernel, names) == []


def test_an_image_that_names_a_path_does_not_have_it_opened(kernel: Kernel) -> None:
    folder = kernel.base / "theirs"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    folder.chmod(0o700)
    image = kernel.home(ANN) / "forged.image"
    with kernel.connect() as operator:
        pid = operator(Spawn(os.fspath(folder), [1, 2, 3]), timeout=PATIENCE)
        operator(Checkpoint(pid, os.fspath(image)), timeout=PATIENCE)
    os.chown(image, ANN, ANN)

    def tried() -> Any:
        with kernel.connect() as program:
            return program(Restore(os.fspath(image)), timeout=PATIENCE)

    def named() -> Any:
        with kernel.connect() as program:
            model = os.fspath(kernel.home(ANN) / "model")
            pid = program(Restore(os.fspath(image), model=model), timeout=PATIENCE)
            return program(Getinfo(pid)).model, program(Read(pid)).tokens

    with unopened(*folder.glob("*.json")):
        found = kernel.as_user(ANN, tried)
        assert (found.errno, os.fspath(folder) in found.reason) == (Errno.EPERM, True)
    assert kernel.as_user(ANN, named) == (os.fspath(kernel.home(ANN) / "model"), [1, 2, 3])


def test_what_was_shown_is_what_is_run_whatever_its_name_leads_to_by_then(kernel: Kernel) -> None:
    """The name is exchanged between the opening and the call, and again and again meanwhile."""
    home = kernel.home(ANN)
    link, model = home / "link", os.fspath(home / "model")

    def exchanged() -> Any:
        with kernel.connect() as program:
            assert program.showing is not None
            link.symlink_to(model)
            tried = Attempt(program.showing, Pagein(os.fspath(link), "cpu0"), None)
            tried.run()
            link.unlink()
            link.symlink_to("/etc")
            first = program(tried.call, timeout=PATIENCE).path
            ended, paths = threading.Event(), [model, "/etc", os.fspath(kernel.home(BEN) / "model")]

            def exchange() -> None:
                while not ended.is_set():
                    for path in paths:
                        with suppress(FileExistsError):
                            os.symlink(path, home / "next")
                        os.replace(home / "next", link)

            thread = threading.Thread(target=exchange)
            thread.start()
            program.showing.names.clear()
            seen: set[str] = set()
            for _ in range(40):
                try:
                    seen.add(program(Pagein(os.fspath(link), "cpu0"), timeout=PATIENCE).state)
                except SyscallError as error:
                    seen.add(error.errno.name)
            ended.set()
            thread.join()
            return (
                first,
                seen,
                {row.digest if hasattr(row, "digest") else row.path for row in program(Models()) if row.device},
            )

    first, seen, _ = kernel.as_user(ANN, exchanged)
    assert first in (model, os.fspath(link)), first
    assert seen <= {"resident", "EPERM", "ENOENT", "EIO", "EAGAIN"}, seen


def test_a_model_that_its_owner_cuts_while_it_is_mapped_goes_on(kernel: Kernel) -> None:
    model = kernel.home(BEN) / "model"

    def cut() -> Any:
        with kernel.connect() as program:
            pid = program(Spawn(os.fspath(model), [1, 2, 3]), timeout=PATIENCE)
            before = program(Decode(pid, 4), timeout=PATIENCE).tokens
            for path in model.glob("*.safetensors"):
                os.truncate(path, 100)
            program(Exec(pid, os.fspath(kernel.home(BEN) / "other"), [1, 2, 3]), timeout=PATIENCE)
            return before, program(Decode(pid, 4), timeout=PATIENCE).tokens

    shutil.copytree(model, kernel.home(BEN) / "other", symlinks=True)
    for path in (kernel.home(BEN) / "other", *(kernel.home(BEN) / "other").iterdir()):
        os.chown(path, BEN, BEN)
    before, after = kernel.as_user(BEN, cut)
    assert before == after


# --- writing ----------------------------------------------------------------------------------------------------------


def written(kernel: Kernel, path: Path) -> Any:
    with kernel.connect() as program:
        pid = program(Spawn("tiny", [1, 2, 3, 4, 5]), timeout=PATIENCE)
        return program(Checkpoint(pid, os.fspath(path)), timeout=PATIENCE)


def test_a_user_writes_and_reads_images_of_his_own_and_no_others(kernel: Kernel) -> None:
    path = kernel.home(ANN) / "image"
    info = kernel.as_user(ANN, written, kernel, path)
    about = path.stat()
    assert (info.path, info.bytes, about.st_uid, about.st_mode & 0o777) == (os.fspath(path), about.st_size, ANN, 0o600)

    def restored() -> Any:
        with kernel.connect() as program:
            return program(Read(program(Restore(os.fspath(path)), timeout=PATIENCE))).tokens

    def told() -> list[str]:
        with kernel.connect() as program:
            return [line.text for line in program(Dmesg())]

    assert kernel.as_user(ANN, restored) == [1, 2, 3, 4, 5]
    log = [text for text in kernel.as_user(ANN, told) if "image" in text]
    assert any("image of 5 tokens in image:" in text for text in log)
    assert any("restored from image:" in text for text in log)
    assert not any("/spool/" in text for text in log)  # where the kernel has its copies is nobody's matter
    assert kernel.as_user(BEN, restored).errno is Errno.EPERM
    assert kernel.as_user(BEN, written, kernel, path).errno is Errno.EPERM
    os.chown(kernel.home(ANN), BEN, BEN)  # he may replace the name now, and not what it is of
    try:
        before = path.read_bytes()
        os.link(path, kernel.base / "kept")
        path.chmod(0o644)
        kernel.as_user(BEN, written, kernel, path)
        assert (kernel.base / "kept").read_bytes() == before
    finally:
        os.chown(kernel.home(ANN), ANN, ANN)


def test_a_name_that_is_exchanged_for_a_link_while_the_image_is_written_leads_nowhere(kernel: Kernel) -> None:
    path, target = kernel.home(ANN) / "exchanged", kernel.base / "roots"
    target.write_bytes(shown.IMAGE_MAGIC + b"root's")

    def exchanged() -> Any:
        with kernel.connect() as program:
            pid = program(Spawn("tiny", [1, 2, 3]), timeout=PATIENCE)
            assert program.showing is not None
            tried = Attempt(program.showing, Checkpoint(pid, os.fspath(path)), None)
            tried.run()
            path.symlink_to(target)
            tried.done(program(tried.call, timeout=PATIENCE))
            return path.is_symlink()

    assert kernel.as_user(ANN, exchanged) is False
    assert target.read_bytes() == shown.IMAGE_MAGIC + b"root's"


# --- the kernel's death -----------------------------------------------------------------------------------------------


def test_a_call_that_has_shown_its_files_to_a_kernel_that_died_shows_them_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = Path(tempfile.mkdtemp(prefix="llmasos-"))
    monkeypatch.setenv(runtime.SYSTEM, os.fspath(base))
    shared = Kernel(base, "--device", "sim:time_scale=1,link=1k")  # it loads a model for ever
    home = shared.make_home(ANN)
    shared.boot()

    def waits() -> Any:
        with shared.connect() as program:
            return program(Spawn(f"sim:1m,script={home}/script.toml", [1, 2, 3], detached=True), timeout=PATIENCE)

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(shared.as_user(ANN, waits)))
    thread.start()
    try:
        with shared.connect() as operator:
            eventually(lambda: any(row.device for row in operator(Models())), "the model is wanted")
        shared.kill()
        shared.flags = ("--device", "sim:time_scale=0")
        shared.boot()
        thread.join(PATIENCE)
        assert isinstance(found[0], int), found
    finally:
        shared.end()
        thread.join(PATIENCE)
        shutil.rmtree(base)
