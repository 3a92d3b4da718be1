"""A recording as it plays: where in it one is, how fast it goes, the picture there. Pure: time comes in from outside."""

from __future__ import annotations

from llmasos.syscalls.records import TraceEvent
from llmasos.userland.top.model import PAST, History, Picture
from llmasos.userland.top.record import Recording

SPEEDS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Player:
    """`position` is in seconds after the first sample; `index` is the number of the sample shown."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.position = 0.0
        self.index = 0
        self.paused = False
        self._speed = SPEEDS.index(1.0)
        self._history = History()
        self._shown = -1
        self._picture: Picture | None = None

    @property
    def speed(self) -> float:
        """Seconds of the recording in a second."""
        return SPEEDS[self._speed]

    def faster(self, steps: int) -> None:
        """Go on at the speed that is `steps` further in SPEEDS (below zero: slower)."""
        self._speed = max(0, min(len(SPEEDS) - 1, self._speed + steps))

    def advance(self, seconds: float) -> bool:
        """Let time pass. Returns whether another sample is shown now. At the end it pauses."""
        if self.paused:
            return False
        return self.seek(self.position + seconds * self.speed)

    def seek(self, position: float) -> bool:
        """Go to a position, or to the end that it is beyond. Returns whether another sample is shown now."""
        length = self.recording.length
        if position >= length:
            self.paused = True
        self.position = max(0.0, min(length, position))
        before, self.index = self.index, self.recording.at(self.position)
        return self.index != before

    def step(self, samples: int) -> bool:
        """Pause, `samples` further (below zero: back). Returns whether another sample is shown now."""
        moments = self.recording.moments
        self.paused = True
        to = max(0, min(len(moments) - 1, self.index + samples))
        before, self.index = self.index, to
        self.position = moments[to].elapsed - moments[0].elapsed
        return to != before

    def play(self) -> None:
        """Go on if it pauses, from the start if it is at the end; else pause."""
        if self.paused and self.position >= self.recording.length:
            self.seek(0.0)
        self.paused = not self.paused

    def picture(self) -> Picture:
        """What is shown at the index. The past that its sparklines show is that of the recording."""
        if self._picture is None or self._shown != self.index:
            start = self._shown + 1 if self._picture is not None and self._shown < self.index else 0
            if self.index - start >= PAST or start == 0:
                self._history, start = History(), max(0, self.index - PAST)
            for moment in self.recording.moments[start : self.index + 1]:
                self._picture = self._history.add(moment.sample)
            self._shown = self.index
        assert self._picture is not None
        return self._picture

    def events(self, most: int) -> tuple[list[TraceEvent], int]:
        """The last `most` events before this sample, and how many were lost before it since the one before."""
        found: list[TraceEvent] = []
        for at in range(self.index, -1, -1):
            found = [*self.recording.moments[at].events[-most:], *found]
            if len(found) >= most:
                break
        return found[-most:], self.recording.moments[self.index].lost
