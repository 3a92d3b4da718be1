"""The life of drivers: start, hello, heartbeats, death, restart (MINIX 3's reincarnation server).

The exit of the driver's OS process shows a death, a busy heartbeat whose progress stands still a hang. Either way the
frames are gone, every process of the device goes back to its token log, and the driver is started again: at once after a
first death, then with a doubling, capped delay. A process that was in the step of several deaths in a row is taken for
their cause and stopped; a death by a signal from outside counts against no process.
"""

from __future__ import annotations

from llmasos.drivers.protocol import (
    Failed,
    FromDriver,
    Heartbeat,
    Hello,
    Measured,
    Note,
    Progress,
    StepDone,
    disagreement,
)
from llmasos.kernel import audit
from llmasos.kernel.clock import SECOND, nanoseconds, seconds
from llmasos.kernel.devices import steps
from llmasos.kernel.events import DeviceConfig, DriverExited, FromDevice, KillDriver, StartDriver
from llmasos.kernel.life import stop_suspect
from llmasos.kernel.marks import dirty, stale, want
from llmasos.kernel.models.loading import fail_device, measured, suspend
from llmasos.kernel.objects.device import DOWN, HOPELESS, STARTING, UP, Device, InFlight
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import INIT_PID, DriverProcess, LLMProcess, Program
from llmasos.kernel.pieces import stale_all
from llmasos.kernel.sched.force import foreign, note
from llmasos.kernel.sched.run_queue import RunQueue
from llmasos.kernel.state import System
from llmasos.kernel.wait import wake
from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, State, WaitFor

_WATCH = SECOND


def add_device(system: System, config: DeviceConfig) -> None:
    """A device of the configuration: its row in the process table, and its driver's first start."""
    policies = [system.sources.scheduling(config.policy, system.config.quantum) for _ in range(system.owners.parts)]
    config.victims = system.sources.victims(config.victims).name  # refuse a wrong name now, not with the first model
    if config.name in system.devices:
        raise Errno.EINVAL(f"two devices are called {config.name!r}; give one another name")
    pid, name, group, now = system.table.driver_pid(), f"driver:{config.name}", system.groups.system, system.now
    blocked = State.BLOCKED, WaitFor.DEVICE, now
    process = DriverProcess(pid, INIT_PID, Kind.DRIVER, name, group, now, *blocked, device=config.name)
    system.table.add(process)
    device = Device(config, process, list(map(RunQueue, policies)), evictions=system.sources.evictions(config.evictions))
    device.max_runs, device.step_tokens = config.max_runs or 1, config.step_tokens or 1
    system.devices[config.name] = device
    if foreign(device):
        note(system, device)
    _start(system, device)


def _start(system: System, device: Device) -> None:
    device.incarnation += 1
    device.state, device.os_pid, device.pardoned, device.disowned = STARTING, 0, False, False
    device.heard = device.progress_at = system.now
    device.progress = -1
    system.act(StartDriver(device.name, device.incarnation))
    _watch(system, device)


def _watch(system: System, device: Device) -> None:
    device.watchdog = system.timers.at(system.now + _WATCH, _look, device)


def watch_asked(system: System) -> None:
    """Look after the drivers that have just been asked for something. One that has nothing to do is silent."""
    for device in system.unwatched.values():
        if device.state == UP and device.watchdog is None:
            device.heard = device.progress_at = system.now
            _watch(system, device)
    system.unwatched.clear()


def _look(system: System, device: Device) -> None:
    device.watchdog = None
    if device.state == DOWN:  # it ended while the kernel halts
        return
    reason = _hang(system, device)
    if reason:
        _kill(system, device, reason)
    elif device.state == STARTING or device.in_flight is not None or device.asked:
        _watch(system, device)


def _kill(system: System, device: Device, reason: str) -> None:
    system.log("error", f"{device.name}: {reason}; killed")
    system.act(KillDriver(device.name, device.incarnation, reason))


def _hang(system: System, device: Device) -> str:
    limit, now = system.config.hang_seconds, system.now
    if device.state == STARTING:
        late = system.config.start_seconds
        return f"no hello within {late:g} s" if now - device.heard > nanoseconds(late) else ""
    if device.in_flight is None and not device.asked:
        return ""
    if now - device.heard > nanoseconds(limit):
        return f"no heartbeat for {limit:g} s"
    return f"busy without progress for {limit:g} s" if now - device.progress_at > nanoseconds(limit) else ""


def from_device(system: System, event: FromDevice) -> None:
    """A driver's message. One that breaks the protocol costs the driver its life, nobody else's."""
    device = system.devices[event.device]
    if event.incarnation != device.incarnation or device.state == DOWN or device.disowned:
        return
    device.heard = system.now
    try:
        _message(system, device, event.message)
    except SyscallError as error:
        device.disowned = True
        _kill(system, device, f"protocol error: {error.reason}")


def _message(system: System, device: Device, message: FromDriver) -> None:
    if device.state == STARTING and not isinstance(message, Hello):
        raise Errno.EPROTO(f"a {type(message).__name__} before the hello")
    match message:
        case StepDone():
            device.progress_at = system.now
            steps.step_done(system, device, message)
        case Heartbeat():
            if message.progress != device.progress or not message.busy:
                device.progress, device.progress_at = message.progress, system.now
        case Hello():
            _hello(system, device, message)
        case Failed() if (flight := device.in_flight) is not None and message.ref == flight.step.ref:
            steps.step_failed(system, device, flight, f"{message.errno.name}: {message.reason}")
        case Measured():
            measured(system, device, message)
        case Note():
            level = message.level if message.level in ("info", "warning", "error") else "info"
            system.log(level, f"{device.name}: {message.text}")
        case _:
            _answered(system, device, message)


def _answered(system: System, device: Device, message: FromDriver) -> None:
    """A driver has answered a request, or reports its progress with it."""
    device.progress_at = system.now
    ref = getattr(message, "ref", 0)
    ask = device.asked.get(ref)
    if ask is None:
        raise Errno.EPROTO(f"a {type(message).__name__} for {ref}, which nobody asked")
    if isinstance(message, Progress) and isinstance(ask.about, Image):
        ask.about.progress = message.fraction
        return
    ask.accept(message)
    del device.asked[ref]
    ask.answer = message
    if ask.came is not None:
        ask.came(system, device, ask)
    ask.about = None  # which often knows the request in turn
    wake(system, ask.channel)
    dirty(system, device)


def _hello(system: System, device: Device, hello: Hello) -> None:
    if reason := disagreement(hello):
        raise Errno.EPROTO(reason)
    if hello.kind != device.config.kind:
        raise Errno.EPROTO(f"a driver of kind {hello.kind!r}, not {device.config.kind!r}")
    if device.state == UP:
        raise Errno.EPROTO("a second hello")
    device.hello, device.os_pid, device.state, device.error = hello, hello.os_pid, UP, ""
    device.up_since = system.now
    config = device.config
    device.max_runs = config.max_runs or min(hello.max_runs, limits.MAX_RUNS)
    device.step_tokens = config.step_tokens or min(hello.step_tokens, limits.MAX_STEP_TOKENS)
    device.stream_tokens = hello.stream_tokens or limits.MAX_STEP_TOKENS
    device.guess_rows = min(hello.guess_rows, device.step_tokens)
    device.process.enter(State.BLOCKED, WaitFor.INPUT, system.now)
    system.log(
        "info", f"{device.name}: up: {hello.description} (os pid {hello.os_pid}, start {device.incarnation})", public=True
    )
    for path, digest in hello.libraries.items():
        system.log("info", f"{device.name}: {path} is sha256:{digest}")
        audit.note(system, "library", "system", on={"path": path}, details={"device": device.name, "digest": digest})
    system.emit("driver.up", device.process.pid, device.name, device.incarnation)
    for image in device.images.values():  # all that its predecessor had, or was asked for
        want(system, device, image)
    here = [process for process in system.table if isinstance(process, LLMProcess) and process.device is device]
    stale_all(system, here)  # those without an image too: their model is asked for the first time
    wake(system, device.up)
    dirty(system, device)


# --- death and its consequences, in order ---------------------------------------------------------------------------


def driver_exited(system: System, event: DriverExited) -> None:
    """A driver's OS process is gone: processes go back to their logs, calls are told, the successor starts."""
    device = system.devices[event.device]
    if event.incarnation != device.incarnation or device.state == DOWN:
        return
    said_hello, device.state, device.os_pid, device.error = device.state == UP, DOWN, 0, event.reason
    device.process.enter(State.BLOCKED, WaitFor.DEVICE, system.now)
    system.emit("driver.down", device.process.pid, device.name, device.incarnation, event.reason)
    if system.halting:
        return
    system.log("error", f"{device.name}: driver died: {event.reason}")
    blameless = event.outside or device.pardoned
    work, flight = set() if blameless else _work_at_hand(device), device.in_flight
    _lose_memory(system, device)
    if flight is not None:
        _suspect(system, flight, flight.step.ref in work)
    _tell_callers(system, device, event.reason)
    if said_hello and system.now - device.up_since >= nanoseconds(system.config.restart_forgiven):
        device.failures = 0
    device.failures += not device.pardoned
    if not said_hello and device.failures >= HOPELESS:
        fail_device(system, device)
    for image in [image for image in device.images.values() if image.ref in work]:
        image.deaths += 1
        if image.deaths >= system.config.max_crashes:
            why = f"the driver died {image.deaths} times in a row while loading {image.name}"
            suspend(system, device, image, Errno.EIO(f"{why}: {event.reason}", why))
    _restart(system, device)


def kill(system: System, device: Device, program: Program) -> None:
    """A program asks for a driver's death: the next one starts at once, whatever failures there were, also where none
    lives now. What it wants is another driver, of a mended script, say."""
    device.pardoned, device.failures = True, 0
    if device.state != DOWN:
        system.act(KillDriver(device.name, device.incarnation, f"program {program.pid} ({program.name}) sent KILL"))
        return
    if device.watchdog is not None:
        device.watchdog.cancel()
    _start(system, device)


def _work_at_hand(device: Device) -> set[int]:
    """The refs of what the driver was doing: it asks about models and loads them one after the other, and does all else
    in order beside that, but for what is `out_of_order`; refs only grow. Empty: it was idle."""
    loads = {image.ref for image in device.images.values()} & device.asked.keys()
    others = {ref for ref, ask in device.asked.items() if not ask.out_of_order} - loads
    if device.in_flight is not None:
        others.add(device.in_flight.step.ref)
    return {min(refs) for refs in (loads, others) if refs}


def _lose_memory(system: System, device: Device) -> None:
    """The device's memory and all work that was queued for it are gone."""
    device.in_flight = None
    device.outs.clear()
    device.dropped.clear()
    for timer in (device.page_timer, device.watchdog):
        if timer is not None:
            timer.cancel()
    for image in device.images.values():
        for process in image.users.values():
            process.ahead = process.ahead and process.todo > 0  # what sleeps has its pages again when it is wanted
            stale(system, process)
        image.lose()
        image.lose_kv()
    for row in system.table:
        if isinstance(row, LLMProcess) and row.device is device and row.image is None:
            stale(system, row)  # it waited for its model, and waits for a driver now


def _suspect(system: System, flight: InFlight, at_work: bool) -> None:
    """End the step of a dead driver. If the driver was at work on it, the processes in it are suspects."""
    for process in flight.processes:
        process.running = process.guessing = process.swapped_in = 0
        process.crashes += at_work
        if process.crashes >= system.config.max_crashes and process.dying is None:
            stop_suspect(system, process, f"the driver died {process.crashes} times in a row in its step")
        steps.boundary(system, process)


def _tell_callers(system: System, device: Device, reason: str) -> None:
    """Wake the calls that wait for the driver's answers, or for the step to end; they find out when they go on."""
    for ask in device.asked.values():
        ask.death, ask.about = reason, None
        wake(system, ask.channel)
    device.asked.clear()
    wake(system, device.between_steps)
    wake(system, device.swapped_out)
    dirty(system, device)


def _restart(system: System, device: Device) -> None:
    """At once after a first death, then with a delay."""
    config, delay = system.config, 0
    if device.failures > 1:
        delay = min(nanoseconds(config.restart_first) << min(device.failures - 2, 64), nanoseconds(config.restart_max))
    device.restarts += 1
    if delay:
        later = f"next start in {seconds(delay):g} s ({device.failures} failures in a row)"
        device.error = f"{device.error}; {later}, at once with `kill -KILL {device.name}`"
        system.log("warning", f"{device.name}: {later}")
        device.watchdog = system.timers.at(system.now + delay, _start, device)
    else:
        _start(system, device)
