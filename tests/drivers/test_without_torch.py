"""A driver where torch and transformers cannot be imported: what the native decoder holds works, the rest says what is
missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.drivers.cpu.native import library
from llmasos.drivers.cpu.native.packing import FORMS
from tests.drivers.feeder import IMAGE, Feeder, engine

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny"
PROMPT = [1, 300, 41, 7, 600, 2, 55]
TOKENS = 24

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")

_KEEP_OUT = """
import sys

class KeepOut:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is kept out")

sys.meta_path.insert(0, KeepOut())
"""
_DECODE = """
import json
from llmasos.drivers.cpu import open_device
from llmasos.drivers.protocol import Load
from llmasos.syscalls.records import Sampler
from tests.drivers.feeder import IMAGE, Feeder

made = {}
for dtype in json.loads(sys.argv[2]):
    device = open_device({"threads": "1", "dtype": dtype})
    device.fetch(Load(1, IMAGE, sys.argv[1], "", 64, [100]), lambda fraction: None)()
    feeder = Feeder(device, 64)
    greedy = feeder.spawn(json.loads(sys.argv[3]))
    drawn = feeder.spawn(json.loads(sys.argv[3]), Sampler(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=4))
    made[dtype] = feeder.generate([greedy, drawn], int(sys.argv[4]))
    feeder.move_out(greedy)
    feeder.generate([drawn], 1)
    feeder.move_in(greedy)
    made[dtype] += feeder.generate([greedy], 3)
    device.unload(IMAGE)
loaded = sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "transformers"))
print(json.dumps({"made": made, "loaded": loaded, "hello": device.hello().description}))
"""
_REFUSE = """
from llmasos.drivers.cpu import open_device
from llmasos.drivers.protocol import Load, Probe
from llmasos.syscalls.errno import SyscallError

device = open_device({"threads": "1"})
for act in (
    lambda: device.probe(Probe(1, sys.argv[1], "fp32")),
    lambda: device.fetch(Load(1, 3, sys.argv[1], "fp32", 4), lambda fraction: None)(),
):
    try:
        act()
    except SyscallError as error:
        print(error.errno.name, error.reason)
"""


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_embedded_model_decodes_in_every_form_as_it_does_beside_torch() -> None:
    arguments = (str(TINY), json.dumps(FORMS), json.dumps(PROMPT), str(TOKENS))
    alone = json.loads(run(_KEEP_OUT + _DECODE, *arguments))
    assert alone["loaded"] == []
    assert "no torch" in alone["hello"]
    assert set(alone["made"]) == set(FORMS)
    for dtype in FORMS:
        greedy = alone["made"][dtype][0] + alone["made"][dtype][2]
        device = engine(TINY, dtype, 64)
        feeder = Feeder(device, 64)
        assert feeder.generate([feeder.spawn(PROMPT)], TOKENS + 3) == [greedy]
        device.unload(IMAGE)


def test_a_driver_that_runs_only_what_the_decoder_holds_imports_no_torch() -> None:
    """Where it is installed."""
    there = json.loads(run("import sys\n" + _DECODE, str(TINY), '["bf16"]', json.dumps(PROMPT), "3"))
    assert there["loaded"] == []
    assert "no torch" not in there["hello"]


def test_what_takes_torch_is_refused_with_what_would_have_to_be_installed(tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 99,
        "n_positions": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    said = run(_KEEP_OUT + _REFUSE, str(tmp_path)).splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith("ENOTSUP")
        assert "gpt2" in line
        assert "torch and transformers are not installed: pip install 'torch>=2.9,<2.14'" in line


def test_what_torch_would_not_run_either_is_refused_as_it_would_be(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "num_hidden_layers": 1}))
    (tmp_path / "model.safetensors").touch()
    said = run(_KEEP_OUT + _REFUSE, str(tmp_path)).splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith("ENOEXEC architecture 'gpt_oss' is not supported: its attention")
        assert "pip install" not in line
