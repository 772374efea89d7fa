"""Pace, with a clock that the test moves."""

from __future__ import annotations

import numpy as np

from worker.replay_pace import Pace


class Clock:
    """Time goes by only in sleep."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.paused = False

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


def test_records_go_out_when_they_are_due() -> None:
    clock = Clock()
    pace = Pace(60.0, lambda: clock.paused, now_s=lambda: clock.now_s, sleep=clock.sleep)
    due_ms = np.array([0, 0, 30_000, 60_000, 600_000]) + 5_000_000
    sent = [(start, stop, round(clock.now_s - 100.0, 1)) for start, stop in pace.parts(due_ms)]
    assert sent == [(0, 2, 0.0), (2, 3, 0.5), (3, 4, 1.0), (4, 5, 10.0)]
    pace.wait_until(5_660_000)
    assert round(clock.now_s - 100.0, 1) == 11.0


def test_event_time_stands_still_in_a_pause_and_while_the_computer_sleeps() -> None:
    clock = Clock()
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        if looks == 10:
            clock.now_s += 3_600  # asleep: a second of it counts
        return 20 <= looks < 40

    pace = Pace(1.0, look, now_s=lambda: clock.now_s, sleep=clock.sleep)
    pace.wait_until(0)
    pace.wait_until(4_000)
    paused_s = 20 * 0.05
    assert 4 + 3_599 + paused_s - 0.1 < clock.now_s - 100 < 4 + 3_599 + paused_s + 0.1


def test_as_fast_as_possible_waits_for_nothing_but_the_end_of_a_pause() -> None:
    clock = Clock()
    looks = iter([False, True, True, False])
    pace = Pace(0.0, lambda: next(looks, False), now_s=lambda: clock.now_s, sleep=clock.sleep)
    assert list(pace.parts(np.arange(25_000) * 1_000)) == [(0, 10_000), (10_000, 20_000), (20_000, 25_000)]
    assert 100 < clock.now_s < 100.2
