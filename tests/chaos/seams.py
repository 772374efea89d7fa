"""Where a worker's steps meet: the one file that knows names from inside the worker.

`arm` makes this process end itself, as `kill -9` would, at the n-th passage of a seam. The functions at the seams are
wrapped here; the code that runs in production has no hooks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import re
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from feature_store.store import FeatureStore
from worker.app import Worker
from worker.aside import Message
from worker.errors import ForecastUnavailableError
from worker.lane import Lane
from worker.lane_keeper import LaneKeeper
from worker.record_fetcher import RecordBatch
from worker.records import Records
from worker.rules import forecast_rules, lane_rules
from worker.scheduler import Scheduler
from worker.settings import Settings
from worker.transport import BatchConsumer, murmur2_partition

# The steps of a batch and of a forecast, in their order.
SEAMS = ("claim", "fetch", "dead letter", "script", "ack", "forecast sent", "forecast stored")
ALERT_SENT = "alert sent"  # seldom: no crash point that all traffic comes to
MOMENTS = ("before", "during", "after")
# Every place where a process can be ended. Only what asks a server lasts long enough to be ended meanwhile.
PLACES = tuple((s, m) for s in SEAMS for m in MOMENTS if m != "during" or s not in ("fetch", "ack"))
_MOST_PASSAGES = {"claim": 2, "dead letter": 2, "script": 4, "forecast sent": 4, "forecast stored": 4}
_UNDER_WAY_S = 0.003  # "during" ends the process within this time of the step's beginning

Send = Callable[[str, int, Sequence[Message]], Awaitable[None]]


class CrashPoint(NamedTuple):
    """Ends a process at a passage of a seam, counted from 1."""

    seam: str
    moment: str
    passage: int

    def __str__(self) -> str:
        return f"{self.moment} {self.seam}, passage {self.passage}"


def crash_points(random_: random.Random) -> Iterator[CrashPoint]:
    """All places again and again, each time in another order and at another passage."""
    while True:
        for seam, moment in random_.sample(PLACES, len(PLACES)):
            yield CrashPoint(seam, moment, random_.randint(1, _MOST_PASSAGES.get(seam, 8)))


class Trap:
    """Ends the process at its crash point, if there is one. Each step of the worker passes `step` of its seam."""

    def __init__(self, point: CrashPoint | None, random_: random.Random) -> None:
        self._point, self._random, self._passages = point, random_, 0

    def enter(self, seam: str, *, waits: bool = False) -> bool:
        """A step begins; returns whether its end is the crash point, or lies behind it. `waits`: it asks a server, and
        can be ended while it does; of any other step "during" is its beginning."""
        if self._point is None or seam != self._point.seam:
            return False
        self._passages += 1
        here = self._passages >= self._point.passage  # one whose step is refused has no end; the next one's will do
        if here and (self._point.moment == "before" or (self._point.moment == "during" and not waits)):
            self._end()
        if here and self._point.moment == "during":  # somewhere between the request's first byte and the reply
            asyncio.get_running_loop().call_later(self._random.random() * _UNDER_WAY_S, self._end)
        return here

    def leave(self, here: bool) -> None:
        """The step has ended."""
        if here:
            self._end()

    def _end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def step(self, seam: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Do a step that waits for a server."""
        here = self.enter(seam, waits=True)
        reply = await call()
        self.leave(here)
        return reply


def arm_store(trap: Trap) -> None:
    """The steps that go to Redis."""
    for name, seam in (("claim", "claim"), ("apply", "script"), ("forecasts_done", "forecast stored")):
        _wrap(FeatureStore, name, trap, lambda *_, seam=seam: seam)


def arm_worker(trap: Trap) -> None:
    """All steps of a whole worker."""
    arm_store(trap)
    _wrap(Worker, "_send", trap, lambda _, topic, *__: seam_of_send(topic))
    applied, arrive = BatchConsumer.applied, BatchConsumer._arrive

    def trapped_applied(self: Any, *arguments: Any) -> None:
        here = trap.enter("ack")
        applied(self, *arguments)
        trap.leave(here)

    def trapped_arrive(self: Any, batches: Sequence[Any]) -> None:
        here = trap.enter("fetch")
        arrive(self, batches)  # on their way to the lanes from here on
        trap.leave(here)

    for name, trapped in (("applied", trapped_applied), ("_arrive", trapped_arrive)):
        setattr(BatchConsumer, name, trapped)


def seam_of_send(topic: str) -> str:
    """Which step it is to send to a topic."""
    if topic.endswith(".alerts.v1"):
        return ALERT_SENT
    return "dead letter" if topic.endswith((".dlq", ".late")) else "forecast sent"


def _wrap(owner: type, name: str, trap: Trap, seam_of: Callable[..., str]) -> None:
    original = getattr(owner, name)

    async def trapped(*arguments: Any, **options: Any) -> Any:
        return await trap.step(seam_of(*arguments), lambda: original(*arguments, **options))

    setattr(owner, name, trapped)


def claims(log: str) -> dict[int, str]:
    """By partition, when the worker that wrote the log claimed it last: as the line begins, which sorts by time."""
    found = re.finditer(r"^(\[\S+ \S+\]) .* partition (\d+): \w+, reading on from ", log, re.MULTILINE)
    return {int(claim[2]): claim[1] for claim in found}


# -- a lane without Kafka ---------------------------------------------------------------------------------------------


def partition_of(partition_count: int) -> Callable[[str], int]:
    """Where products belong."""
    return lambda product_id: murmur2_partition(product_id, partition_count)


class Logged(NamedTuple):
    """A record of the list that stands in for Kafka."""

    offset: int
    key: bytes | None
    value: bytes | None
    own_headers: tuple[tuple[str, bytes], ...]

    def timestamp(self) -> tuple[int, int]:
        return 1, 0

    def headers(self) -> list[tuple[str, bytes]] | None:
        return list(self.own_headers)


def batch(topic: str, partition: int, epoch: int, records: Sequence[Logged]) -> Any:
    """A batch as the transport hands it out."""
    columns = ([r.offset for r in records], [r.key for r in records], [r.value for r in records], records)
    return RecordBatch(topic, partition, epoch, Records(topic, records[0].offset, 0, *columns))


def lane_keeper(
    settings: Settings, store: FeatureStore, reader: Any, send: Send, crash: Callable[[BaseException], Awaitable[None]]
) -> LaneKeeper:
    """The keeper of live lanes, as a worker has it, of counted topics only."""
    sources = {topic: s for topic, s in settings.input_topics.items() if s in ("orders", "clicks", "reviews")}
    rules = dataclasses.replace(lane_rules(settings, clock_topic="", send=send), sources=sources)
    return LaneKeeper(store, reader, rules, topics=tuple(sources), on_tick=None, crash=crash)


def scheduler(settings: Settings) -> Scheduler:
    """Makes forecasts without a model server: by the baseline."""
    rules = forecast_rules(
        settings, live=False, global_entries=lambda _: (), infer=_no_model, model_is_away=lambda: True
    )
    return Scheduler(rules)


async def _no_model(_: Any) -> Any:
    raise ForecastUnavailableError("no model server in this test")


def owed(lane: Lane, settings: Settings) -> int:
    """Forecasts that a lane still owes to touched items."""
    return sum(lane.owed(freq) for freq in settings.forecast_freqs)


async def marks(store: FeatureStore, partition: int) -> Mapping[str, Mapping[str, int]]:
    """Forecasts owed as they stand in Redis: by frequency and item_id. Fences whoever runs the partition."""
    return (await store.claim(partition)).dirty
