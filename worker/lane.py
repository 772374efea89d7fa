"""Lane: the one serial owner of a partition. All writes to its features and all forecasts of its items go through it.

Live, a lane applies each topic's batches as they come. In replay (`clock = event`) it holds records back until a tick
of the clock topic names them, applies exactly those in (timestamp, topic, offset) order, lets the forecasts that are
due be made, and only then goes on to the next tick.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import bucket_of
from feature_store.events import Decoded, DecodeLimits, Reason, Reject, decode, item_id_of
from feature_store.features import BucketRows, pool_product_rows
from feature_store.items import NO_PRODUCT_STATE, Item, ProductState
from feature_store.layout import MAX_KEYS, STORED_FREQS, ForecastSummary
from feature_store.plan import LaneView, Plan, Retention, plan_batch, split_late
from feature_store.store import Batch, Claim, Done, FeatureStore, Heads, SumOverflowError
from worker import metrics
from worker.held_records import ClosedError, HeldRecords
from worker.reject_watch import RejectWatch
from worker.schemas import ClockTick

logger = logging.getLogger(__name__)

_DAY_MS = 86_400_000
_IDLE_AFTER_MS = 2_000  # a live lane without records for this long is caught up, and follows the clock again
_MAX_READ_SERIES = MAX_KEYS - 2
_MOST_SUMS = MAX_KEYS - 16  # room for the keys that every script touches
_MOST_PRODUCTS = _MOST_SUMS // len(STORED_FREQS)


class GapError(Exception):
    """Records do not go on where the features end: the topic is to be read again from `position`."""

    def __init__(self, topic: str, position: int) -> None:
        super().__init__(f"{topic} does not go on at offset {position}")
        self.position = position


class Record(NamedTuple):
    """One Kafka record."""

    topic: str
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Message(NamedTuple):
    """One record to send."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


# topic, partition, messages -> returns when Kafka has acknowledged them all
Send = Callable[[str, int, Sequence[Message]], Awaitable[None]]


@dataclass(frozen=True)
class LaneRules:
    """What all lanes of a worker have in common."""

    sources: Mapping[str, str]  # source by input topic
    compacted: frozenset[str]  # topics in which offsets may be missing
    clock_topic: str  # empty = live
    retention: Retention
    forecast_freqs: tuple[str, ...]
    limits: DecodeLimits  # partition and max_event_time_ms are filled in batch by batch
    out_of_orderness_ms: int
    max_future_ms: int
    live_days: int
    max_reject_share: float
    reject_window: int
    send: Send
    now_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)


class LaneRead(NamedTuple):
    """What forecasts of some items start from."""

    cutoff_ms: int
    positions: dict[str, int]
    feature_age_ms: dict[str, int]
    subjects: list[tuple[Item, ProductState]]
    revisions: list[int]
    marks: list[int | None]
    rows: BucketRows


class Lane:
    """See the module. Raises FencedError and BehindError of the store to its caller, who claims anew."""

    def __init__(
        self,
        store: FeatureStore,
        claim: Claim,
        rules: LaneRules,
        *,
        on_tick: Callable[[Lane], Awaitable[None]] | None = None,
    ) -> None:
        self.partition = claim.partition
        self.claim = claim
        self._store = store
        self._rules = rules
        self._on_tick = on_tick
        self._lock = asyncio.Lock()
        self._items_of_product: dict[str, list[str]] = {}
        for item in claim.items.values():
            self._items_of_product.setdefault(item.product_id, []).append(item.item_id)
        self._held: HeldRecords[Record] = HeldRecords(rules.sources)
        self._gaps: dict[str, int] = {}  # by topic the position at which a gap was seen once
        self._stale: dict[str, tuple[dict[str, int], list[str]]] = {}
        self._reject_watch = RejectWatch(rules.max_reject_share, rules.reject_window)
        newest = claim.newest
        self._clock_ms = newest.get("clock", 0) if rules.clock_topic else max(newest.values(), default=0)
        self._last_record_ms = rules.now_ms()
        self.closed = False

    # -- records in -----------------------------------------------------------------------------------------------

    async def handle(self, records: Sequence[Record]) -> None:
        """Take one topic's batch in. Live: returns when it is in the features. Replay: it waits for its tick."""
        topic = records[0].topic
        started = time.perf_counter()
        if self._rules.clock_topic:
            if topic == self._rules.clock_topic:
                async with self._lock:
                    for record in records:
                        self._raise_if_closed()
                        await self._tick(record)
            else:
                await self._hold(topic, records)
            return
        async with self._lock:
            self._raise_if_closed()
            for step in _steps(self._not_yet_applied(records)):
                await self._apply(step, self._rules.now_ms())
        metrics.BATCH_SECONDS.observe(time.perf_counter() - started)

    async def _hold(self, topic: str, records: Sequence[Record]) -> None:
        position = self._held.next_offset(topic) or self.claim.positions.get(topic, 0)
        await self._held.hold(topic, self._from(topic, position, records))

    def close(self) -> None:
        """Let whoever waits inside the lane go. What is under way in Redis ends by itself; a new owner fences it."""
        self.closed = True
        self._held.close()

    def _raise_if_closed(self) -> None:
        if self.closed:
            raise ClosedError(f"partition {self.partition} is no longer run here")

    def _not_yet_applied(self, records: Sequence[Record]) -> list[Record]:
        topic = records[0].topic
        return self._from(topic, self.claim.positions.get(topic, 0), records)

    def _from(self, topic: str, position: int, records: Sequence[Record]) -> list[Record]:
        """The records from `position` on. Where none was counted yet or compaction left holes, they may start later."""
        fresh = [record for record in records if record.offset >= position]
        may_begin_later = position == 0 or topic in self._rules.compacted
        if fresh and fresh[0].offset > position and not may_begin_later:
            self._judge_gap(topic, position, fresh[0].offset)
        return fresh

    def _judge_gap(self, topic: str, position: int, found: int) -> None:
        """Seen once, a gap may be the reader's fault: have it read again. Seen twice, Kafka no longer holds them."""
        if self._gaps.get(topic) != position:
            self._gaps[topic] = position
            raise GapError(topic, position)
        metrics.LOST.labels(self._rules.sources[topic]).inc(found - position)
        logger.error(
            "%s partition %d: offsets %d to %d are no longer held by Kafka; their events are not in the features",
            *(topic, self.partition, position, found - 1),
        )

    async def _tick(self, record: Record) -> None:
        """One tick of a replay's clock.

        1. Wait for the records it names.
        2. Apply them in (timestamp, topic, offset) order, in one step where the limits of a script allow.
        3. Move the clock, have the forecasts that are due made.
        4. Move past the tick itself.
        """
        clock_topic = self._rules.clock_topic
        if record.offset < self.claim.positions.get(clock_topic, 0) or record.value is None:
            return
        tick = msgspec.json.decode(record.value, type=ClockTick)
        due: list[tuple[int, str, int, Record]] = []
        for topic, next_offset in tick.next_offsets.items():  # 1
            latest_ms = 0  # of the topic so far: a record that is out of order must not overtake those before it
            for held in await self._held.take(topic, self.claim.positions.get(topic, 0), next_offset):
                latest_ms = max(latest_ms, held.timestamp_ms)
                due.append((latest_ms, topic, held.offset, held))
        due.sort(key=lambda entry: entry[:3])  # 2
        await self._apply([held for _, _, _, held in due], tick.event_time)
        self._clock_ms = max(self._clock_ms, tick.event_time)  # 3
        if self._on_tick is not None:
            await self._on_tick(self)
        before = self.claim.positions.get(clock_topic, -1)  # 4
        step = Batch({clock_topic: (before, record.offset + 1)}, {"clock": tick.event_time}, {}, {}, [], [])
        await self._store.apply(self.claim, step)
        self.claim.positions[clock_topic] = record.offset + 1

    async def _apply(self, records: Sequence[Record], now_ms: int) -> None:
        """Records to features, all or nothing. Events far ahead of `now_ms` are rejected.

        1. Decode; part the late from the rest.
        2. Plan; halve the batch if one script could not touch all its keys.
        3. Have Kafka acknowledge dead letters and late events, before any position moves past them.
        4. Apply in Redis, then to the copy in memory. Halve the batch where a sum would no longer be exact, until the
           record that causes it is alone, and reject that one.
        """
        if not records:
            return
        decoded = self._decode(records, now_ms)  # 1
        watermark_ms = self.watermark_ms()
        events, late = split_late(decoded.events, self._rules.retention, watermark_ms)
        decoded = decoded._replace(events=events)
        plan = plan_batch(decoded, self._view(), self._rules.retention, watermark_ms)  # 2
        if len(plan.sums) > _MOST_SUMS:
            await self._apply_halves(records, now_ms)
            return
        await self._send_aside(records, decoded.rejects, late)  # 3
        batch = self._batch(records, decoded, plan, now_ms)
        try:
            sequence = await self._store.apply(self.claim, batch)  # 4
        except SumOverflowError as error:
            if len(records) > 1:
                await self._apply_halves(records, now_ms)
                return
            decoded = decoded._replace(rejects=[Reject(0, Reason.OUT_OF_RANGE, str(error))])
            await self._send_aside(records, decoded.rejects, late)
            batch = Batch(batch.positions, {}, {}, {}, [], [])
            sequence = await self._store.apply(self.claim, batch)
        self._remember(batch, sequence)
        self._count(records, decoded.rejects, late)

    async def _apply_halves(self, records: Sequence[Record], now_ms: int) -> None:
        half = len(records) // 2
        await self._apply(records[:half], now_ms)
        await self._apply(records[half:], now_ms)

    def _decode(self, records: Sequence[Record], now_ms: int) -> Decoded:
        limits = dataclasses.replace(
            self._rules.limits, partition=self.partition, max_event_time_ms=now_ms + self._rules.max_future_ms
        )
        sources = [self._rules.sources[record.topic] for record in records]
        return decode(sources, [r.value for r in records], [r.key for r in records], limits)

    async def _send_aside(self, records: Sequence[Record], rejects: Sequence[Reject], late: NDArray[np.int64]) -> None:
        """Dead letters and late events, as they came, with headers that say where from and why."""
        aside = [(reject.row, "dlq", reject.reason.value, reject.detail) for reject in rejects]
        aside += [(row, "late", "late", "its day is older than what is retained") for row in late.tolist()]
        letters: dict[str, list[Message]] = {}
        for row, kind, reason, detail in aside:
            record = records[row]
            headers = [
                *record.headers,
                ("shelfcast.topic", record.topic.encode()),
                ("shelfcast.partition", str(self.partition).encode()),
                ("shelfcast.offset", str(record.offset).encode()),
                ("shelfcast.reason", reason.encode()),
                ("shelfcast.detail", detail.encode()),
            ]
            letters.setdefault(f"{record.topic}.{kind}", []).append(Message(record.key, record.value, headers))
        for topic, messages in letters.items():
            await self._rules.send(topic, self.partition, messages)

    def _batch(self, records: Sequence[Record], decoded: Decoded, plan: Plan, now_ms: int) -> Batch:
        positions: dict[str, tuple[int, int]] = {}
        for record in records:
            before = self.claim.positions.get(record.topic, -1)
            positions[record.topic] = (before, max(record.offset + 1, positions.get(record.topic, (0, 0))[1]))
        newest: dict[str, int] = {}
        events = decoded.events
        for row, event_time in zip(events.row.tolist(), events.event_time_ms.tolist(), strict=True):
            source = self._rules.sources[records[row].topic]
            newest[source] = max(newest.get(source, self.claim.newest.get(source, 0)), min(event_time, now_ms))
        return Batch(positions, newest, plan.items, plan.products, plan.touched, plan.sums)

    def _remember(self, batch: Batch, sequence: int) -> None:
        claim = self.claim
        claim.positions.update({topic: after for topic, (_, after) in batch.positions.items()})
        claim.newest.update(batch.newest)
        for item in batch.items.values():
            if item.item_id not in claim.items:
                self._items_of_product.setdefault(item.product_id, []).append(item.item_id)
        claim.items.update(batch.items)
        claim.products.update(batch.products)
        for freq in self._rules.forecast_freqs:
            claim.dirty[freq].update(dict.fromkeys(batch.dirty, sequence))
        self._last_record_ms = self._rules.now_ms()
        if not self._rules.clock_topic:
            self._clock_ms = max(self._clock_ms, *batch.newest.values(), 0)

    def _count(self, records: Sequence[Record], rejects: Sequence[Reject], late: NDArray[np.int64]) -> None:
        """Metrics, and the loud stop when most records can't be used."""
        for reject in rejects:
            source = self._rules.sources[records[reject.row].topic]
            metrics.REJECTS.labels(source, reject.reason.value).inc()
        for row in late.tolist():
            metrics.LATE.labels(self._rules.sources[records[row].topic]).inc()
        for source in {self._rules.sources[record.topic] for record in records}:
            metrics.EVENTS.labels(source).inc(sum(self._rules.sources[r.topic] == source for r in records))
        where = f"{records[0].topic} partition {self.partition}"
        self._reject_watch.note(where, len(records), [reject.reason.value for reject in rejects])

    # -- forecasts out --------------------------------------------------------------------------------------------

    def clock_ms(self) -> int:
        """Event time this lane has reached: the replay's clock, or live the newest event while records flow and the
        wall clock while none do. Never goes back."""
        if not self._rules.clock_topic:
            now_ms = self._rules.now_ms()
            if now_ms - self._last_record_ms >= _IDLE_AFTER_MS:
                self._clock_ms = max(self._clock_ms, now_ms)
        return self._clock_ms

    def watermark_ms(self) -> int | None:
        """Event time before which nothing more is expected; None before the first event."""
        clock_ms = self.clock_ms()
        return clock_ms - self._rules.out_of_orderness_ms if clock_ms else None

    def touched(self, freq: str) -> list[str]:
        """Items whose forecast is owed since an event touched them, oldest first."""
        return list(self.claim.dirty[freq])

    def stale(self, freq: str) -> list[str]:
        """Live items whose last forecast was made in a bucket that has closed since."""
        watermark_ms = self.watermark_ms()
        if watermark_ms is None:
            return []
        running = {zone: int(bucket_of(freq, np.array([watermark_ms]), zone)[0]) for zone in self._zones()}
        heads, zone = self.claim.heads[freq], self._rules.retention.calendar.zone
        seen_running, candidates = self._stale.get(freq, ({}, []))
        if running != seen_running:  # a bucket has closed: look at all items once, and from then on at what is left
            oldest_ms = watermark_ms - self._rules.live_days * _DAY_MS
            candidates = [item_id for item_id in heads if self.claim.items[item_id].last_event_ms >= oldest_ms]
        left = [
            item_id
            for item_id in candidates
            if item_id in heads and heads[item_id].running_bucket < running[zone(self.claim.items[item_id].location_id)]
        ]
        self._stale[freq] = (running, left)
        return left

    def is_delisted(self, item_id: str) -> bool:
        """Whether the item's product has been withdrawn."""
        return self.claim.products.get(self.claim.items[item_id].product_id, NO_PRODUCT_STATE).delisted

    async def read(self, freq: str, stored: str, item_ids: Sequence[str]) -> LaneRead:
        """Everything forecasts of the items start from, in one round trip for up to about a thousand items."""
        items = [self.claim.items[item_id] for item_id in item_ids]
        product_series = [(i, item_id_of(item.product_id, "")) for i, item in enumerate(items) if item.location_id]
        series = [(stored, item_id) for item_id in item_ids] + [(stored, name) for _, name in product_series]
        if len(series) > _MAX_READ_SERIES:
            raise ValueError(f"{len(series)} series in one read, at most {_MAX_READ_SERIES}")
        found = await self._store.read(self.claim, freq, item_ids, series)
        # The newest event that the script saw may have been applied a moment after the lane's own clock was set.
        cutoff_ms = self._clock_ms if self._rules.clock_topic else max(self.clock_ms(), *found.newest.values())
        reader = np.array([*range(len(items)), *(i for i, _ in product_series)], dtype=np.int64)
        is_own = found.rows.item < len(items)
        rows = BucketRows(reader[found.rows.item], found.rows.bucket, found.rows.values)
        return LaneRead(
            cutoff_ms=cutoff_ms,
            positions={topic: p for topic, p in found.positions.items() if topic in self._rules.sources},
            feature_age_ms={s: max(cutoff_ms - ms, 0) for s, ms in found.newest.items() if s != "clock"},
            subjects=[(item, self.claim.products.get(item.product_id, NO_PRODUCT_STATE)) for item in items],
            revisions=[self.claim.heads[freq].get(item_id, Heads(0, 0)).revision for item_id in item_ids],
            marks=found.marks,
            rows=pool_product_rows(_where(rows, is_own), _where(rows, ~is_own), [bool(i.location_id) for i in items]),
        )

    async def send_forecasts(self, topic: str, freq: str, messages: Sequence[tuple[str, bytes | None]]) -> None:
        """Send forecasts (item_id, message or None for a tombstone); returns when Kafka has acknowledged all."""
        keyed = [Message(f"{item_id}|{freq}".encode(), value) for item_id, value in messages]
        if keyed:
            await self._rules.send(topic, self.partition, keyed)

    async def forecasts_done(self, freq: str, done: Sequence[tuple[str, int | None, ForecastSummary | None]]) -> None:
        """Store acknowledged forecasts and clear what is no longer owed."""
        await self._store.forecasts_done(self.claim, freq, [Done(*entry) for entry in done])
        dirty, heads = self.claim.dirty[freq], self.claim.heads[freq]
        for item_id, mark, summary in done:
            if mark is not None and dirty.get(item_id) == mark:
                del dirty[item_id]
            if summary is None:
                heads.pop(item_id, None)
            else:
                heads[item_id] = Heads(summary.revision, summary.running_bucket)

    def _view(self) -> LaneView:
        return LaneView(self.claim.items, self._items_of_product, self.claim.products)

    def _zones(self) -> set[str]:
        calendar = self._rules.retention.calendar
        return {calendar.time_zone, *calendar.by_location.values()}


def _steps(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Cut records, before they are decoded, where one script could not touch the keys of all their products: a batch
    that is found too large afterwards is decoded twice."""
    start, products = 0, set[bytes | None]()
    for i, record in enumerate(records):
        if record.key not in products and len(products) == _MOST_PRODUCTS:
            yield records[start:i]
            start, products = i, set()
        products.add(record.key)
    if start < len(records):
        yield records[start:]


def _where(rows: BucketRows, keep: NDArray[np.bool_]) -> BucketRows:
    return BucketRows(rows.item[keep], rows.bucket[keep], rows.values[keep])
