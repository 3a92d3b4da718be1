"""Steps: send the next one to a device, and apply its results to the processes in it.

A step's end is the token boundary of every process in it: tokens are appended, full blocks get their names, decodes end,
then calls that had to wait for the boundary (signals, fork, truncate) go on.
"""

from __future__ import annotations

from collections import Counter

from llmasos.drivers.protocol import BLOCK_TOKENS, Drop, RunResult, Sample, Step, StepDone
from llmasos.kernel.clock import nanoseconds
from llmasos.kernel.life import fail_decoding, finish_decoding, lives_on
from llmasos.kernel.marks import dirty, freed, grew, stale
from llmasos.kernel.memory.page_table import blocks
from llmasos.kernel.memory.swap import Slot
from llmasos.kernel.models.loading import files_changed, page, probe_or_drop
from llmasos.kernel.objects.device import UP, Device, InFlight
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import Decoding, LLMProcess
from llmasos.kernel.outward import pathless
from llmasos.kernel.pieces import held
from llmasos.kernel.sched.force import take_out
from llmasos.kernel.sched.partition import began, begins, check_turn
from llmasos.kernel.sched.plan import Plan, plan_step
from llmasos.kernel.sched.realtime import spent
from llmasos.kernel.state import System
from llmasos.kernel.wait import wake
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Finish, SchedClass, Signal

_LONGEST_STEP = 1e9  # seconds
_HIGHEST = 0.01  # of log-probabilities: what rounding may make of 0
_MOST_SHOWN = 200  # characters of what cannot be


def pump(system: System, device: Device) -> None:
    """Send the device its next step if it is idle and somebody can run."""
    probe_or_drop(system, device)
    if device.state != UP or system.halting:
        return
    take_out(system, device)
    page(system, device)
    if device.in_flight is not None or device.loads_alone or held(system) or not begins(system, device):
        return
    if device.dropped:
        system.send(device, Drop(device.dropped))
        device.dropped = []
    plan = plan_step(system, device)
    outs, device.outs = device.outs, []
    if not (plan.runs or outs):
        return
    wipes: list[tuple[int, int]] = []
    for number in {run.image for run in plan.runs}:
        image = device.images[number]
        image.ran, image.steps = system.now, image.steps + 1
        if image.pool.wipes:
            wipes += [(number, frame) for frame in image.pool.to_wipe()]
    step = Step(system.ref(), plan.runs, plan.copies, outs, plan.ins, wipes)
    limits = device.max_runs, device.step_tokens
    device.in_flight = InFlight(step, plan.processes, plan.tokens, system.now, plan.passed, *limits)
    device.progress_at = system.now
    began(system, device)
    system.send(device, step)
    wake(system, device.swapped_out)  # messages from here on are ordered after the pending swap-outs
    if system.trace.on:
        _trace(system, device, step, plan)


def _trace(system: System, device: Device, step: Step, plan: Plan) -> None:
    pids = ",".join(f"{run.ctx}+{len(run.tokens)}" for run in plan.runs)
    system.emit("sched.step", device=device.name, amount=plan.tokens, detail=pids)
    for process in plan.processes:
        if again := _again(process):
            system.emit("sched.again", process.pid, device.name, again)
    for what, moves in (("mem.out", step.outs), ("mem.in", step.ins)):
        for pid, count in Counter(move.ctx for move in moves).items():
            system.emit(what, pid, device.name, count)
    for copy in plan.copies:
        system.emit("mem.copy", device=device.name, amount=1, detail=f"{copy.src}->{copy.dst}")


def _again(process: LLMProcess) -> int:
    """How many tokens of its run in a step it has computed before, and lost."""
    return min(process.running, max(0, process.high_water - process.table.cached))


def step_done(system: System, device: Device, message: StepDone) -> None:
    """The results of the step in flight."""
    flight = device.in_flight
    if flight is None or flight.step.ref != message.ref:
        raise Errno.EPROTO(f"results of step {message.ref}, which is not in flight")
    _check_results(flight, message)
    _account_moves(system, device, flight, message)
    for number in message.changed:
        if (image := device.images.get(number)) is not None and not image.changed:
            image.changed = True
            files_changed(system, device, image)
    _end_step(system, device)
    if not flight.processes:
        return
    device.steps += 1
    device.queue.steps += 1
    device.computed += flight.tokens
    duration = nanoseconds(message.seconds)
    device.busy += duration
    system.emit("sched.done", device=device.name, amount=flight.tokens, detail=f"{message.seconds * 1e3:.3f} ms")
    again = 0
    for process, result in zip(flight.processes, message.results, strict=True):
        again += _again(process) if process.taken else 0  # a crash is no thrashing
        _apply(system, device, process, result, duration // max(1, flight.tokens))
    lost = duration * again // max(1, flight.tokens) + nanoseconds(message.phases.get("swap", 0.0))
    if len(device.queues) == 1:
        _look_for_thrashing(system, device, flight, duration, lost)
    else:
        check_turn(system, device, flight, duration)
    for process in flight.processes:
        boundary(system, process)


def _end_step(system: System, device: Device) -> None:
    device.in_flight = None
    wake(system, device.between_steps)
    dirty(system, device)
    freed(system)  # a process that was in the step may lose its pages to others of its group, on other devices too


def _account_moves(system: System, device: Device, flight: InFlight, message: StepDone) -> None:
    """Take in what moving and computing KV cost in the step, and which frames could not be written."""
    step = flight.step
    numbers = {run.image for run in step.runs} | {move.image for move in (*step.outs, *step.ins)}
    image = device.images.get(numbers.pop()) if len(numbers) == 1 else None
    if image is not None:
        paid = image.swap_cost.pays
        moved = (len(step.outs) + len(step.ins)) * image.block_tokens
        image.swap_cost.moved(moved, nanoseconds(message.phases.get("swap", 0.0)))
        image.swap_cost.computed(flight.tokens, nanoseconds(message.phases.get("model", 0.0)))
        if paid != image.swap_cost.pays:  # each may have more or fewer tokens to compute now
            for user in image.users.values():
                stale(system, user)
    system.counters["moved_out"] += len(step.outs) - len(message.unwritten)
    system.counters["moved_in"] += len(step.ins)
    for number in message.unwritten:
        move = step.outs[number]
        process = system.table.find(move.ctx)
        if isinstance(process, LLMProcess) and process.image is not None:
            process.table.unwritten(process.image.swap, Slot(move.tier, move.slot))
            stale(system, process)  # it may have to compute those tokens again
    if message.unwritten:
        system.log(
            "warning",
            f"{device.name}: {len(message.unwritten)} frames could not be moved out; they will be computed again",
        )


def _look_for_thrashing(system: System, device: Device, flight: InFlight, duration: int, lost: int) -> None:
    """The step took `duration`, `lost` of it to bring back or compute again what had been there before."""
    image = flight.processes[0].image
    if image is None or any(process.image is not image for process in flight.processes):
        return
    old = image.thrash.stretch
    if image.thrash.spent(duration, lost):
        new, part = image.thrash.stretch, image.thrash.lost
        level, what = ("warning", "thrashes") if new > old else ("info", "thrashes less")
        system.log(
            level,
            f"{device.name}: {image.name} {what}: {part:.0%} of the time went into bringing back pages; processes keep "
            f"theirs for {new * system.config.quantum} tokens now",
        )
        system.emit("mem.thrash", device=device.name, amount=new, detail=image.name)


def _check_results(flight: InFlight, message: StepDone) -> None:
    """EPROTO if the results are not those of the step's runs, a token is none of the model's, or a time is none."""
    times = (message.seconds, *message.phases.values())
    if not all(0 <= time <= _LONGEST_STEP for time in times):
        raise Errno.EPROTO(f"step {message.ref}: it took {', '.join(map(str, times))} seconds")
    unwritten, outs = message.unwritten, len(flight.step.outs)
    if unwritten and (len(set(unwritten)) < len(unwritten) or not 0 <= min(unwritten) <= max(unwritten) < outs):
        raise Errno.EPROTO(f"step {message.ref}: moves that it did not have, or one twice, were not written")
    if not set(message.changed) <= {run.image for run in flight.step.runs}:
        raise Errno.EPROTO(f"step {message.ref}: files have changed of images that are not in it")
    if [result.ctx for result in message.results] != [process.pid for process in flight.processes]:
        raise Errno.EPROTO(f"step {message.ref}: results are not those of its runs")
    for run, result, process in zip(flight.step.runs, message.results, flight.processes, strict=True):
        if run.image in message.changed and not result.error and result.unread < 0:
            raise Errno.EPROTO(f"step {message.ref}: process {process.pid} was computed with files that have changed")
        probed = process.image.probed if process.image is not None else None
        wanted = run.sample is not None and run.sample.append and not result.error and result.unread < 0
        tokens = [result.token, *result.more]
        if wanted and probed is not None and not 0 <= min(tokens) <= max(tokens) < probed.vocab:
            raise Errno.EPROTO(f"step {message.ref}: of {tokens} not all are in a vocabulary of {probed.vocab}")
        if result.unread >= blocks(process.swapped_in):
            raise Errno.EPROTO(f"step {message.ref}: a frame was lost that was not to be moved in")
        if len(result.more) > run.ahead:
            raise Errno.EPROTO(f"step {message.ref}: {len(result.more)} tokens by guessing, {run.ahead} were allowed")
        if (result.logprobs is not None or (run.sample is not None and run.sample.logprobs)) and not (
            result.error or result.unread >= 0
        ):
            _check_logprobs(message.ref, run.sample, result, probed.vocab if probed is not None else 0)


def _check_logprobs(ref: int, sample: Sample | None, result: RunResult, vocab: int) -> None:
    """EPROTO if they are not those that were asked for, or are none."""
    found, wanted = result.logprobs, sample.logprobs if sample is not None else 0
    if found is None or not wanted:
        raise Errno.EPROTO(f"step {ref}: log-probabilities are {'missing' if wanted else 'there that nobody asked for'}")
    ids, values = [found.token, *found.top_ids], [found.logprob, *found.top_logprobs]
    if (
        len(ids) != len(values)
        or len(found.top_ids) > wanted
        or not 0 <= min(ids) <= max(ids) < vocab
        or not all(value <= _HIGHEST for value in values)  # and not NaN
        or (sample is not None and sample.append and found.token != result.token)
    ):
        raise Errno.EPROTO(
            f"step {ref}: {str(found)[:_MOST_SHOWN]} are no log-probabilities of {wanted} and token {result.token}"
        )


def step_failed(system: System, device: Device, flight: InFlight, reason: str) -> None:
    """The device could not run the step at all: every process in it fails, the device goes on."""
    _end_step(system, device)
    system.log("error", f"{device.name}: a step of {len(flight.processes)} processes failed: {reason}")
    for process in flight.processes:
        _apply(system, device, process, RunResult(process.pid, error=reason), 0)
    for process in flight.processes:
        boundary(system, process)


def _apply(system: System, device: Device, process: LLMProcess, result: RunResult, share: int) -> None:
    tokens, process.running = process.running, 0
    guessing, process.guessing = process.guessing, 0
    swapped_in, process.swapped_in = process.swapped_in, 0
    image, account = process.mapped, process.account
    if result.unread >= 0:
        block = (process.table.cached - swapped_in) // BLOCK_TOKENS + result.unread
        process.table.drop_place(image.swap, block)
        _start_over(process, image, block * BLOCK_TOKENS)
        system.log(
            "warning",
            f"{device.name}: process {process.pid}: KV from token {block * BLOCK_TOKENS} on could not be moved in, or "
            "was not what had been moved out; it will be computed again",
            process,
        )
        return
    if result.error:
        # It is not known how far it came: a block may not have been copied, and the driver may have dropped what it was
        # told of the context. Full blocks are certain; everything else is sent and computed again.
        _start_over(process, image, (process.table.cached - swapped_in) // BLOCK_TOKENS * BLOCK_TOKENS)
        error = result.error if process.owner.operator else pathless(result.error)
        if error != result.error:
            system.log("error", f"{device.name}: process {process.pid}: {result.error}")
        system.log("error", f"{device.name}: process {process.pid}: {error}", process)
        reason = f"the device could not compute process {process.pid}: {error}"
        fail_decoding(system, process, reason)
        return
    table, decoding = process.table, process.decoding
    before = account.decoded
    table.computed(image.pool, process.log, tokens)
    finish = Finish.NONE
    if decoding is not None and table.cached == len(process.log):
        if result.logprobs is not None:
            decoding.collected.append(result.logprobs)
        finish = _append(process, decoding, result.token) if decoding.append else Finish.LENGTH
        for token in result.more:
            if finish is not Finish.NONE:
                break  # what was guessed beyond the end
            table.computed(image.pool, process.log, 1)  # the token before was guessed right
            finish = _append(process, decoding, token)
    decoded = account.decoded - before
    if decoded:
        grew(system, process)
    if guessing:
        table.cut(image.pool, table.cached)
        process.driver_log = table.cached
    _account(system, device, process, tokens, max(0, decoded - 1), share)
    if finish is Finish.NONE and process.decoding is not None and process.group.exhausted() is not None:
        finish = Finish.BUDGET
    device.decoded += decoded
    if finish is Finish.BUDGET:
        system.emit("sig.xcpu", process.pid, amount=int(Signal.XCPU))
    if finish is not Finish.NONE:
        finish_decoding(system, process, finish)


def _start_over(process: LLMProcess, image: Image, tokens: int) -> None:
    """Keep the frames of the first `tokens` tokens only, and tell the driver all of the context again."""
    image.cut(process, tokens)
    process.table.sent = process.driver_log = 0


def _append(process: LLMProcess, decoding: Decoding, token: int) -> Finish:
    """A sampled token joins the log. Returns why the decode ends with it, if it does."""
    process.log.append(token)
    process.account.decoded += 1
    decoding.left -= 1
    if token in decoding.stop_ids:
        return Finish.STOP
    if decoding.left == 0:
        return Finish.LENGTH
    return process.used_up


def _account(system: System, device: Device, process: LLMProcess, run: int, extra: int, share: int) -> None:
    """`run` tokens were asked for, `extra` came with them by guessing, `share` nanoseconds a token that was asked for."""
    account, tokens = process.account, run + extra
    if process.table.cached > process.high_water:  # what is computed again after a crash clears nobody
        process.crashes = 0
        process.quantum_used += process.table.cached - process.high_water
        process.group.charge_tokens(min(tokens, process.table.cached - process.high_water), system.now)
        system.journal.charged(process.group)
        process.high_water, process.taken = process.table.cached, False
    account.steps += 1
    account.computed += tokens
    account.device_time += share * run
    ranked = process.sched_class is not SchedClass.REALTIME  # by the policy
    if process.reserve is not None:
        spent(system, process, process.reserve, share * run)
    device.computed += extra
    system.counters["guessed"] += extra
    if ranked and process.policy is device.queue.policy:
        device.queue.policy.ran(process, tokens)


def boundary(system: System, process: LLMProcess) -> None:
    """A process is in no step any more: do what is due at a token boundary, and wake the calls that wait for it."""
    if lives_on(system, process):
        stale(system, process)
        wake(system, process.pausing)
