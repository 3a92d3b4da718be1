"""What a living driver says reaches other users without paths of the machine that they have not named."""

from __future__ import annotations

import pytest

from llmasos.drivers.protocol import Failed
from llmasos.kernel.events import FromDevice
from llmasos.kernel.outward import of_driver, pathless
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Spawn

SECRET = "/home/ops/.cache/models/tiny-7b"
SAID = f"OSError: [Errno 5] {SECRET}/model.safetensors: read error, see '/var/log/ops.log'"


def failing(program: Prog, sim: Simulation, name: str) -> str:
    """The reason that a program is told, whose model's driver answers so."""
    made = program.start(Spawn(name, [1]))
    device = sim.kernel.devices["sim0"]
    sim.event(FromDevice("sim0", device.incarnation, Failed(max(device.asked), Errno.EIO, SAID)))
    with pytest.raises(SyscallError) as caught:
        _ = made.value
    assert caught.value.errno is Errno.EIO
    return caught.value.reason


@pytest.mark.parametrize("uid", [None, 1001])
def test_others_than_the_operator_are_told_no_paths_of_a_model_that_has_a_name(uid: int | None) -> None:
    sim = simulate(64)
    sim.kernel.config.models["known"] = SECRET
    reason = failing(sim.program(uid=uid), sim, "known")
    assert "read error" in reason
    assert (SECRET in reason, "/var/log" in reason) == (uid is None, uid is None)
    assert uid is None or "known/model.safetensors" in reason


def test_a_path_that_somebody_named_is_told_him() -> None:
    error = of_driver(Errno.EIO, "/data/mine/a.safetensors: broken; /srv/x", {"/data/mine": "/data/mine"})
    assert error.reason_for(operator=False) == "/data/mine/a.safetensors: broken; (a path)"
    assert error.reason_for(operator=True) == "/data/mine/a.safetensors: broken; /srv/x"
    assert of_driver(Errno.EIO, "the disk is full").plain == ""


def test_fractions_and_addresses_are_no_paths() -> None:
    for text in ("3/4 of it", "https://example.org/x is asked", "12 tokens/s"):
        assert pathless(text) == text
