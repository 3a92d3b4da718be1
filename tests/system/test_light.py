"""An installation without torch and transformers: everything that the native decoder holds, and a word about the rest.

The tests' environment has both, so they are hidden from every process that is started here (kernel, driver, program).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from llmasos import light

HIDE = """
import sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
"""
AGENT = """
import sys
import llmasos

with llmasos.System.connect(boot=True, flags=["--device", "cpu:threads=1"]) as system:
    for dtype in ("", "fp32", "bf16", "int8", "int4"):
        with system.spawn(dtype=dtype) as agent:
            print(agent.ask("My name is Ada."))
            (twin,) = agent.fork()
            print(twin.ask("What is my name?"))
    with llmasos.LLM.from_pretrained(sys.argv[1], dtype="fp32", system=system) as llm:
        print(len(llm.generate("Every call", max_new_tokens=5)) > 0)
    try:
        system.spawn(sys.argv[2])
    except llmasos.SyscallError as error:
        print(error.errno.name, error.reason)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE)
    return {
        **os.environ,
        "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{Path(__file__).parents[2]}",
        "LLMASOS_RUNTIME": str(tmp_path / "runtime"),
    }


def test_without_torch_the_system_runs_what_the_native_decoder_holds_and_names_what_is_missing(
    environment: dict[str, str], zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "agent.py"), str(zoo("qwen3")), str(zoo("gpt2"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    *said, generated, refused = done.stdout.splitlines()
    assert len(said) == 10
    assert all("Ada" in line for line in said)
    assert generated == "True"
    assert refused.startswith(("ENOTSUP", "ENOEXEC"))
    assert "pip install" in refused


def test_the_doctor_and_the_shell_do_without_torch_too(environment: dict[str, str]) -> None:
    for command, typed, wanted in (
        (["doctor"], "", "models that the native decoder holds run without it"),
        (["shell"], "help\n", "spawn"),
        (["--help"], "", "llmasos"),
    ):
        if command == ["shell"]:
            subprocess.run(
                [sys.executable, "-m", "llmasos", "boot", "--detach"],
                env=environment,
                check=True,
                capture_output=True,
                timeout=120,
            )
        done = subprocess.run(
            [sys.executable, "-m", "llmasos", *command],
            input=typed,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert wanted in done.stdout, done.stderr
        assert done.returncode == 0
        assert "this torch" not in done.stdout
        assert "Traceback" not in done.stderr
    subprocess.run(
        [sys.executable, "-m", "llmasos", "halt"],
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )


def test_what_a_light_installation_needs_is_all_but_torch_and_what_belongs_to_it() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = {Requirement(word) for word in project["dependencies"]}
    left_out = wanted - {Requirement(word) for word in light.needed()}
    assert {requirement.name for requirement in left_out} == set(light.HEAVY)
    assert not any("extra" in word for word in light.needed())


def test_the_list_needs_nothing_installed() -> None:
    """Run with the package on the path and no site-packages at all, it gets as far as saying that it is not installed."""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {root!r}); import llmasos.light as l; l.main()"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert "pip install --no-deps llmasos" in done.stderr or done.stdout
