"""The acts of a run: what is played on one arena, or on one Redis, from its beginning to its end."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.chaos.arena import Arena
from tests.chaos.faults import Faults, Pace
from tests.chaos.tally import CRASH_POINT_LANE, KILL, Tally
from worker.local_stack import LocalRedis

ROOT = Path(__file__).resolve().parents[2]


def kills_and_outages(tally: Tally, directory: Path, seed: int, *, events: int, kills: int) -> None:
    """All faults from outside, in a seeded order, kills before each of the others."""
    with Arena(directory, seed) as arena:
        faults, order = Faults(arena, tally, seed, _pace(events, kills)), random.Random(seed)
        faults.begin()
        faults.save_redis()
        plan = order.sample(others := _others(faults), len(others))
        for n, fault in enumerate(plan):
            due = kills * (n + 1) // len(plan) - tally.inflicted(KILL)
            if due > 0:
                order.choice((faults.kill_alone, faults.kill_among_three, faults.kill_both))(due)
            fault()
        arena.feed.pour(max(0, events - arena.feed.events))
        arena.settle()
        tally.check(f"all {arena.feed.events:,} events", arena.differences(), f"{arena.cells:,} cells")


def _others(faults: Faults) -> list[Callable[[], None]]:
    restarts = [partial(faults.restart_redis, kill=kill) for kill in (False, True)]
    losses = [partial(fault, kill_meanwhile=kill) for fault in (faults.empty_redis, faults.restore_redis)
              for kill in (False, True)]  # fmt: skip
    return [
        *3 * [faults.terminate],
        *4 * [faults.zombie],
        *3 * [faults.scale],
        faults.save_redis,
        *2 * restarts,
        *losses,
    ]


def _pace(events: int, kills: int) -> Pace:
    """So that most of the events are sent when all is over: about one burst a kill, and two for each other fault."""
    return Pace(burst=events // (kills + 40), per_s=400)


def crash_points_in_workers(tally: Tally, directory: Path, seed: int, *, points: int, kills: int) -> None:
    """Whole workers, forecasting: killed from outside, and ended at crash points."""
    with Arena(directory, seed) as arena:
        faults = Faults(arena, tally, seed, Pace(burst=2_000, per_s=500))
        faults.begin()
        if kills:
            faults.kill_while_forecasting(kills)
        faults.crash_workers(points)


def crash_points_in_lanes(tally: Tally, directory: Path, seed: int, *, points: int) -> None:
    """Lanes without Kafka, ended at crash points."""
    with LocalRedis(directory) as redis:
        options = ["--points", str(points), "--seed", str(seed), "--directory", str(directory)]
        command = [sys.executable, "-m", "tests.chaos.crash_points", redis.url, *options]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
            for line in program.stdout or ():
                _note_crash_point(tally, **json.loads(line))
        if program.returncode:
            tally.check("crash points in lanes", [f"the program ended with exit code {program.returncode}"])


def _note_crash_point(tally: Tally, seam: str, point: str, differences: list[str]) -> None:
    if seam:
        tally.note(f"{CRASH_POINT_LANE}: {seam}", differences, point)
    else:
        tally.check("at the ends of all lanes", differences)
