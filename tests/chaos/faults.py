"""Faults, each inflicted while data flows and followed by a comparison of every cell.

Every one begins and ends with one worker, so they can follow each other in any order.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tests.chaos import seams
from tests.chaos.arena import FORECASTING, PATIENCE_S, Arena, ChaosError
from tests.chaos.oracle import Place
from tests.chaos.tally import CRASH_POINT_WORKER, KILL, Tally
from worker.local_worker import LocalWorker

IDLE_KILL = "kill -9, nothing in flight"
TERMINATE, ZOMBIE, SCALE = "SIGTERM", "SIGSTOP, taken over, SIGCONT", "scale 1-3-1"
RESTART, REDIS_KILL = "Redis restarted", "Redis killed and started"
FLUSH, RESTORE = "Redis FLUSHALL", "Redis restored from an older snapshot"
OWED = "forecasts owed, after kills"

_MOMENT_S = 0.25  # a lane whose position moved within this time is at work
_TRIES, _LARGEST = 8, 16  # turns for each kill wanted; backlog of one, in those it begins with


class Pace(NamedTuple):
    """Records sent at once for each kill, and each second while other faults happen."""

    burst: int
    per_s: int


class Faults:
    """Inflicts faults on an arena; `begin` first."""

    def __init__(self, arena: Arena, tally: Tally, seed: int, pace: Pace) -> None:
        self._arena, self._tally, self._pace = arena, tally, pace
        self._random = random.Random(seed)

    def begin(self) -> None:
        """One worker counts the opening: from now on every lane has a clock, and knows late from early."""
        self._arena.launch()
        self._arena.settle()

    # -- kills ----------------------------------------------------------------------------------------------------

    def kill_alone(self, kills: int) -> None:
        """The only worker, killed again and again at a seeded share of a backlog."""
        for backlog in self._until(kills):
            self._kill(self._arena.workers, backlog)
        self._settle_and_compare("after kills of the only worker")

    def kill_among_three(self, kills: int) -> None:
        """Two more join; one after the other of those that run is killed, while others begin in their places."""
        self._grow(3)
        for backlog in self._until(kills):
            self._kill([self._random.choice(self._arena.wait_for_ready_ones())], backlog)
        self._settle_and_compare("after kills among three workers")
        self._shrink()

    def kill_both(self, kills: int) -> None:
        """One more joins; both are killed at the same moment."""
        self._grow(2)
        for backlog in self._until(kills):
            self._arena.wait_until_ready()
            self._kill(self._arena.workers, backlog)
        self._settle_and_compare("after kills of both workers")
        self._shrink()

    def _until(self, kills: int) -> Iterator[int]:
        """Turns, until so many more kills have met a batch in flight. Yields how many records to send for each: now and
        then a kill comes too late, and on a busy machine the next backlogs are larger."""
        goal, burst = self._tally.inflicted(KILL) + kills, self._pace.burst
        for _ in range(_TRIES * kills):
            before = self._tally.inflicted(KILL)
            if before >= goal:
                return
            yield burst
            if self._tally.inflicted(KILL) == before:
                burst = min(2 * burst, _LARGEST * self._pace.burst)
        raise ChaosError(f"{_TRIES * kills} turns brought less than {kills} kills with a batch in flight")

    def _kill(self, victims: list[LocalWorker], backlog: int, settings: Mapping[str, int] | None = None) -> None:
        """Send records, kill while they are counted, start others in place of the dead, compare while those begin."""
        arena, victims, of = self._arena, list(victims), len(self._arena.workers)
        arena.feed.pour(backlog)
        history, ends = self._wait_for_work(self._share()), arena.oracle.ends()
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        for victim in victims:
            victim.kill()  # waits for its end
        working = self._working_lanes(history, killed_at, ends)
        met = [victim for victim in victims if working & arena.lanes_of(victim)]
        detail = f"{len(victims)} of {of} workers, lag {arena.lag():,}, lanes at work {sorted(working)}"
        for victim in victims:
            arena.lost(victim)
            arena.launch(**settings or {})
        found = arena.differences()
        for kind, times in ((KILL, len(met)), (IDLE_KILL, len(victims) - len(met))):
            if times:
                self._tally.note(kind, found, f"{detail}, {arena.cells:,} cells", times=times)
                found = []

    def _share(self) -> float:
        """Of a backlog, that is counted when a fault strikes; a look at the positions takes some of it, too."""
        return self._random.uniform(0.05, 0.6)

    def _wait_for_work(self, share: float) -> list[tuple[float, dict[Place, int]]]:
        """Until that share of the backlog is counted; returns the positions seen meanwhile, with their times."""
        arena, history = self._arena, [(time.monotonic(), self._arena.positions())]
        goal = sum(history[0][1].values()) + share * arena.lag()

        def enough() -> bool:
            positions = arena.positions()
            if positions != history[-1][1]:
                history.append((time.monotonic(), positions))
            return sum(positions.values()) >= goal

        arena.wait_until("progress in a backlog", enough)
        return history

    def _working_lanes(
        self, history: list[tuple[float, dict[Place, int]]], killed_at: float, ends: Mapping[Place, int]
    ) -> set[int]:
        """Lanes that had a batch in flight: their positions moved a moment before the kill, and are not at the ends."""
        after = self._arena.positions()
        recent = [positions for at, positions in history if killed_at - at < _MOMENT_S]
        before = history[max(0, len(history) - len(recent) - 1)][1]
        moved = {place[1] for place in ends if before.get(place, 0) < after.get(place, 0)}
        lagging = {place[1] for place, end in ends.items() if after.get(place, 0) < end}
        return moved & lagging

    # -- other faults of workers ----------------------------------------------------------------------------------

    def terminate(self) -> None:
        """SIGTERM to the only worker in the midst of a backlog."""
        arena = self._arena
        (worker,) = arena.workers
        with arena.feed.flowing(self._pace.per_s):
            arena.feed.pour(self._pace.burst)
            self._wait_for_work(self._share())
            arena.lost(worker)
            worker.stop()
            code = [] if worker.exit_code == 0 else [f"SIGTERM: exit code {worker.exit_code}"]
            arena.launch()
            found = arena.differences()
        arena.settle()
        self._tally.note(TERMINATE, code + found + arena.differences())

    def zombie(self) -> None:
        """One of two stands still until the other has its lanes, and then goes on with what it had in hand."""
        arena = self._arena
        self._grow(2)
        arena.wait_until_ready()
        with arena.feed.flowing(self._pace.per_s):
            arena.feed.pour(self._pace.burst)
            self._wait_for_work(self._share())
            zombie = self._random.choice(arena.workers)
            zombie.send_signal(signal.SIGSTOP)
            at_stop = arena.oracle.ends()
            arena.wait_until("the lanes of a stopped worker taken over", lambda: self._has_passed(at_stop))
            zombie.send_signal(signal.SIGCONT)
            arena.wait_until_ready()
            arena.feed.pour(self._pace.burst)
        self._settle_and_compare(ZOMBIE, fault=True)
        self._shrink()

    def scale(self) -> None:
        """Two more workers, and two fewer, while data flows."""
        arena = self._arena
        with arena.feed.flowing(self._pace.per_s):
            self._grow(3)
            arena.wait_until_ready()
            arena.feed.pour(self._pace.burst)
            self._wait_for_work(0.5)
            found = self._shrink()
            at_end = arena.oracle.ends()
            arena.wait_until("one worker for all lanes", lambda: self._has_passed(at_end))
        arena.settle()
        self._tally.note(SCALE, found + arena.differences())

    def _has_passed(self, ends: Mapping[Place, int]) -> bool:
        positions = self._arena.positions()
        return all(positions.get(place, 0) >= end for place, end in ends.items())

    def _grow(self, to: int) -> None:
        while len(self._arena.workers) < to:
            self._arena.launch()

    def _shrink(self) -> list[str]:
        """SIGTERM to all but one; what is wrong with their ends."""
        arena, wrong = self._arena, []
        for worker in self._random.sample(arena.workers, len(arena.workers) - 1):
            arena.lost(worker)
            worker.stop()
            if worker.exit_code != 0:
                wrong.append(f"SIGTERM: exit code {worker.exit_code}")
        return wrong

    # -- faults of Redis ------------------------------------------------------------------------------------------

    def restart_redis(self, *, kill: bool) -> None:
        """Away for a moment; its append-only file brings back all or nearly all."""
        arena = self._arena
        with arena.feed.flowing(self._pace.per_s):
            arena.feed.pour(self._pace.burst)
            self._wait_for_work(self._share())
            arena.restart_redis(kill=kill)
            arena.feed.pour(self._pace.burst)
        self._settle_and_compare(REDIS_KILL if kill else RESTART, fault=True)

    def empty_redis(self, *, kill_meanwhile: bool) -> None:
        """FLUSHALL: everything is rebuilt from the topics. Possibly the worker is killed while it rebuilds."""
        arena = self._arena
        with arena.feed.flowing(self._pace.per_s):
            arena.feed.pour(self._pace.burst)
            self._wait_for_work(self._share())
            arena.empty_redis()
            if not kill_meanwhile:
                arena.feed.pour(self._pace.burst)
        if kill_meanwhile:
            self._kill(arena.workers, self._pace.burst)
        self._settle_and_compare(FLUSH, fault=True)

    def save_redis(self) -> None:
        """Take a snapshot while data flows, for `restore_redis`."""
        with self._arena.feed.flowing(self._pace.per_s):
            self._arena.feed.pour(self._pace.burst)
            self._wait_for_work(0.5)
            self._arena.save_redis()

    def restore_redis(self, *, kill_meanwhile: bool) -> None:
        """An older snapshot takes Redis' place: what came since is counted again. Possibly the worker is killed."""
        arena = self._arena
        with arena.feed.flowing(self._pace.per_s):
            arena.feed.pour(self._pace.burst)
            self._wait_for_work(self._share())
            arena.restore_redis(self._random.randrange(arena.saved))
            if not kill_meanwhile:
                arena.feed.pour(self._pace.burst)
        if kill_meanwhile:
            self._kill(arena.workers, self._pace.burst)
        self._settle_and_compare(RESTORE, fault=True)

    def _settle_and_compare(self, what: str, *, fault: bool = False) -> None:
        self._arena.settle()
        found = self._arena.differences()
        if fault:
            self._tally.note(what, found, f"{self._arena.cells:,} cells")
        else:
            self._tally.check(what, found)

    # -- forecasts ------------------------------------------------------------------------------------------------

    def kill_while_forecasting(self, kills: int) -> None:
        """Forecasts are made as items are touched, by the baseline; none that is owed may be forgotten."""
        arena = self._arena
        arena.end_workers()
        arena.launch(**FORECASTING)
        for backlog in self._until(kills):
            self._kill(arena.workers, backlog, FORECASTING)
        arena.settle()
        self._tally.note(OWED, arena.forecast_differences(), f"{len(arena.traffic.items)} items")
        arena.end_workers()
        arena.launch()

    # -- crash points ---------------------------------------------------------------------------------------------

    def crash_workers(self, points: int) -> None:
        """Workers that end themselves at crash points, one after the other."""
        arena = self._arena
        arena.end_workers()
        wanted = seams.crash_points(self._random)
        arena.feed.pour(self._pace.burst)
        worker, point = self._launch_doomed(next(wanted))
        for n in range(points):
            deadline = time.monotonic() + PATIENCE_S
            while worker.is_running:
                if time.monotonic() > deadline:
                    raise ChaosError(f"a worker that was to end {point} went on for {PATIENCE_S:.0f} s")
                if not arena.lag():
                    arena.feed.pour(self._pace.burst // 4)
                time.sleep(0.01)
            worker.stop()
            arena.lost(worker)
            wrong = (
                [] if worker.exit_code == -signal.SIGKILL else [str(worker.failure(f"exit code {worker.exit_code}"))]
            )
            arena.feed.pour(self._pace.burst // 4)
            reached = point
            if n + 1 < points:
                worker, point = self._launch_doomed(next(wanted))
            self._tally.note(f"{CRASH_POINT_WORKER}: {reached.seam}", wrong + arena.differences(), str(reached))
        arena.launch(**FORECASTING)
        arena.settle()
        self._tally.check("after crash points in workers", arena.forecast_differences())
        arena.end_workers()
        arena.launch()

    def _launch_doomed(self, point: seams.CrashPoint) -> tuple[LocalWorker, seams.CrashPoint]:
        return self._arena.launch_doomed(point, self._random.randrange(2**31)), point
