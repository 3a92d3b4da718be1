"""A device as the kernel sees it: its driver's life (start, hello, heartbeats, death, restart) and its counters.

MINIX 3's reincarnation server is the model: a driver that dies is started again, at once the first time, then after a
doubling delay; what was on the device is gone and comes back from the kernel's own records. Heartbeats must carry
progress: a busy driver that lives but does not get on is killed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from llmasos.drivers.protocol import FAILURES, Failed, FromDriver, Hello, Move, Step
from llmasos.kernel.clock import SECOND
from llmasos.kernel.events import DeviceConfig
from llmasos.kernel.memory.evictions import Evictions
from llmasos.kernel.objects.image import LOADING, RESIDENT, Image
from llmasos.kernel.objects.request import Channel
from llmasos.kernel.objects.reserve import Reserve
from llmasos.kernel.sched.run_queue import RunQueue
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import REALTIME_SHARE

if TYPE_CHECKING:
    from llmasos.kernel.objects.owner import Owner
    from llmasos.kernel.objects.process import DriverProcess, LLMProcess
    from llmasos.kernel.timers import Timer

T = TypeVar("T")

STARTING, UP, DOWN = "starting", "up", "down"
HOPELESS = 3  # deaths in a row, each soon after its start: callers are told instead of kept waiting
_MOST_SHOWN = 200  # characters of a message that is no answer


@dataclass(slots=True)
class InFlight:
    """The step on the device: its message and the processes of its runs, in the same order. One without runs only moves
    frames out. `passed`: the prompts that had a place in it, but for which others before them left no tokens. It was
    planned for at most `max_runs` runs and `step_tokens` tokens, the limits in force when it began."""

    step: Step
    processes: list[LLMProcess]
    tokens: int
    began: int
    passed: list[LLMProcess]
    max_runs: int
    step_tokens: int


@dataclass(slots=True, eq=False)
class Ask(Generic[T]):
    """A request to a driver, which answers with a record of type `wants` or with Failed. Where answers speak of tokens,
    they speak of `least` to `most`. A call that waits for the answer waits on `channel`; then it finds `answer` set, or
    `death` if the driver died before."""

    ref: int
    wants: type[T]
    # Called with the System, which stands above this file, when the answer comes, even if nobody waits.
    came: Callable[[Any, Device, Ask[Any]], None] | None = None
    about: object = None  # an image, or what a call has begun
    out_of_order: bool = False  # the driver does it beside its other work
    least: int = 0
    most: int = 1 << 62
    wrong: Callable[[T], str] | None = None  # why an answer of that type cannot be, or ""
    answer: T | Failed | None = None
    death: str | None = None
    channel: Channel = field(default_factory=Channel)

    def accept(self, message: FromDriver) -> None:
        """EPROTO if the message is no answer to this."""
        if isinstance(message, Failed) and message.errno in FAILURES:
            return
        why = ""
        if not isinstance(message, self.wants) or not self.least <= getattr(message, "tokens", self.least) <= self.most:
            why = "was answered by"
        elif self.wrong is not None and (found := self.wrong(message)):
            why = f"{found}:"
        if why:
            shown = str(message)[:_MOST_SHOWN]  # a record may have megabytes
            raise Errno.EPROTO(f"request {self.ref} for {self.wants.__name__} {why} {shown}")

    def how(self, owner: Owner) -> str:
        """How the driver died, in brackets, for the operator's own."""
        return f" ({self.death})" if owner.operator else ""

    def result(self, device: Device, what: str) -> T:
        """The answer that has come. Raises the error that the driver gave instead, or ERESTART if it died while it did
        `what`."""
        if self.death is not None:
            why = f"the driver of {device.name} died while it {what}"
            raise Errno.ERESTART(f"{why} ({self.death}); call again", f"{why}; call again")
        if isinstance(self.answer, Failed):
            raise SyscallError(self.answer.errno, self.answer.reason)
        assert self.answer is not None, f"request {self.ref} is not answered yet"
        return self.answer


@dataclass(slots=True, eq=False)
class Device:
    """Invariant: `in_flight` and `asked` only hold what this incarnation was sent."""

    config: DeviceConfig
    process: DriverProcess
    queues: list[RunQueue]  # one, or one for each part of a partition
    state: str = DOWN
    incarnation: int = 0
    hello: Hello | None = None
    os_pid: int = 0
    error: str = ""  # why it is down
    images: dict[int, Image] = field(default_factory=dict)
    in_flight: InFlight | None = None
    asked: dict[int, Ask[Any]] = field(default_factory=dict)  # by ref
    suspect: LLMProcess | None = None  # of a driver's death; must run alone, and has waited long for that
    dropped: list[int] = field(default_factory=list)  # contexts the driver may forget
    outs: list[Move] = field(default_factory=list)  # frames to be moved out before anything else is done with them
    swapped_out: Channel = field(default_factory=Channel)  # woken when no frame is yet to be moved out
    up: Channel = field(default_factory=Channel)  # when a driver has said hello
    between_steps: Channel = field(default_factory=Channel)  # when a step has ended
    evictions: Evictions = field(default_factory=Evictions)
    page_timer: Timer | None = None  # when weights that are waited for may come in
    # supervision
    up_since: int = 0
    failures: int = 0  # deaths in a row, each soon after its start
    disowned: bool = False  # it broke the protocol, and is being killed: nothing that it still says counts
    pardoned: bool = False  # a program has asked for its driver's death, which no step will have caused
    progress: int = -1
    progress_at: int = 0
    heard: int = 0
    watchdog: Timer | None = None
    part: int = 0  # of the partition, whose turn it was last
    turn: int = -1  # the number of the turn in which the last step began
    overran: bool = False  # a step took longer than a turn
    turns: Timer | None = None  # when the next one begins, if there is a partition
    # configuration in force
    max_runs: int = 1
    step_tokens: int = 1
    stream_tokens: int = 1
    guess_rows: int = 0
    rescheduled: bool = False  # by a call, or by modules of the user's: the journal has it
    good: list[tuple[str, str]] = field(default_factory=list)  # policies before those in force: kind, name
    reserves: dict[int, Reserve] = field(default_factory=dict)  # of REALTIME processes, and of those that move here
    # counters
    restarts: int = 0
    steps: int = 0
    computed: int = 0
    reused: int = 0
    decoded: int = 0
    refaults: int = 0
    busy: int = 0  # nanoseconds of steps

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def queue(self) -> RunQueue:
        """The processes that want it, of the part whose turn it is."""
        return self.queues[self.part]

    def queue_of(self, process: LLMProcess) -> RunQueue:
        return self.queues[process.owner.part]

    def here(self, processes: Collection[LLMProcess]) -> Collection[LLMProcess]:
        """Of these processes those of the part whose turn it is."""
        return processes if len(self.queues) == 1 else [p for p in processes if p.owner.part == self.part]

    @property
    def kv_bytes(self) -> int:
        """KV memory of all models together: as configured, else a quarter of the device's first tier."""
        return self.config.kv_bytes or self.tier_size // 4

    @property
    def tier_size(self) -> int:
        """Size of the first tier; 0: not known."""
        return self.hello.tiers[0].size if self.hello is not None and self.hello.tiers else 0

    @property
    def weight_bytes(self) -> int:
        """Memory for the weights of all models together; 0: not known."""
        left = self.tier_size - sum(image.kv_bytes for image in self.images.values())
        return min(filter(None, (self.config.weight_bytes, max(0, left))), default=0)

    @property
    def loads_alone(self) -> bool:
        """A model that may have killed the driver while it was loaded is being loaded again: no step beside it."""
        return any(image.deaths and image.state == LOADING for image in self.images.values())

    @property
    def tier_bytes(self) -> list[int]:
        """Sizes of the tiers below the first."""
        return [tier.size for tier in self.hello.tiers[1:]] if self.hello is not None else []

    @property
    def image_kv_bytes(self) -> int:
        """KV memory of one model: as configured, else a gibibyte or a quarter of the device's, whichever is less."""
        return self.config.image_kv_bytes or min(1 << 30, self.kv_bytes // 4)

    def release_reserve(self, pid: int) -> None:
        """A process is REALTIME here no longer. Harmless if it was not."""
        held = self.reserves.pop(pid, None)
        if held is not None and held.timer is not None:
            held.timer.cancel()

    @property
    def hopeless(self) -> bool:
        """Its driver does not start: calls that need it fail at once."""
        return self.state == DOWN and self.failures >= HOPELESS

    def check(self) -> None:
        """Weights in memory, and on their way, are within their budget; a step runs with weights, and writes no shared
        frame."""
        images = list(self.images.values())
        there = [i for i in images if i.state == RESIDENT or (i.state == LOADING and i.probed is not None)]
        for image in images:
            assert (image.allotted > 0) == (image in there), f"{image.name} is {image.state} with {image.allotted} bytes"
        weights, limit, tier = sum(i.allotted for i in there), self.config.weight_bytes, self.tier_size
        frames = sum(i.kv_bytes for i in images if i.held)
        assert not limit or weights <= limit, f"{weights} bytes of weights in {limit}"
        assert not tier or weights + frames <= tier, f"{weights}+{frames} bytes in {tier}"
        shares = sum(reserve.share for reserve in self.reserves.values())
        assert shares <= REALTIME_SHARE * SECOND, f"{shares} billionths of its time are reserved"
        assert not self.swapped_out or self.outs, "something waits for frames to be moved out"
        for process in self.in_flight.processes if self.in_flight else ():
            used = process.image
            assert used is not None, f"pid {process.pid} runs without a model"
            assert used.state == RESIDENT, f"pid {process.pid} runs without weights"
            for frame in process.table.frames[process.table.cached // used.block_tokens :]:
                assert used.pool.refs[frame] == 1, f"frame {frame} is written by {process.pid} with other mappings"

    def lacks(self, feature: str) -> bool:
        """Whether its driver is known not to have a feature (drivers/protocol.py)."""
        return self.hello is not None and feature not in self.hello.features

    def find_image(self, path: str, dtype: str) -> Image | None:
        return next((i for i in self.images.values() if i.answers_to(path, dtype)), None)


def no_device(device: Device) -> SyscallError:
    """The error for callers that would wait for a device that does not start."""
    why = f"device {device.name} does not start"
    return Errno.ENODEV(f"{why}: {device.error}", f"{why}; the operator's log says why")
