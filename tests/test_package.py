"""The package as people install it: from a wheel and from an sdist, beside files that are called like its folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

import llmasos
from tests.booted import PATIENCE

ROOT = Path(llmasos.__file__).parents[1]
FOLDERS = ("kernel", "drivers", "syscalls", "userland", "modelfiles", "models", "simulator", "examples")
AGENT = """
    import sys
    import llmasos

    with llmasos.System.connect(boot=True, flags=["--device", "sim:time_scale=0"]) as system:
        process = system.spawn("sim", prompt=[7] * 20)
        process.generate(5)
        print(len(process.tokens()), "tokens,", [n for n in sys.modules if n.split(".")[0] in sys.argv[1:]])
"""

MODELS = """
from llmasos.kernel.edge.boot_config import known_models
from llmasos.userland.doctor import model
print(*known_models().popitem(), next(model()).status)
"""


def run(words: list[str], where: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE, cwd=where, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(where: Path, *words: str, python: Path | str = sys.executable) -> None:
    """For the environment of `python`. Without a compiler, which the native decoder does not want to be there: torch does
    its work then."""
    common = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    run([sys.executable, "-m", "pip", "--python", os.fspath(python), *words[:1], *common, *words[1:]], where, CC="false")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the checkout, copied: what a build leaves beside it would be in the next one."""
    place = tmp_path_factory.mktemp("wheel")
    listed = run(["git", "ls-files"], ROOT).splitlines() if (ROOT / ".git").exists() else []
    for name in listed:
        (place / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / "copy" / name, follow_symlinks=False)
    pip(place, "wheel", "-w", os.fspath(place), os.fspath(place / "copy"))
    [made] = place.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def packed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist."""
    place = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run([sys.executable, "-c", build, os.fspath(place)], wheel.parent / "copy")
    [made] = place.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def sdist(packed: Path) -> Path:
    """The wheel that an installer builds of the sdist."""
    pip(packed.parent, "wheel", "-w", os.fspath(packed.parent), os.fspath(packed))
    [made] = packed.parent.glob("*.whl")
    return made


@pytest.fixture
def shadowed(tmp_path: Path) -> Path:
    """A directory with files of all the names that the package has at the top of its repository."""
    for name in (*FOLDERS, "tests", "benchmarks"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('shadowed by {name}.py')")
    (tmp_path / "agent.py").write_text(textwrap.dedent(AGENT))
    return tmp_path


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_installed_boots_and_runs_a_program_beside_files_of_all_its_names(
    kind: str, shadowed: Path, request: pytest.FixtureRequest
) -> None:
    environment = shadowed / "environment"
    venv.create(environment, symlinks=True)  # pip is ours: to unpack one takes seconds
    python = environment / "bin" / "python"
    [packages] = (environment / "lib").glob("python*/site-packages")
    # What ours has, but for what is installed there to be edited: a .pth file that is found by another is not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip(shadowed, "install", os.fspath(request.getfixturevalue(kind)), python=python)
    assert [path.name for path in packages.iterdir() if path.stem in FOLDERS] == []
    said = run([os.fspath(python), "agent.py", *FOLDERS], shadowed, LLMASOS_RUNTIME=os.fspath(shadowed / "runtime"))
    assert said.strip() == "25 tokens, []"
    embedded = packages / "llmasos" / "models" / "tiny"
    assert run([os.fspath(python), "-c", MODELS], shadowed).split() == ["tiny", os.fspath(embedded.resolve()), "ok"]


def test_a_checkout_runs_a_program_beside_files_of_all_its_names(shadowed: Path) -> None:
    said = run(
        [sys.executable, "agent.py", *FOLDERS],
        shadowed,
        LLMASOS_RUNTIME=os.fspath(shadowed / "runtime"),
        PYTHONPATH=os.fspath(ROOT),
    )
    assert said.strip() == "25 tokens, []"


def test_no_module_has_two_names_where_the_repository_is_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(textwrap.dedent(AGENT))
    said = run(
        [sys.executable, "-c", (tmp_path / "agent.py").read_text(), *FOLDERS],
        ROOT,
        LLMASOS_RUNTIME=os.fspath(tmp_path / "runtime"),
    )
    assert said.strip() == "25 tokens, []"


def test_a_wheel_has_one_package_with_types_and_the_embedded_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"llmasos"}
    assert {"llmasos/py.typed", "llmasos/kernel/core.py", "llmasos/models/tiny/config.json"} <= set(names)


def test_an_sdist_has_the_examples_and_a_wheel_of_it_does_not(packed: Path, sdist: Path) -> None:
    wanted = {path.name for path in (ROOT / "examples").iterdir() if path.name != "__pycache__"}
    with tarfile.open(packed) as archive:
        assert {Path(name).name for name in archive.getnames() if Path(name).parent.name == "examples"} == wanted
    assert not [name for name in zipfile.ZipFile(sdist).namelist() if "examples" in name]


def test_a_checkout_whose_links_became_files_says_so(tmp_path: Path) -> None:
    (tmp_path / "llmasos").mkdir()
    (tmp_path / "llmasos" / "__init__.py").write_text((ROOT / "llmasos" / "__init__.py").read_text())
    (tmp_path / "llmasos" / "syscalls").write_text("../syscalls")
    done = subprocess.run(
        [sys.executable, "-c", "import llmasos"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": os.fspath(tmp_path)},
    )
    assert "check out with symbolic links" in done.stderr.splitlines()[-1]
