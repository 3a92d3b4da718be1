"""A ZeroMQ socket for trio: the pump under the drivers' loop. (The kernel speaks ZMTP by itself, kernel/edge/door.py.)

pyzmq knows no trio, and a ZeroMQ socket is not a file to wait on. It has a descriptor (ZMQ_FD) that becomes readable when
*something* may have happened inside, once for each change, and any operation on the socket may swallow that change.
Everything below follows from this. zeromq.py makes the sockets; this, line.py and link.py (a program's two kinds of
connection) are the only modules that wait on ZMQ_FD.

Who touches the socket. A task that runs `Socket.run` owns it: it takes what has arrived, hands each message to `deliver`
(a plain function, called at once), and parks on the descriptor when the socket says (EAGAIN) that it is empty. There is
no checkpoint between that answer and parking, so nothing can slip in between.

Why senders do not go through the owner. All tasks of a trio program share one thread, so `send` may write to the socket
directly, which saves a round through the scheduler (some 20 us) for each message. But writing processes the socket's
inner commands, and may swallow the wake-up of a message that has just arrived; the owner would sleep over it for ever. So
a task that uses the socket while its owner is parked looks at ZMQ_EVENTS afterwards, and if there is something to read,
has trio call `_look`, which reads for the owner. (Cancelling the owner's park would do too, but costs a cancel scope for
each park, and so a few microseconds of every message.)

What does not fit. A message for a peer whose pipe is full waits here, in a queue of that peer, so that one slow reader
holds up no other; a peer that lets too much pile up is treated as unreachable. ZeroMQ says that *some* peer has room
again, not which, and two full checks can each swallow what the other looks for; so while queues are not empty they are
also tried by time, a backstop that costs nothing while every peer is fast. ZeroMQ's own pipes are bounded in messages,
not in bytes; so long frames are followed (pyzmq tells when ZeroMQ has let go of one), and few are given to it at a time.

Messages move only in plain functions, where trio cannot cancel: what `run` has read is delivered, whatever happens to
tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import trio
import zmq
from trio import TaskStatus

from llmasos.syscalls import limits, zeromq
from llmasos.syscalls.zeromq import NOBLOCK, check_endpoint, descriptor, has_message, make, raw_dealer

BATCH = 64  # messages to take before other tasks have their turn
RETRY_SECONDS = 0.02  # longest wait before a full pipe is tried again
MAX_BACKLOG = limits.MAX_REPLY_BYTES  # bytes that may wait here for one peer before it is given up,
MAX_BACKLOGS = 8 * limits.MAX_REPLY_BYTES  # and for all peers together
LONG = zmq.COPY_THRESHOLD  # bytes of a frame that is followed: pyzmq copies shorter ones
MAX_FLYING = 8 << 20  # bytes of long frames that ZeroMQ may hold for one peer when it is given another
MAX_FRAME = 2 * limits.MAX_REQUEST_BYTES  # ZeroMQ cuts a connection over this; shorter ones can be answered
_SNDMORE = int(zmq.NOBLOCK | zmq.SNDMORE)


class Message(NamedTuple):
    """A message as it arrived. `peer` is its sender's routing id (ROUTER), or empty; `fd` the descriptor of its
    connection (0: unknown); `parts` the number of frames; `body` is the first of them."""

    peer: bytes
    body: bytes
    fd: int
    parts: int


class Socket:
    """A DEALER or ROUTER whose messages go to one function. Make it with `dealer` or `router`.

    `dropped` counts messages that could not be delivered to their peer.
    """

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self._raw = raw
        self._fd = descriptor(raw)
        self._routed = raw.getsockopt(zmq.TYPE) == zmq.ROUTER
        self._backlog: dict[bytes, _Queue] = {}
        self._flying: dict[bytes, _Flying] = {}  # long frames that ZeroMQ holds
        self._deliver: Callable[[Message], None] = _nobody
        self._token: trio.lowlevel.TrioToken | None = None  # set while the owner is parked
        self._retrying = False
        self._monitor: Monitor | None = None
        self._closed = False
        self.dropped = 0

    async def run(
        self, deliver: Callable[[Message], None], task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
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
            if self._backlog:
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

    def send(self, body: bytes, to: bytes = b"") -> bool:
        """Send one frame (a ROUTER: to the peer `to`) without waiting. False: the peer is not reachable (any more), or
        has let too much pile up here. A ROUTER then gives the peer up with all that waits for it; a DEALER, which has no
        other peer, refuses this frame only."""
        if self._closed:
            self.dropped += 1
            return False
        waiting = self._backlog.get(to)
        if waiting is not None:
            if not self.overflows(to, len(body)):
                waiting.append(body)
                return True
            self.dropped += 1
            if self._routed:
                self.forget(to)
            return False
        reachable = True
        try:
            self._write(body, to)
        except zmq.Again:
            self._backlog[to] = waiting = _Queue()
            waiting.append(body)
            self._retry_later()
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.dropped += 1
            reachable = False
        if self._token is not None:  # whether or not the frame was sent, the socket was used
            self._rouse(self._token)
        return reachable

    def overflows(self, to: bytes, length: int) -> bool:
        """Whether a peer reads too slowly to be sent so many bytes more."""
        waiting = self._backlog.get(to)
        if waiting is None:
            return False
        return waiting.size + length > MAX_BACKLOG or self.backlog_bytes + length > MAX_BACKLOGS

    def drain(self) -> None:
        """Deliver all that has arrived, at once. For the end of a connection, when no task may be left to wait for it."""
        while self._receive():
            pass

    @property
    def backlog(self) -> int:
        """Messages that wait for room in a peer's pipe."""
        return sum(map(len, self._backlog.values()))

    @property
    def backlog_bytes(self) -> int:
        """Bytes of them."""
        return sum(queue.size for queue in self._backlog.values())

    def forget(self, peer: bytes) -> None:
        """Drop what still waits for a peer that has gone."""
        self.dropped += len(self._backlog.pop(peer, ()))
        self._flying.pop(peer, None)

    def monitor(self) -> Monitor:
        """Watch this socket's connections. Call it before bind or connect; it ends with the socket."""
        events = zmq.EVENT_ACCEPTED if self._routed else zmq.EVENT_CLOSED
        events |= zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED
        self._monitor = Monitor(self._raw.get_monitor_socket(events))
        return self._monitor

    def bind(self, endpoint: str, listener: int = -1) -> None:
        """Accept connections. ZeroMQ takes over and closes `listener`, the descriptor of a socket that listens there;
        without one it makes its own."""
        check_endpoint(endpoint)
        self._raw.setsockopt(zmq.USE_FD, listener)
        self._raw.bind(endpoint)

    def connect(self, endpoint: str) -> None:
        check_endpoint(endpoint)
        self._raw.connect(endpoint)

    def close(self, linger: float = 0.0) -> None:
        """Close at once. What is in ZeroMQ's own pipes is still sent, for up to `linger` seconds."""
        if self._closed:
            return
        self._closed = True
        self.dropped += self.backlog
        self._backlog.clear()
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
                message = self._read()
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
        while self._backlog:
            await trio.sleep(RETRY_SECONDS)
            self._flush()
            if self._token is not None and not self._closed:
                self._rouse(self._token)
        self._retrying = False

    def _read(self) -> Message:
        peer = self._raw.recv(NOBLOCK) if self._routed else b""
        frame = body = self._raw.recv(NOBLOCK, copy=False)
        parts = 1
        while frame.more:  # ZeroMQ delivers a message whole, so the rest is there
            frame = self._raw.recv(NOBLOCK, copy=False)
            parts += 1
        try:
            fd = int(body.get(zmq.SRCFD))
        except zmq.ZMQError:  # a transport without descriptors
            fd = 0
        return Message(peer, body.bytes, fd, parts)

    def _write(self, body: bytes, to: bytes) -> None:
        """Raises zmq.Again: there is no room now; zmq.ZMQError: the peer is not there."""
        if len(body) < LONG:
            if self._routed:
                self._raw.send(to, _SNDMORE)
            self._raw.send(body, NOBLOCK)
            return
        flying = self._flying.setdefault(to, _Flying())
        if flying.weight() > MAX_FLYING:
            raise zmq.Again
        if self._routed:
            self._raw.send(to, _SNDMORE)
        flying.append((self._raw.send(body, NOBLOCK, copy=False, track=True), len(body)))

    def _flush(self) -> None:
        for peer, waiting in list(self._backlog.items()):
            try:
                for _ in range(min(BATCH, len(waiting))):
                    self._write(waiting[0], peer)
                    waiting.popleft()
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self.forget(peer)
            else:
                if not waiting:
                    del self._backlog[peer]


def _nobody(message: Message) -> None:
    raise RuntimeError("a socket was drained that nobody runs")


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


def router(context: zmq.Context[zmq.Socket[bytes]] | None = None, *, max_frame: int = MAX_FRAME) -> Socket:
    """A socket that many peers connect to. It reports a message to an absent peer instead of swallowing it."""
    raw = make(context, zmq.ROUTER, max_frame)
    raw.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return Socket(raw)


def dealer(
    routing_id: bytes = b"",
    context: zmq.Context[zmq.Socket[bytes]] | None = None,
    *,
    max_frame: int = 2 * limits.MAX_REPLY_BYTES,
) -> Socket:
    """A socket that connects to a router, once: a lost connection stays lost."""
    return Socket(raw_dealer(routing_id, context, max_frame))
