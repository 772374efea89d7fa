"""A backtest's lanes: those that a worker would run, in one process, fed from a recording instead of Kafka.

Agents, broker and model server are left out; lanes, feature store and scheduler are the worker's own, and so is the
clock: at each tick a lane applies exactly what a replay's tick would name, and what is owed then is forecast.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from feature_store.clock_ticks import DEFAULT_INTERVAL_MS, TickRules, ticks
from feature_store.lane_totals import FIRST_LANE
from feature_store.recording_files import Headers, Merged, Recording
from feature_store.store import FeatureStore
from forecaster.inputs import ModelInputs
from worker.aside import Message
from worker.backtest_alerts import as_alert
from worker.backtest_arrivals import ShopArrivals
from worker.errors import BacktestError
from worker.forecast_messages import Reply
from worker.global_calendar import CalendarLists
from worker.lane import Lane
from worker.recorded_snapshot import calendar_of
from worker.records import FetchedMessage, Records
from worker.rules import forecast_rules, lane_rules, watch_rules
from worker.scheduler import Finish, Scheduler
from worker.schemas import Alert
from worker.settings import Settings
from worker.silence_watch import SilenceWatch

# While nothing is forecast there is no need to stop at ticks; this many records of a lane are few enough for memory
# and enough for the cost of a step not to matter.
_MOST_WAITING = 10_000


@dataclass(frozen=True)
class LaneJob:
    """What one process of a backtest runs.

    recording: its folder.
    partitions: those whose lanes run here.
    settings: the worker's, on a Redis of the backtest's own.
    interval_ms: how far apart ticks are at most where records fall.
    from_ms, until_ms: forecasts are made in between; records before `from_ms` fill the features. None = all.
    """

    recording: Path
    partitions: tuple[int, ...]
    settings: Settings
    interval_ms: int = DEFAULT_INTERVAL_MS
    from_ms: int | None = None
    until_ms: int | None = None

    def tick_rules(self) -> TickRules:
        """When a replay under these settings would tick."""
        settings = self.settings
        return TickRules(
            settings.shop_calendar(), settings.forecast_freqs, settings.out_of_orderness_ms, self.interval_ms
        )

    def topics(self, recording: Recording) -> list[str]:
        """The input topics that are recorded."""
        return [topic for topic in recording.topics if topic in self.settings.input_topics]


class LanesRun(NamedTuple):
    """What came of a run; `set_aside` counts messages by the topic they would have gone to. `filling_s` are the seconds
    until the first tick at which something could be forecast. `alerts` are of streams; those of items are an
    evaluator's."""

    events: int
    ticks: int
    set_aside: dict[str, int]
    filling_s: float
    alerts: list[Alert]


class _Recorded(NamedTuple):
    """A recorded message, as far as dead letters ask for it."""

    timestamp_type: int
    timestamp_ms: int
    recorded_headers: Headers | None

    def timestamp(self) -> tuple[int, int]:
        return self.timestamp_type, self.timestamp_ms

    def headers(self) -> list[tuple[str, bytes]] | None:
        return [(name, value or b"") for name, value in self.recorded_headers] if self.recorded_headers else None


class _Messages(Sequence[FetchedMessage]):
    """Recorded messages, each made when it is asked for: few ever are."""

    def __init__(self, kinds: list[int], timestamps_ms: list[int], headers: list[Headers | None]) -> None:
        self._kinds, self._timestamps_ms, self._headers = kinds, timestamps_ms, headers

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, row: int) -> FetchedMessage: ...
    @overload
    def __getitem__(self, row: slice) -> _Messages: ...
    def __getitem__(self, row: int | slice) -> FetchedMessage | _Messages:
        if isinstance(row, slice):
            return _Messages(self._kinds[row], self._timestamps_ms[row], self._headers[row])
        return _Recorded(self._kinds[row], self._timestamps_ms[row], self._headers[row])


class _Waiting:
    """Records of one topic and partition that no tick has named yet. Their offsets count from 0, as in a replay onto
    new topics, so that positions and forecast_ids are those of the replay."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._next_offset = 0
        self._empty()

    def _empty(self) -> None:
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._kinds: list[int] = []
        self._timestamps_ms: list[int] = []
        self._headers: list[Headers | None] = []

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, rows: Merged, chosen: NDArray[np.intp]) -> None:
        """Rows of a stretch."""
        numbers = chosen.tolist()
        self._keys += [rows.keys[n] for n in numbers]
        self._values += [rows.values[n] for n in numbers]
        self._headers += [rows.headers[n] for n in numbers]
        self._kinds += rows.timestamp_types[chosen].tolist()
        self._timestamps_ms += rows.timestamps_ms[chosen].tolist()

    def take(self) -> Records:
        """All of them, as a lane takes them."""
        start, self._next_offset = self._next_offset, self._next_offset + len(self)
        messages = _Messages(self._kinds, self._timestamps_ms, self._headers)
        offsets = range(start, self._next_offset)
        records = Records(self.topic, start, 0, offsets, self._keys, self._values, messages)
        self._empty()
        return records


def _unasked(event_time_ms: int) -> None:
    """Nobody asks how far the lanes are."""


async def run_lanes(job: LaneJob, finish: Finish | None, reached: Callable[[int], None] = _unasked) -> LanesRun:
    """Run a recording through the lanes of some partitions. `finish` takes the forecasts owed; None = none are made.
    `reached` is told each event time in milliseconds before which all lanes have applied what was due.

    Raises:
        RecordingError: the recording can't be read.
        TooManyRejectsError: most of its records can't be used under these settings.
    """
    store = FeatureStore(**job.settings.store_options())
    try:
        return await _Run(job, store, finish, reached).run()
    finally:
        await store.close()


class _Run:
    def __init__(
        self, job: LaneJob, store: FeatureStore, finish: Finish | None, reached: Callable[[int], None]
    ) -> None:
        self._job, self._store, self._finish, self._reached = job, store, finish, reached
        self._recording = Recording.open(job.recording)
        self._set_aside: Counter[str] = Counter()
        self._events = self._ticks = 0
        self._began, self._filled = time.perf_counter(), False
        self._filling_s = 0.0
        self._waiting: dict[int, dict[str, _Waiting]] = {p: {} for p in job.partitions}
        self._waiting_records = 0
        self._alerts: list[Alert] = []
        self._arrivals = ShopArrivals(job.settings.input_topics)
        self._watch: SilenceWatch | None = None
        self._calendar = CalendarLists(job.settings.topic_calendar_global)
        self._read_calendar()

    async def run(self) -> LanesRun:
        settings, job = self._job.settings, self._job
        rules = lane_rules(settings, clock_topic=settings.topic_clock, send=self._count_aside)
        self._lanes = [Lane(self._store, await self._store.claim(p), rules) for p in job.partitions]
        self._scheduler = Scheduler(
            forecast_rules(
                settings,
                live=False,
                global_entries=self._calendar.entries_at,
                infer=_not_asked,
                model_is_away=lambda: False,
            ),
            self._finish,
        )
        self._listen_to_streams()
        # Who listens to the whole shop hears all of it, and ticks as a replay does.
        partitions = job.partitions if self._watch is None else None
        stretches = self._recording.merged(job.topics(self._recording), partitions=partitions, to_ms=job.until_ms)
        tick_ms: int | None = None
        for due in ticks(stretches, job.tick_rules(), job.until_ms):
            if due.rows is not None:
                self._arrivals.add(due.rows)
                self._wait(due.rows)
            tick_ms = due.tick_ms or tick_ms
            if due.tick_ms is not None:
                self._arrivals.tick(due.tick_ms)
            if due.tick_ms is not None and self._stops_at(due.tick_ms):
                await self._tick(due.tick_ms)
        if tick_ms is not None and self._waiting_records:
            await self._tick(tick_ms)
        return LanesRun(self._events, self._ticks, dict(self._set_aside), self._filling_s, self._alerts)

    def _forecasts_at(self, tick_ms: int) -> bool:
        return self._finish is not None and (self._job.from_ms is None or tick_ms >= self._job.from_ms)

    def _stops_at(self, tick_ms: int) -> bool:
        return self._forecasts_at(tick_ms) or self._waiting_records >= _MOST_WAITING * len(self._lanes)

    async def _tick(self, tick_ms: int) -> None:
        """Apply what is due in every lane, and have made what is owed; the lanes' round trips overlap."""
        self._ticks += 1
        if not self._filled:
            self._filled, self._filling_s = self._forecasts_at(tick_ms), time.perf_counter() - self._began
        await asyncio.gather(*(self._step(lane, tick_ms) for lane in self._lanes))
        self._waiting_records = 0
        self._reached(tick_ms)

    async def _step(self, lane: Lane, tick_ms: int) -> None:
        waiting = self._waiting[lane.partition]
        due = [waiting[topic].take() for topic in sorted(waiting) if len(waiting[topic])]
        self._events += sum(map(len, due))
        await lane.step(due, tick_ms)
        if self._forecasts_at(tick_ms):
            await self._scheduler.drain(lane)
        if lane.partition == FIRST_LANE:
            await self._listen(lane, tick_ms)
        if lane.closed:
            raise BacktestError(f"partition {lane.partition} was taken over: the backtest's Redis is used by others")

    def _wait(self, rows: Merged) -> None:
        lane = rows.topic.astype(np.int64) * self._job.settings.partition_count + rows.partition
        order = np.argsort(lane, kind="stable")
        starts = np.flatnonzero(np.diff(lane[order], prepend=-1))
        for chosen in np.split(order, starts[1:]):
            topic = rows.topics[int(rows.topic[chosen[0]])]
            by_topic = self._waiting.get(int(rows.partition[chosen[0]]))
            if by_topic is None:
                continue
            if topic not in by_topic:
                by_topic[topic] = _Waiting(topic)
            by_topic[topic].add(rows, chosen)
            self._waiting_records += len(chosen)

    def _read_calendar(self) -> None:
        """All of it: it tells by itself what was known when."""
        for record in calendar_of(self._recording):
            self._calendar.take(record.key, record.value, 0)
        topic = self._job.settings.topic_calendar_global
        if topic in self._recording.topics:
            for rows in self._recording.merged([topic]):
                for due_ms, key, value in zip(rows.due_ms.tolist(), rows.keys, rows.values, strict=True):
                    self._calendar.take(key or b"", value, due_ms)

    def _listen_to_streams(self) -> None:
        job = self._job
        rules = watch_rules(job.settings, self._calendar.entries_at)
        if rules is not None and FIRST_LANE in job.partitions and self._finish is not None:
            self._watch = SilenceWatch(rules, self._store.streams())

    async def _listen(self, lane: Lane, tick_ms: int) -> None:
        if self._watch is not None:
            if self._forecasts_at(tick_ms):
                await self._watch.look_replayed(lane, tick_ms, self._arrivals.newest_ms())
            await lane.pass_tick(self._ticks, tick_ms, self._arrivals.take())

    async def _count_aside(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        if topic == self._job.settings.topic_alerts:
            self._alerts += [as_alert(message.value) for message in messages]
            return
        self._set_aside[topic] += len(messages)


async def _not_asked(inputs: ModelInputs) -> Reply:
    raise AssertionError("a backtest's forecasts are finished by whoever collects them")
