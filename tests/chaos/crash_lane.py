"""One life of lanes that read from a list instead of Kafka: claim, count, forecast, until a crash point ends it.

Everything behind the transport is what runs in production: keeper, lanes, scheduler, store, a real Redis. What is
"sent" is appended to a file, which a SIGKILL leaves as it is.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from feature_store.store import FeatureStore
from tests.chaos import seams
from tests.chaos.asides import Aside
from worker.settings import Settings

Log = Mapping[tuple[str, int], Sequence[seams.Logged]]  # by topic and partition

_PAUSE_S = 0.001
_PATIENCE_S = 120.0  # a life takes a fraction of a second
_BATCH = 24  # records, so that some hundred of them pass every seam several times
FAILED = 3


class Outbox:
    """What was sent, in a file; a message in it has been acknowledged."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, messages: Sequence[Aside]) -> None:
        """All of them or, ended in between, none."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, b"".join(msgspec.json.encode(m) + b"\n" for m in messages))
        finally:
            os.close(descriptor)

    def take(self) -> list[Aside]:
        """What was sent since the last call, which is over and done with."""
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        self._path.unlink(missing_ok=True)
        return [msgspec.json.decode(line, type=Aside) for line in lines]


class ListReader:
    """Stands where the worker's consumer stands, and hands out batches of a log."""

    def __init__(self, log: Log, trap: seams.Trap) -> None:
        self._log, self._trap = log, trap
        self._epochs = dict.fromkeys(log, 0)
        self._next = dict.fromkeys(log, 0)
        self._applied = dict.fromkeys(log, 0)
        self._ahead: set[tuple[str, int]] = set()  # partitions of which a batch is on its way

    def epoch(self, topic: str, partition: int) -> int:
        """Seeks so far."""
        return self._epochs[topic, partition]

    def applied(self, topic: str, partition: int, position: int) -> None:
        """The lane has counted all below the position."""
        here = self._trap.enter("ack")
        self._applied[topic, partition] = position
        self._trap.leave(here)

    def taken(self, batch: Any) -> None:
        """The lane is through with the batch."""
        if batch.epoch == self._epochs[batch.topic, batch.partition]:
            self._ahead.discard((batch.topic, batch.partition))

    async def seek_to(self, topic: str, partition: int, position: int | None) -> None:
        """Read on from there."""
        self._ahead.discard((topic, partition))
        self._epochs[topic, partition] += 1
        self._next[topic, partition] = self._applied[topic, partition] = position or 0

    async def commit_now(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        """Nobody else wants the partitions."""
        return True

    @property
    def is_through(self) -> bool:
        """Whether every record has been counted."""
        return all(self._applied[place] == len(records) for place, records in self._log.items())

    def batches(self, topic: str) -> Iterator[Any]:
        """One batch of each partition of the topic that has more."""
        for place in self._log:
            start = self._next[place]
            records = self._log[place][start : start + _BATCH]
            if place[0] == topic and records and place not in self._ahead:
                self._ahead.add(place)
                self._next[place] += len(records)
                yield seams.batch(*place, self._epochs[place], records)


class Life:
    """Lanes of all partitions in this process."""

    def __init__(self, settings: Settings, log: Log, outbox: Outbox, trap: seams.Trap) -> None:
        self._settings, self._log, self._outbox, self._trap = settings, log, outbox, trap
        self._reader = ListReader(log, trap)
        self._store = FeatureStore(**settings.store_options())
        self._keeper = seams.lane_keeper(settings, self._store, self._reader, self._send, _crash)
        self._scheduler = seams.scheduler(settings)

    async def live(self) -> None:
        """Until all is counted and forecast, or the crash point is reached."""
        seams.arm_store(self._trap)
        await self._keeper.reassign(set(self._log))
        topics = sorted({topic for topic, _ in self._log})
        others = [asyncio.create_task(self._hand_out(topic)) for topic in topics]
        others.append(asyncio.create_task(self._forecast()))
        async with asyncio.timeout(_PATIENCE_S):
            while not (self._reader.is_through and self._owes_nothing()):
                await asyncio.sleep(_PAUSE_S)
                for task in others:
                    if task.done():
                        task.result()

    async def _hand_out(self, topic: str) -> None:
        while True:
            for batch in self._reader.batches(topic):
                here = self._trap.enter("fetch")
                self._keeper.offer(batch)
                self._trap.leave(here)
            await asyncio.sleep(_PAUSE_S)

    async def _forecast(self) -> None:
        while True:
            await self._scheduler.run_due([lane for lane in self._keeper.lanes.values() if not lane.closed])
            await asyncio.sleep(_PAUSE_S)

    def _owes_nothing(self) -> bool:
        return self._keeper.all_run and not any(seams.owed(x, self._settings) for x in self._keeper.lanes.values())

    async def _send(self, topic: str, partition: int, messages: Sequence[Any]) -> None:
        async def append() -> None:
            await asyncio.sleep(0)  # as with a broker, others go on meanwhile
            self._outbox.append([Aside(topic, partition, m.key, m.value, dict(m.headers)) for m in messages])

        await self._trap.step(seams.seam_of_send(topic), append)


async def _crash(error: BaseException) -> None:
    traceback.print_exception(error)
    os._exit(FAILED)


def live_in_child(settings: Settings, log: Log, outbox: Outbox, trap: seams.Trap) -> int:
    """Fork, live, and return how the child ended: the exit code, or minus the signal.

    For a process without threads: a forked child has only the thread that forked.
    """
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(Life(settings, log, outbox, trap).live())
        except BaseException as error:  # the child must end here, whatever happens
            traceback.print_exception(error)
            os._exit(FAILED)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
