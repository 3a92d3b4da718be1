"""A ZeroMQ socket for trio: the pump under the drivers' loop. (The kernel speaks ZMTP by itself, kernel/edge/door.py.)

pyzmq knows no trio, and a ZeroMQ socket is not a file to wait on. It has a descriptor (ZMQ_FD) that becomes readable when
*something* may have happened inside, once for each change, and any operation on the socket may swallow that change.
Everything below follows from this. zeromq.py makes the sockets; this, line.py and link.py (a program's two kinds of
connection) are the only modules that wait on such descriptors.

Who touches the socket. A task that runs `Socket.run` owns it: it takes what has arrived, hands each message to `deliver`
(a plain function, called at once), and parks on the descriptor when the socket says (EAGAIN) that it is empty. There is
no checkpoint between that answer and parking, so nothing can slip in between.

Why senders do not go through the owner. All tasks of a trio program share one thread, so `send` may write to the socket
directly, which saves a round through the scheduler (some 20 us) for each message. But writing processes the socket's
inner commands, and may swallow the wake-up of a message that has just arrived; the owner would sleep over it for ever. So
a task that uses the socket while its owner is parked looks at ZMQ_EVENTS afterwards, and if there is something to read,
has trio call `_look`, which reads for the owner. (Cancelling the owner's park would do too, but costs a cancel scope for
each park, and so a few microseconds of every message.)

What does not fit. A message for which the pipe has no room waits here, up to a bound. ZeroMQ says that there is room
again by the same descriptor, and two full checks can each swallow what the other looks for; so while the queue is not
empty it is also tried by time, a backstop that costs nothing while the kernel is fast. ZeroMQ's own pipes are bounded in
messages, not in bytes; so long frames are followed (pyzmq tells when ZeroMQ has let go of one), and few are given to it
at a time.

Messages move only in plain functions, where trio cannot cancel: what `run` has read is delivered, whatever happens to
tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio
import zmq
from trio import TaskStatus

from llmasos.syscalls import limits, zeromq
from llmasos.syscalls.zeromq import NOBLOCK, check_endpoint, descriptor, has_message, raw_dealer

BATCH = 64  # messages to take before other tasks have their turn
RETRY_SECONDS = 0.02  # longest wait before a full pipe is tried again
MAX_BACKLOG = limits.MAX_REPLY_BYTES  # bytes that may wait here
LONG = zmq.COPY_THRESHOLD  # bytes of a frame that is followed: pyzmq copies shorter ones
MAX_FLYING = 8 << 20  # bytes of long frames that ZeroMQ may hold when it is given another


class Socket:
    """A DEALER whose messages go to one function. Make it with `dealer`.

    `dropped` counts messages that could not be sent.
    """

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self._raw = raw
        self._fd = descriptor(raw)
        self._waiting = _Queue()
        self._flying = _Flying()  # long frames that ZeroMQ holds
        self._deliver: Callable[[bytes], None] = _nobody
        self._token: trio.lowlevel.TrioToken | None = None  # set while the owner is parked
        self._retrying = False
        self._monitor: Monitor | None = None
        self._closed = False
        self.dropped = 0

    async def run(
        self, deliver: Callable[[bytes], None], task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Own the socket until it is closed or the task is cancelled. Exceptions of `deliver` pass through."""
        self._deliver = deliver
        token = trio.lowlevel.current_trio_token()
        task_status.started()
        while True:
            if self._receive():
                await trio.lowlevel.checkpoint()
                continue
            if self._closed:
                return
            if self._waiting:
                self._flush()
                if self._readable():  # flushing may have swallowed the wake-up
                    await trio.lowlevel.checkpoint()
                    continue
            # No await between finding the socket empty and parking here.
            self._token = token
            try:
                await trio.lowlevel.wait_readable(self._fd)
            except trio.ClosedResourceError:
                return
            finally:
                self._token = None

    def send(self, body: bytes) -> bool:
        """Send one frame without waiting. False: too much waits here already, or the socket is closed."""
        if self._closed or (self._waiting and self._waiting.size + len(body) > MAX_BACKLOG):
            self.dropped += 1
            return False
        if self._waiting:
            self._waiting.append(body)
            return True
        try:
            self._write(body)
        except zmq.Again:
            self._waiting.append(body)
            self._retry_later()
        if self._token is not None:  # whether or not the frame was sent, the socket was used
            self._rouse(self._token)
        return True

    @property
    def backlog(self) -> int:
        """Messages that wait for room."""
        return len(self._waiting)

    def monitor(self) -> Monitor:
        """Watch this socket's connections. Call it before `connect`; it ends with the socket."""
        events = zmq.EVENT_CLOSED | zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED
        self._monitor = Monitor(self._raw.get_monitor_socket(events))
        return self._monitor

    def connect(self, endpoint: str) -> None:
        check_endpoint(endpoint)
        self._raw.connect(endpoint)

    def close(self, linger: float = 0.0) -> None:
        """Close at once. What is in ZeroMQ's own pipes is still sent, for up to `linger` seconds."""
        if self._closed:
            return
        self._closed = True
        self.dropped += self.backlog
        self._waiting = _Queue()
        self._flying.clear()
        self._unpark()
        if self._monitor is not None:
            self._raw.disable_monitor()
            self._monitor.close()
        self._raw.close(linger=round(linger * 1000))

    def _unpark(self) -> None:
        # trio must let go of the descriptor before ZeroMQ closes it; outside trio no task can be parked.
        with suppress(RuntimeError):
            trio.lowlevel.notify_closing(self._fd)

    def _readable(self) -> bool:
        return has_message(self._raw)

    def _receive(self) -> bool:
        """Deliver up to a batch. True: there may be more. False: the socket was empty at the last look."""
        for count in range(BATCH):
            # Try for the first one at once: most likely it is there, and EAGAIN costs more than asking.
            if self._closed or (count and not has_message(self._raw)):
                return False
            try:
                message = self._raw.recv(NOBLOCK)
            except zmq.Again:
                return False
            self._deliver(message)
        return True

    def _rouse(self, token: trio.lowlevel.TrioToken) -> None:
        """The socket was used while its owner is parked: make sure that nothing it holds then waits for ever."""
        if self._readable():
            token.run_sync_soon(self._look, idempotent=True)

    def _look(self) -> None:
        if (token := self._token) is not None and self._receive():
            token.run_sync_soon(self._look, idempotent=True)

    def _retry_later(self) -> None:
        if not self._retrying:
            self._retrying = True
            trio.lowlevel.spawn_system_task(self._retry)

    async def _retry(self) -> None:
        while self._waiting:
            await trio.sleep(RETRY_SECONDS)
            self._flush()
            if self._token is not None and not self._closed:
                self._rouse(self._token)
        self._retrying = False

    def _write(self, body: bytes) -> None:
        """Raises zmq.Again: there is no room now."""
        if len(body) < LONG:
            self._raw.send(body, NOBLOCK)
            return
        if self._flying.weight() > MAX_FLYING:
            raise zmq.Again
        self._flying.append((self._raw.send(body, NOBLOCK, copy=False, track=True), len(body)))

    def _flush(self) -> None:
        with suppress(zmq.Again):
            for _ in range(min(BATCH, len(self._waiting))):
                self._write(self._waiting[0])
                self._waiting.popleft()


def _nobody(message: bytes) -> None:
    raise RuntimeError("a message was taken that nobody waits for")


class _Queue(deque[bytes]):
    """Frames that wait for room, and the sum of their bytes."""

    size = 0

    def append(self, frame: bytes) -> None:
        super().append(frame)
        self.size += len(frame)

    def popleft(self) -> bytes:
        frame = super().popleft()
        self.size -= len(frame)
        return frame


class _Flying(deque[tuple[zmq.MessageTracker, int]]):
    """Long frames that ZeroMQ has been given, with their bytes."""

    def weight(self) -> int:
        """Bytes that it still holds."""
        while self and self[0][0].done:
            self.popleft()
        return sum(size for _, size in self)


class Monitor(zeromq.Monitor):
    """A monitor with a task that watches it."""

    async def run(self, look: Callable[[], None], task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call `look` (which drains) whenever something may have happened."""
        task_status.started()
        while not self.closed:
            look()
            if self.closed or has_message(self._raw):
                await trio.lowlevel.checkpoint()
                continue
            try:
                await trio.lowlevel.wait_readable(self.fd)
            except trio.ClosedResourceError:
                return

    def close(self) -> None:
        if not self.closed:
            with suppress(RuntimeError):
                trio.lowlevel.notify_closing(self.fd)
        super().close()


def dealer(
    routing_id: bytes = b"",
    context: zmq.Context[zmq.Socket[bytes]] | None = None,
    *,
    max_frame: int = 2 * limits.MAX_REPLY_BYTES,
) -> Socket:
    """A socket that connects once: a lost connection stays lost."""
    return Socket(raw_dealer(routing_id, context, max_frame))
