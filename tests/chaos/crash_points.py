"""Crash points in lanes: `python -m tests.chaos.crash_points REDIS_URL --points 40 --seed 1 --directory DIR`.

Lives of lanes (crash_lane.py), each ended at a crash point; the next one goes on from what stands in Redis. After each
end Redis and everything sent are compared with the oracle at the positions that Redis holds. Prints one JSON object a
crash point: {"seam", "point", "differences"}. A program of its own, since it forks and must not have threads.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click

from feature_store.store import FeatureStore
from tests.chaos import seams
from tests.chaos.checks import Forecasts, Letters, compare_cells, read_stored
from tests.chaos.crash_lane import Outbox, live_in_child
from tests.chaos.feed import NUMBER_HEADER
from tests.chaos.oracle import Oracle
from tests.chaos.traffic import CURRENCY, MAX_MESSAGE_BYTES, SOURCES, TIME_ZONES, Sent, Traffic
from worker.settings import Settings, load_settings

_PARTITIONS, _PRODUCTS = 2, 24
_POINTS_A_STORY = 25  # then a new namespace: what is recomputed at each point stays small
_RECORDS = 90  # new ones for each life
_MOST_LIVES = 30  # for one crash point: it may lie at a passage that a life does not come to


class Story:
    """A namespace, and the lives that are led in it one after the other."""

    def __init__(self, redis_url: str, name: str, seed: int, directory: Path) -> None:
        self.settings = _settings(redis_url, name)
        self._random = random.Random(seed)
        self._topics = {source: getattr(self.settings, f"topic_{source}") for source in SOURCES}
        self._partition_of = seams.partition_of(_PARTITIONS)
        self._traffic = Traffic(seed, _PARTITIONS, self._partition_of, _now_ms, _PRODUCTS)
        self._oracle = Oracle()
        self._log: dict[tuple[str, int], list[seams.Logged]] = {
            (topic, p): [] for topic in self._topics.values() for p in range(_PARTITIONS)
        }
        self._outbox = Outbox(directory / f"{name}.outbox")
        self._letters = Letters(self._topics, self._oracle)
        self._forecasts = Forecasts(self._topics, self.settings.forecast_freqs)

    def begin(self) -> None:
        """An order of every item, counted: from now on every lane has a clock, and knows late from early."""
        self._write(self._traffic.opening())
        self._live(None)

    def crash(self, point: seams.CrashPoint) -> list[str]:
        """Lead lives until one ends at the crash point, and compare."""
        for _ in range(_MOST_LIVES):
            self._write(self._traffic.take(_RECORDS))
            if self._live(point):
                return self.differences()
        raise AssertionError(f"{point} was not reached in {_MOST_LIVES} lives")

    def end(self) -> list[str]:
        """Lead a last life, undisturbed, and compare at the ends."""
        self._live(None)
        return self.differences(at_the_ends=True)

    def _write(self, records: list[Sent]) -> None:
        for record in records:
            headers = ((NUMBER_HEADER, str(record.number).encode()),) if record.number else ()
            offset = self._oracle.add(record)
            place = self._topics[record.source], record.partition
            self._log[place].append(seams.Logged(offset, record.key, record.value, headers))

    def _live(self, point: seams.CrashPoint | None) -> bool:
        """Whether the life ended at the point."""
        code = live_in_child(self.settings, self._log, self._outbox, seams.Trap(point, self._random))
        assert code in (0, -9), f"a life failed with exit code {code}"
        return code != 0

    def differences(self, *, at_the_ends: bool = False) -> list[str]:
        """What is not as it should be."""
        return asyncio.run(self._compare(at_the_ends))

    async def _compare(self, at_the_ends: bool) -> list[str]:
        store = FeatureStore(**self.settings.store_options())
        try:
            stored = await read_stored(store, self._topics, _PARTITIONS, self._traffic.items, self._partition_of)
            owed: dict[str, dict[str, int]] = {freq: {} for freq in self.settings.forecast_freqs}
            for partition in range(_PARTITIONS):
                for freq, items in (await seams.marks(store, partition)).items():
                    owed[freq] |= items
        finally:
            await store.close()
        sent = self._outbox.take()
        self._letters.note(sent)
        self._forecasts.note(sent)
        expected = self._oracle.cells_at(stored.positions)
        out = compare_cells(expected, stored.cells, self.settings.retention)
        out += self._letters.differences(stored.positions)
        out += self._forecasts.missing(self._oracle.last_touch(stored.positions), owed)
        out += self._forecasts.unsent(stored)
        if at_the_ends:
            ends = self._oracle.ends()
            out += [f"{place}: at {stored.positions.get(place)} of {end}" for place, end in ends.items()
                    if stored.positions.get(place) != end]  # fmt: skip
            out += self._forecasts.wrong(expected)
        return out


def stories(
    redis_url: str, points: int, seed: int, directory: Path
) -> Iterator[tuple[seams.CrashPoint | None, list[str]]]:
    """Yield each crash point reached with the differences found after it; None is the undisturbed end of a story."""
    wanted = seams.crash_points(random.Random(seed))
    for n, first in enumerate(range(0, points, _POINTS_A_STORY)):
        story = Story(redis_url, f"crash{seed}-{n}", seed + n, directory)
        story.begin()
        for point in islice(wanted, min(_POINTS_A_STORY, points - first)):
            yield point, story.crash(point)
        yield None, story.end()


def _settings(redis_url: str, namespace: str) -> Settings:
    zones = ",".join(f"{location}={zone}" for location, zone in TIME_ZONES.items() if location)
    return load_settings({
        "SHELFCAST_REDIS_URL": redis_url,
        "SHELFCAST_NAMESPACE": namespace,
        "SHELFCAST_PARTITION_COUNT": str(_PARTITIONS),
        "SHELFCAST_CURRENCY": CURRENCY,
        "SHELFCAST_TIME_ZONE": TIME_ZONES[""],
        "SHELFCAST_LOCATION_TIME_ZONES": zones,
        "SHELFCAST_MAX_MESSAGE_BYTES": str(MAX_MESSAGE_BYTES),
    })  # fmt: skip


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@click.command()
@click.argument("redis_url")
@click.option("--points", default=40, help="Crash points to be reached.")
@click.option("--seed", default=1)
@click.option("--directory", type=click.Path(path_type=Path), required=True, help="For the lists of what was sent.")
def main(redis_url: str, points: int, seed: int, directory: Path) -> None:
    """End lanes at crash points, and compare."""
    for point, differences in stories(redis_url, points, seed, directory):
        names = {"seam": point.seam, "point": str(point)} if point else {"seam": "", "point": ""}
        click.echo(json.dumps({**names, "differences": differences}))


if __name__ == "__main__":
    main()
