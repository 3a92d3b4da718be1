"""Steps: sending the next one to a device, and what its results mean to the processes in it.

A step's end is the token boundary of every process in it: tokens are appended, full blocks get their names, decodes end,
and what had to wait for the boundary (signals, fork, truncate) is done, in that order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivers.protocol import BLOCK_TOKENS, Drop, RunResult, Step, StepDone
from kernel.device import UP, Device, InFlight
from kernel.lifecycle import exit_process, finish_decoding
from kernel.process import LLMProcess
from kernel.readers import wake_readers
from kernel.sched.plan import plan_step
from syscalls.errno import Errno, SyscallError
from syscalls.records import Finish, Signal

if TYPE_CHECKING:
    from kernel.core import Kernel


def pump(kernel: Kernel, device: Device, now: float) -> None:
    """Send the device its next step if it is idle and somebody can run."""
    if device.state != UP or device.in_flight is not None or kernel.halting:
        return
    if device.dropped:
        kernel.send(device, Drop(device.dropped))
        device.dropped = []
    plan = plan_step(device, kernel, now, kernel.config.aging_seconds, kernel.config.quantum)
    if plan is None:
        return
    step = Step(kernel.ref(), plan.runs, plan.copies)
    device.in_flight = InFlight(step, plan.processes, plan.tokens, now)
    device.progress_at = now
    kernel.send(device, step)
    if kernel.trace.on:
        pids = ",".join(f"{run.ctx}+{len(run.tokens)}" for run in plan.runs)
        kernel.emit(now, "sched.step", device=device.name, amount=plan.tokens, detail=pids)
        for copy in plan.copies:
            kernel.emit(now, "mem.copy", device=device.name, amount=1, detail=f"{copy.src}->{copy.dst}")


def step_done(kernel: Kernel, device: Device, message: StepDone, now: float) -> None:
    """The results of the step in flight."""
    flight = device.in_flight
    if flight is None or flight.step.ref != message.ref:
        raise SyscallError(Errno.EPROTO, f"results of step {message.ref}, which is not in flight")
    _check_results(flight, message)
    device.in_flight = None
    device.steps += 1
    device.computed += flight.tokens
    device.busy_seconds += message.seconds
    kernel.counters["steps"] += 1
    kernel.counters["computed"] += flight.tokens
    kernel.emit(
        now, "sched.done", device=device.name, amount=flight.tokens, detail=f"{message.seconds * 1e3:.3f} ms"
    )
    share = message.seconds / max(1, flight.tokens)
    for process, result in zip(flight.processes, message.results, strict=True):
        _apply(kernel, device, process, result, share, now)
    for process in flight.processes:
        boundary(kernel, process, now)
    kernel.dirty(device)


def _check_results(flight: InFlight, message: StepDone) -> None:
    """EPROTO if the results are not those of the step's runs, or a token is none of the model's."""
    if [result.ctx for result in message.results] != [process.pid for process in flight.processes]:
        raise SyscallError(Errno.EPROTO, f"step {message.ref}: results are not those of its runs")
    for run, result, process in zip(flight.step.runs, message.results, flight.processes, strict=True):
        probed = process.image.probed if process.image is not None else None
        wanted = run.sample is not None and run.sample.append and not result.error
        if wanted and probed is not None and not 0 <= result.token < probed.vocab:
            raise SyscallError(
                Errno.EPROTO,
                f"step {message.ref}: token {result.token} is not in a vocabulary of {probed.vocab}",
            )


def step_failed(kernel: Kernel, device: Device, reason: str, now: float) -> None:
    """The device could not do the step as a whole: every process in it fails, the device goes on."""
    flight, device.in_flight = device.in_flight, None
    if flight is None:
        return
    kernel.log(now, "error", f"{device.name}: a step of {len(flight.processes)} processes failed: {reason}")
    for process in flight.processes:
        _apply(kernel, device, process, RunResult(process.pid, error=reason), 0.0, now)
    for process in flight.processes:
        boundary(kernel, process, now)
    kernel.dirty(device)


def _apply(
    kernel: Kernel, device: Device, process: LLMProcess, result: RunResult, share: float, now: float
) -> None:
    tokens, process.running = process.running, 0
    image, account = process.image, process.account
    assert image is not None
    if result.error:
        # Nobody knows how far it came: a block that was to be copied may not have been, and what the driver has
        # heard of the context it may have forgotten. Full blocks are sure; all else is told and computed again.
        process.table.cut(image.pool, process.table.cached // BLOCK_TOKENS * BLOCK_TOKENS)
        process.table.sent = process.driver_log = 0
        if not process.table.frames:
            image.holders.pop(process.pid, None)
        kernel.log(now, "error", f"{device.name}: process {process.pid}: {result.error}")
        _fail_decoding(kernel, process, result.error, now)
        return
    process.table.computed(image.pool, process.log, tokens)
    if process.table.cached > process.reached:  # what is computed again after a crash clears nobody
        process.crashes = 0
        process.quantum_used += process.table.cached - process.reached
        process.reached = process.table.cached
    account.steps += 1
    account.computed += tokens
    account.device_seconds += share * tokens
    if process.policy is device.queue.policy:
        device.queue.policy.ran(process, tokens)
    decoding = process.decoding
    if decoding is None or process.table.cached < len(process.log):
        return
    if result.logprobs is not None:
        decoding.collected.append(result.logprobs)
    if not decoding.append:
        finish_decoding(kernel, process, Finish.LENGTH, now)
        return
    process.log.append(result.token)
    account.decoded += 1
    device.decoded += 1
    kernel.counters["decoded"] += 1
    decoding.left -= 1
    if result.token in decoding.stop_ids:
        finish_decoding(kernel, process, Finish.STOP, now)
    elif decoding.left == 0:
        finish_decoding(kernel, process, Finish.LENGTH, now)
    elif process.budget_used:
        kernel.emit(now, "sig.xcpu", process.pid, amount=int(Signal.XCPU))
        finish_decoding(kernel, process, Finish.BUDGET, now)
    elif len(process.log) >= process.context:
        finish_decoding(kernel, process, Finish.CONTEXT, now)


def boundary(kernel: Kernel, process: LLMProcess, now: float) -> None:
    """Whatever waited for the process to leave its step."""
    if process.is_zombie():
        return
    if process.dying is not None:
        exit_process(kernel, process, *process.dying, now)
        return
    if process.decoding is not None and process.decoding.interrupted is not Finish.NONE:
        finish_decoding(kernel, process, process.decoding.interrupted, now)
        if process.is_zombie():
            return
    deferred, process.deferred = process.deferred, []
    for request in deferred:
        kernel.dispatch(request, now)
    kernel.settle(process, now)
    if process.readers:
        wake_readers(kernel, process, now)


def _fail_decoding(kernel: Kernel, process: LLMProcess, reason: str, now: float) -> None:
    process.ahead = False  # what failed would fail again; the next feed, truncate or decode tries anew
    process.finish = Finish.ERROR  # for whoever looks, if nobody has asked for a decode
    decoding = process.decoding
    if decoding is not None and decoding.request is not None:
        request, decoding.request = decoding.request, None
        kernel.fail(request, Errno.EIO, f"the device could not compute process {process.pid}: {reason}")
    finish_decoding(kernel, process, Finish.ERROR, now)
