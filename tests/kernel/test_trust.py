"""Which models may be loaded: by digest, or by a signature; others are refused with the digest that was found."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from llmasos.drivers import trust
from llmasos.drivers.engine.digest import content_digest
from llmasos.drivers.protocol import Trust
from llmasos.drivers.sim.spec import ModelSpec, model
from llmasos.kernel.edge import boot_config, settings
from llmasos.simulator import Simulation, simulate
from llmasos.simulator.small import SMALL
from llmasos.syscalls import installation
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Decode, Spawn
from llmasos.userland.programs.inventory import verify
from llmasos.userland.programs.screen import Screen

TINY = Path(__file__).parents[2] / "models" / "tiny"


def of_sim() -> str:
    """The digest of the model `sim` of simulated devices."""
    from llmasos.drivers.sim.spec import parse

    _, models = parse(SMALL)
    found: ModelSpec = model("sim", "", models)
    return found.digest


def trusting(*digests: str) -> Simulation:
    return simulate(audit="/var/audit", trust=Trust(list(digests)))


def test_a_model_with_a_known_digest_runs_and_any_other_is_refused_with_what_was_found() -> None:
    program = trusting(of_sim()).program()
    assert program.call(Decode(program.call(Spawn("sim", [1, 2])), 1)).tokens
    sim = trusting("00" * 32)
    program = sim.program()
    with pytest.raises(SyscallError, match=f"not trusted.*sha256:{of_sim()}") as refused:
        program.call(Spawn("sim", [1, 2]))
    assert refused.value.errno is Errno.EPERM
    assert [(line.what, line.result) for line in sim.audited if line.of == "refusals"] == [("load", "EPERM")]


# --- signatures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, str, Callable[[], str]]:
    """A model that is signed, the public key, and whether it is trusted by that key."""
    signing = pytest.importorskip("model_signing.signing", reason="the extra `trust` is not installed")
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(b"weights")
    key = ec.generate_private_key(ec.SECP256R1())
    private = tmp_path / "private.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    signing.Config().use_elliptic_key_signer(private_key=private).sign(place, place / trust.SIGNATURE)
    public = _public(key)
    digest = content_digest(place, None, lambda: None)
    return place, public, lambda: trust.check(Trust(keys=[public]), "it", place, digest)


def _public(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def test_a_signed_model_is_trusted_by_its_key(signed: tuple[Path, str, Callable[[], str]]) -> None:
    _, _, checked = signed
    assert checked() == "model.sig is by key 1 of [trust]"


@pytest.mark.parametrize("change", ["weights", "another file", "no signature", "a broken one", "another key"])
def test_any_change_to_a_signed_model_is_refused(signed: tuple[Path, str, Callable[[], str]], change: str) -> None:
    place, _, checked = signed
    match change:
        case "weights":
            (place / "model.safetensors").write_bytes(b"Weights")
        case "another file":
            (place / "extra.py").write_text("")
        case "no signature":
            (place / trust.SIGNATURE).unlink()
        case "a broken one":
            (place / trust.SIGNATURE).write_text("{")
        case "another key":
            other = Trust(keys=[_public(ec.generate_private_key(ec.SECP256R1()))])
            checked = lambda: trust.check(other, "it", place, "ab" * 32)  # noqa: E731
    with pytest.raises(SyscallError, match=r"not trusted.*sha256:") as refused:
        checked()
    assert refused.value.errno is Errno.EPERM


def test_the_configuration_names_digests_and_keys(tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text(_public(ec.generate_private_key(ec.SECP256R1())))
    file = tmp_path / "kernel.toml"
    file.write_text(f'[trust]\ndigests = ["sha256:{"ab" * 32}"]\nkeys = ["{key}"]\n')
    found = boot_config.build(settings.read(str(file)), boot_config.Overrides(), tmp_path, "test").trust
    assert found == Trust(["ab" * 32], [key.read_text()])
    for wrong, why in (
        ('digests = ["ab"]', "64 hexadecimal digits"),
        ('keys = ["/none.pub"]', "cannot be read"),
        (f'keys = ["{TINY / "config.json"}"]', "no public key"),
    ):
        file.write_text(f"[trust]\n{wrong}\n")
        with pytest.raises(SyscallError, match=why):
            boot_config.build(settings.read(str(file)), boot_config.Overrides(), tmp_path, "test")


# --- installations ------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another installation: what a wheel would put there, with its list of files."""
    place = tmp_path / "site-packages"
    for name in installation.digests():
        target = place / "llmasos" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(installation.PACKAGE / name, target)
    return place


def test_an_installation_is_compared_file_by_file(other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(Screen(), other / "llmasos") == 0
    (other / "llmasos" / "kernel" / "core.py").write_text("# changed\n")
    (other / "llmasos" / "kernel" / "back_door.py").write_text("")
    (other / "llmasos" / "kernel" / "audit.py").unlink()
    assert verify(Screen(), other) == 1
    said = capsys.readouterr().out
    for line in (
        "kernel/core.py has another content", "kernel/back_door.py is there and not here", "kernel/audit.py is missing",
    ):  # fmt: skip
        assert line in said
    with pytest.raises(SyscallError, match="no installation"):
        verify(Screen(), other / "llmasos" / "kernel")


def test_a_folder_that_cannot_be_listed_is_not_taken_for_one_without_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "back_door.py").touch()
    listed = os.scandir

    def refused(place: str) -> object:
        if Path(place).name == "kernel":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), place)
        return listed(place)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(OSError, match="Too many open files"):
        installation.digests(tmp_path)


def test_an_installation_is_compared_with_its_own_list(other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import base64

    record = other / "llmasos-1.dist-info" / "RECORD"
    record.parent.mkdir()
    rows = []
    for name in installation.digests(other / "llmasos"):
        digest = hashlib.sha256((other / "llmasos" / name).read_bytes()).digest()
        rows.append(f"llmasos/{name},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')},1")
    record.write_text("\n".join(rows))
    assert verify(Screen(), other) == 0
    record.write_text("\n".join(rows).replace("sha256=", "sha256=A", 1)[:-1])
    assert verify(Screen(), other) == 1
    assert "as its installer's list says" in capsys.readouterr().out
