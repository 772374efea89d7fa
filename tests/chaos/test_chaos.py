"""The short form: a few faults of each kind. `python -m tests.chaos` is the long one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import acts, faults
from tests.chaos.arena import Arena
from tests.chaos.faults import Faults, Pace
from tests.chaos.seams import PLACES
from tests.chaos.tally import CRASH_POINT_LANE, CRASH_POINT_WORKER, KILL, Tally

_SEED = 1


@pytest.fixture
def tally() -> Tally:
    return Tally(print)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """With a worker that has counted the opening."""
    with Arena(tmp_path_factory.mktemp("arena"), _SEED) as arena:
        _faults(arena, Tally(print)).begin()
        yield arena


def _faults(arena: Arena, tally: Tally) -> Faults:
    return Faults(arena, tally, _SEED, Pace(burst=1_500, per_s=300))


def test_killed_workers_count_each_event_once(arena: Arena, tally: Tally) -> None:
    _faults(arena, tally).kill_alone(2)
    assert tally.differences == []
    assert tally.inflicted(KILL) == 2


def test_a_zombie_changes_nothing_when_it_wakes(arena: Arena, tally: Tally) -> None:
    _faults(arena, tally).zombie()
    assert tally.differences == []
    assert tally.inflicted(faults.ZOMBIE) == 1


def test_workers_come_and_go_while_events_are_counted(arena: Arena, tally: Tally) -> None:
    _faults(arena, tally).scale()
    assert tally.differences == []
    assert tally.inflicted(faults.SCALE) == 1


def test_an_emptied_redis_is_rebuilt_by_a_worker_that_is_killed_meanwhile(arena: Arena, tally: Tally) -> None:
    _faults(arena, tally).empty_redis(kill_meanwhile=True)
    assert tally.differences == []
    assert tally.inflicted(faults.FLUSH) == 1


def test_workers_that_end_at_crash_points_lose_and_repeat_nothing(arena: Arena, tally: Tally) -> None:
    _faults(arena, tally).crash_workers(3)
    assert tally.differences == []
    assert tally.inflicted(CRASH_POINT_WORKER) == 3


def test_lanes_that_end_at_every_crash_point_lose_and_repeat_nothing(tally: Tally, tmp_path: Path) -> None:
    points = 2 * len(PLACES)
    acts.crash_points_in_lanes(tally, tmp_path, _SEED, points=points)
    assert tally.differences == []
    assert tally.inflicted(CRASH_POINT_LANE) == points
