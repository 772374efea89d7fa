"""Pace: how fast a replay's event time goes by, and its pauses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 10_000  # records between two looks at whether a pause is wanted
_LOOK_S = 0.05
_LONGEST_STEP_S = 1.0  # a computer that slept, or a process that was stopped, does not make up for it


class Pace:
    """Event time goes by `speed` times as fast as ours; 0 = as fast as records can be sent.

    `look` is called many times a second and says whether the replay is to stand still now; it may raise to end it.
    """

    def __init__(
        self,
        speed: float,
        look: Callable[[], bool] = lambda: False,
        *,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._speed, self._look, self._now_s, self._sleep = speed, look, now_s, sleep
        self._seen_s = now_s()
        self._passed_s = 0.0
        self._first_ms: int | None = None

    def wait_until(self, event_time_ms: int) -> None:
        """Wait until event time has come to `event_time_ms`; it starts with the first call's."""
        if self._first_ms is None:
            self._first_ms = event_time_ms
            self._seen_s = self._now_s()
        while self._stands_still() or (self._speed and self._event_time_ms() < event_time_ms):
            left_s = (event_time_ms - self._event_time_ms()) / 1000 / self._speed if self._speed else _LOOK_S
            self._sleep(min(max(left_s, 0.001), _LOOK_S))

    def parts(self, due_ms: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Which records to send, first and stop, each time once they are due. `due_ms` int64 (record,) never falls."""
        start = 0
        while start < len(due_ms):
            self.wait_until(int(due_ms[start]))
            stop = min(start + _AT_ONCE, len(due_ms))
            if self._speed:
                stop = min(stop, max(int(np.searchsorted(due_ms, self._event_time_ms(), side="right")), start + 1))
            yield start, stop
            start = stop

    def _stands_still(self) -> bool:
        paused = self._look()
        now_s = self._now_s()
        if not paused:
            self._passed_s += min(now_s - self._seen_s, _LONGEST_STEP_S)
        self._seen_s = now_s
        return paused

    def _event_time_ms(self) -> int:
        return (self._first_ms or 0) + int(self._passed_s * self._speed * 1000)
