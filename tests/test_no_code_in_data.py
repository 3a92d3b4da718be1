"""Nothing that comes from a file or a socket is run: the tree has no pickle, no eval, no torch.load, by whatever name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.code_in_data import found

ROOT = Path(__file__).parents[1]
TREES = (
    "benchmarks", "docs", "drivers", "examples", "kernel", "llmasos", "modelfiles", "models", "simulator", "syscalls",
    "userland", "setup.py",
)  # fmt: skip
# What is run on purpose: file, what, why.
MEANT = {
    ("kernel/edge/policies.py", "compile"): "a policy is a module of the kernel's own user, named by that user",
    ("kernel/edge/policies.py", "exec"): "the same",
    ("llmasos/__init__.py", "an import by a name that is computed"): "the table of the public names",
}


def tree() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "--", *TREES], cwd=ROOT, capture_output=True, text=True, check=False)
    return [name for name in listed.stdout.splitlines() if name.endswith(".py") and not (ROOT / name).is_symlink()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the files of the tree are not known without git")
def test_the_tree_runs_nothing_that_data_says() -> None:
    files = tree()
    assert len(files) > 300
    wrong = [
        f"{name}:{line}: {what}"
        for name in files
        for line, what in found((ROOT / name).read_text())
        if (name, what) not in MEANT
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as quick",
        "from pickle import loads as read",
        "import os, _pickle",
        "from concurrent import futures; import dill",
        "p = __import__('pickle')",
        "import importlib\nimportlib.import_module('marshal').loads(b'')",
        "from importlib import import_module as bring\nbring('shelve')",
        "import importlib\ndef f(name): return importlib.import_module(name)",
        "eval('1')",
        "run = eval\nrun('1')",
        "list(map(exec, ['1']))",
        "import builtins\nbuiltins.eval('1')",
        "import builtins as b\ngetattr(b, 'exec')('1')",
        "__builtins__['eval']('1')",
        "from builtins import exec as do",
        "compile('1', '', 'eval')",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=True)",
        "from torch import load as weights",
        "from torch.serialization import load",
        "import torch\nread = torch.load\nread('x')",
        "import torch\nt = torch\nu = t\nu.load('x')",
        "import torch\ngetattr(torch, 'load')('x')",
        "import torch\nvars(torch)['load']('x')",
        "import torch\nif (t := torch): t.jit.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=flag)",
        "socket.recv_pyobj()",
        "def late():\n    import joblib",
    ],
)
def test_another_name_hides_nothing(source: str) -> None:
    assert found(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import re\nre.compile('x')",
        "import json\njson.load(file)",
        "import torch\nmodule = torch.nn.Linear(1, 1)\nmodule.eval()",
        "process.exec('tiny')",
        "words = {'eval': 1}\nwords['eval']",
        "from llmasos.syscalls.table import Exec as exec_call",
        "import importlib\nimportlib.import_module(f'llmasos.drivers.{kind}')",
        "AutoModel.from_pretrained('x', trust_remote_code=False)",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
    ],
)
def test_what_only_looks_like_it_is_left_alone(source: str) -> None:
    assert found(source) == []
