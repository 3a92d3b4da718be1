"""What a driver answers is what the kernel takes, whatever a device raised and whatever a model's files say."""

from __future__ import annotations

import pytest

from llmasos.drivers.answers import attempt, encoded
from llmasos.drivers.protocol import (
    FAILURES,
    MAX_TEXT,
    DropWeights,
    Exported,
    Failed,
    FromDriver,
    Imported,
    Note,
    Probed,
    RunResult,
    StepDone,
    decode_from_driver,
)
from llmasos.syscalls.errno import Errno

LONG = "\x1b" * MAX_TEXT * 2
PROBED = Probed(7, "llama", "bf16", 2, 3, 4, 5, 6, 7, [0], 8)


@pytest.mark.parametrize(
    "message",
    [
        Failed(1, Errno.EIO, LONG),
        Note("error", LONG + "\udc80"),
        Exported(1, 2, 3, LONG),
        Imported(1, 2, LONG),
        StepDone(1, [RunResult(1, error="short"), RunResult(2, error=LONG)], 0.1),
    ],
    ids=lambda message: type(message).__name__,
)
def test_text_that_is_longer_than_the_kernel_takes_is_cut(message: FromDriver) -> None:
    heard = decode_from_driver(encoded(message))
    assert type(heard) is type(message)
    assert str(heard) != str(message)


@pytest.mark.parametrize(
    "more", [{"vocab": -1}, {"context": 0}, {"eos_ids": [-1]}, {"architecture": "x" * 1000}], ids=str
)
def test_what_cannot_be_true_of_a_model_is_its_requests_failure_and_no_breach_of_the_protocol(
    more: dict[str, object],
) -> None:
    heard = decode_from_driver(encoded(Probed(**{f: getattr(PROBED, f) for f in PROBED.__struct_fields__} | more)))
    assert isinstance(heard, Failed)
    assert (heard.ref, heard.errno) == (7, Errno.EIO)
    assert "Probed" in heard.reason


@pytest.mark.parametrize("errno", [one for one in Errno if one is not Errno.OK])
def test_a_failure_has_an_errno_that_the_kernel_takes_and_a_reason(errno: Errno) -> None:
    def fail() -> None:
        raise errno("")

    failed = attempt(DropWeights(3, 1), fail, lambda _: None)
    assert isinstance(failed, Failed)
    assert failed.errno in FAILURES
    assert errno.name in failed.reason
