"""Lane: the one serial owner of a partition. All writes to its features and all forecasts of its items go through it.

Live, a lane applies each topic's records as they come. In replay (`clock = event`) it holds records back until a tick
of the clock topic names them, applies exactly those, each topic's in offset order, lets the forecasts that are due be
made, and only then goes on to the next tick.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.decoding import Decoded, Reason, Reject, decode, join_decoded
from feature_store.duplicates import drop_repeats, ids_to_remember, without_ids
from feature_store.events import EventBatch
from feature_store.lane_totals import FIRST_LANE, FREQ, HOUR_MS, SHOP_SERIES, arrivals, with_totals
from feature_store.layout import MAX_KEYS, EventIds
from feature_store.plan import LaneView, Plan, plan_batch, split_late, watermarks
from feature_store.store import Batch, Claim, DuplicateEventsError, FeatureStore, FencedError, SumOverflowError
from worker import metrics
from worker.aside import letters
from worker.held_records import ClosedError, HeldRecords
from worker.lane_state import LaneRules, LaneState
from worker.records import Records
from worker.reject_watch import RejectWatch
from worker.schemas import ClockTick

logger = logging.getLogger(__name__)

_OTHER_KEYS = 64  # room for the keys that a script touches beside those of series
_MOST_SERIES = MAX_KEYS - _OTHER_KEYS


class GapError(Exception):
    """Records do not go on where the features end: the topic is to be read again from `position`."""

    def __init__(self, topic: str, position: int) -> None:
        super().__init__(f"{topic} does not go on at offset {position}")
        self.topic = topic
        self.position = position


@dataclass
class _Part:
    """Records of one topic in a step, and what became of them."""

    records: Records
    source: str
    decoded: Decoded
    late_rows: NDArray[np.int64]
    counted_before: int = 0
    duplicates: int = 0

    def keep(self, events: EventBatch) -> None:
        """Go on without the events that are missing here: they were counted before."""
        self.duplicates += len(self.decoded.events) - len(events)
        self.decoded = self.decoded._replace(events=events)


class Lane(LaneState):
    """See the module. Raises FencedError and BehindError of the store to its caller, who claims anew."""

    def __init__(
        self,
        store: FeatureStore,
        claim: Claim,
        rules: LaneRules,
        *,
        on_tick: Callable[[Lane], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(store, claim, rules)
        self._on_tick = on_tick
        self._items_of_product: dict[str, list[str]] = {}
        for item in claim.items.values():
            self._items_of_product.setdefault(item.product_id, []).append(item.item_id)
        self._held = HeldRecords(rules.sources)
        self._told_before: set[str] = set()
        self.arrived: Mapping[str, int] | None = None  # in the whole shop, up to the last step of a replay
        self._reject_watch = RejectWatch(rules.max_reject_share, rules.reject_window)

    async def handle(self, *topics: Records) -> None:
        """Take records in, one topic's each. Live: returns when they are in the features. Replay: they wait for a tick.

        Raises:
            GapError: the reader has left records of a topic out; nothing was applied.
        """
        started = time.perf_counter()
        if self._rules.clock_topic:
            for records in topics:
                await self._hold(records)
            return
        async with self._lock:
            self._raise_if_closed()
            positions = self.claim.positions
            fresh = [self._not_yet_seen(records, positions.get(records.topic, 0)) for records in topics]
            for step in _steps([records for records in fresh if len(records)]):
                await self._apply(step, self._rules.now_ms())
        metrics.BATCH_SECONDS.observe(time.perf_counter() - started)

    async def _hold(self, records: Records) -> None:
        if records.topic == self._rules.clock_topic:
            async with self._lock:
                for offset, value in zip(records.offsets, records.values, strict=True):
                    self._raise_if_closed()
                    await self._tick(offset, value)
        else:
            position = self._held.next_offset(records.topic) or self.claim.positions.get(records.topic, 0)
            await self._held.hold(self._not_yet_seen(records, position))

    def close(self) -> None:
        """Let whoever waits inside the lane go. What is under way in Redis ends by itself; a new owner fences it."""
        self.closed = True
        self._held.close()

    def _raise_if_closed(self) -> None:
        if self._held.is_closed:
            raise ClosedError(f"partition {self.partition} is no longer run here")
        if self.closed:
            raise FencedError(
                f"partition {self.partition} has another owner, or its features do not stand where they did"
            )

    def _not_yet_seen(self, records: Records, position: int) -> Records:
        """The records from `position` on. Reports offsets that Kafka has deleted before they were counted.

        Raises:
            GapError: the reader has left records out.
        """
        fresh = records.from_offset(position)
        if position and fresh.start > position:
            raise GapError(records.topic, position)
        lost = min(records.log_start, fresh.offsets[0]) - position if position and len(fresh) else 0
        if lost > 0:
            metrics.LOST.labels(self._rules.sources[records.topic]).inc(lost)
            logger.error(
                "%s partition %d: offsets %d to %d are no longer held by Kafka; their events are not in the features",
                *(records.topic, self.partition, position, position + lost - 1),
            )
        return fresh

    async def _tick(self, offset: int, value: bytes | None) -> None:
        """One tick of a replay's clock.

        1. Wait for the records it names.
        2. Apply them in one step, or in several where the limits of a script demand it.
        3. Move the clock, have the forecasts that are due made.
        4. Move past the tick itself.
        """
        clock_topic = self._rules.clock_topic
        if offset < self.claim.positions.get(clock_topic, 0) or value is None:
            return
        tick = msgspec.json.decode(value, type=ClockTick)
        due = []
        for topic, next_offset in sorted(tick.next_offsets.items()):  # 1
            if topic == self._rules.global_calendar_topic and self._rules.global_calendar_read is not None:
                await self._rules.global_calendar_read(next_offset)
                continue
            records = await self._held.take(topic, self.claim.positions.get(topic, 0), next_offset)
            if records is not None:
                due.append(records)
        await self.step(due, tick.event_time, tick.arrived)  # 2, 3
        self._raise_if_closed()  # what it left unmade would be made at a later tick, with another cutoff
        by_hour = {(tick.event_time - 1) // HOUR_MS: tick.arrived} if tick.arrived else {}
        await self.pass_tick(offset, tick.event_time, by_hour)  # 4

    async def pass_tick(self, offset: int, event_time_ms: int, arrived: Mapping[int, Mapping[str, int]]) -> None:
        """Move past a tick. `arrived`: by hour and topic how many records have come in the whole shop up to it, since
        the one before."""
        clock_topic, sources = self._rules.clock_topic, self._rules.sources
        by_hour = {hour: {sources[t]: n for t, n in own.items() if t in sources} for hour, own in arrived.items()}
        sums = arrivals(by_hour) if self.partition == FIRST_LANE else []
        hour = np.array([max(by_hour, default=0)], dtype=np.int64)
        batch = Batch(
            {clock_topic: (self.claim.positions.get(clock_topic, -1), offset + 1)},
            {"clock": event_time_ms},
            series=[SHOP_SERIES] if sums else [],
            sums=sums,
            oldest_kept={FREQ: hour - self._rules.retention.buckets[FREQ]} if sums else {},
        )
        await self._store.apply(self.claim, batch)
        self.claim.positions[clock_topic] = offset + 1

    async def step(self, due: Sequence[Records], event_time_ms: int, arrived: Mapping[str, int] | None = None) -> None:
        """Apply exactly these records, of one topic each, move the clock, and have the forecasts made that are due
        then. `arrived`: by topic what has come in the whole shop meanwhile; None = nobody knows."""
        if due:
            await self._apply(due, event_time_ms)
        self._clock_ms, self.arrived = max(self._clock_ms, event_time_ms), arrived
        if self._on_tick is not None:
            await self._on_tick(self)

    async def _apply(self, topics: Sequence[Records], now_ms: int) -> None:
        """Records to features, all or nothing. Events far ahead of `now_ms` are rejected.

        1. Decode; part the late from the rest, and drop what came twice.
        2. Plan; halve the step if one script could not touch all its keys.
        3. Have Kafka acknowledge dead letters and late events, before any position moves past them.
        4. Apply in Redis, then to the copy in memory. Events that Redis knows by their id are dropped, and the rest is
           planned again. Where a sum would no longer be exact the step is halved, until the record that causes it is
           alone; that one is rejected.
        """
        watermark_ms = self.watermark_ms()
        parts = [self._decode(records, now_ms, watermark_ms) for records in topics]  # 1
        set_aside = False
        while True:
            plan = self._plan(parts, watermark_ms)  # 2
            ids = self._ids(parts, watermark_ms)
            if len(plan.series) + 3 * len(ids) > _MOST_SERIES and sum(map(len, topics)) > 1:
                await self._apply_halves(topics, now_ms)
                return
            if not set_aside:
                await self._set_aside(parts)  # 3
                set_aside = True
            batch = self._batch(parts, plan, ids, watermark_ms, now_ms)
            try:
                sequence = await self._store.apply(self.claim, batch)  # 4
            except DuplicateEventsError as found:
                for part in parts:
                    part.keep(without_ids(part.decoded.events, found.ids.get(part.source, set())))
            except SumOverflowError as error:
                if sum(map(len, topics)) > 1:
                    await self._apply_halves(topics, now_ms)
                    return
                parts = [_rejected(parts[0], str(error))]
                set_aside = False
            else:
                break
        self._remember(batch, sequence)
        self._count(parts)

    async def _apply_halves(self, topics: Sequence[Records], now_ms: int) -> None:
        if len(topics) > 1:
            halves: Sequence[Sequence[Records]] = [topics[:1], topics[1:]]
        else:
            middle = len(topics[0]) // 2
            halves = [[topics[0].part(0, middle)], [topics[0].part(middle, len(topics[0]))]]
        for half in halves:
            await self._apply(half, now_ms)

    def _decode(self, records: Records, now_ms: int, watermark_ms: int | None) -> _Part:
        rules = self._rules
        source = rules.sources[records.topic]
        limits = dataclasses.replace(
            rules.limits, partition=self.partition, max_event_time_ms=now_ms + rules.max_future_ms
        )
        decoded = decode(source, records.values, records.keys, limits)
        counted = len(decoded.events)
        if before_ms := self.claim.before.get(source, 0):  # earlier events were counted from a table
            decoded = decoded._replace(events=decoded.events.take(decoded.events.event_time_ms >= before_ms))
        newest_ms = 0 if rules.clock_topic else now_ms  # in replay only the clock moves the watermark
        stood = watermarks(
            decoded.events, watermark_ms, newest_ms=newest_ms, out_of_orderness_ms=rules.out_of_orderness_ms
        )
        events, late_rows = split_late(decoded.events, rules.retention, stood)
        counted_before = counted - len(decoded.events)
        part = _Part(records, source, decoded._replace(events=events), late_rows, counted_before)
        window_ms = rules.dedup_window_ms.get(source, 0)
        if window_ms:
            part.keep(drop_repeats(events, window_ms))
        return part

    def _plan(self, parts: Sequence[_Part], watermark_ms: int | None) -> Plan:
        decoded = join_decoded([part.decoded for part in parts])
        view = LaneView(self.claim.items, self._items_of_product, self.claim.products)
        return with_totals(plan_batch(decoded, view, self._rules.retention, watermark_ms))

    def _ids(self, parts: Sequence[_Part], watermark_ms: int | None) -> list[EventIds]:
        oldest = self._oldest_generations(watermark_ms)
        return [
            ids
            for part in parts
            if part.source in oldest
            for ids in ids_to_remember(
                part.decoded.events, part.source, self._rules.dedup_window_ms[part.source], oldest[part.source]
            )
        ]

    def _oldest_generations(self, watermark_ms: int | None) -> dict[str, int]:
        """By source that is de-duplicated the oldest generation whose ids may still be asked for."""
        windows = {source: window for source, window in self._rules.dedup_window_ms.items() if window}
        return {source: max((watermark_ms or 0) - window, 0) // window for source, window in windows.items()}

    async def _set_aside(self, parts: Sequence[_Part]) -> None:
        for part in parts:
            rejects, late_rows = part.decoded.rejects, part.late_rows.tolist()
            for topic, messages in letters(part.records, self.partition, rejects, late_rows).items():
                await self._rules.send(topic, self.partition, messages)

    def _batch(
        self, parts: Sequence[_Part], plan: Plan, ids: Sequence[EventIds], watermark_ms: int | None, now_ms: int
    ) -> Batch:
        positions = {
            part.records.topic: (self.claim.positions.get(part.records.topic, -1), part.records.next_offset)
            for part in parts
        }
        newest = {
            part.source: max(self.claim.newest.get(part.source, 0), min(int(times.max()), now_ms))
            for part in parts
            if len(times := part.decoded.events.event_time_ms)
        }
        return Batch(
            positions=positions,
            newest=newest,
            items=plan.items,
            products=plan.products,
            dirty=plan.touched,
            series=plan.series,
            sums=plan.sums,
            oldest_kept=plan.oldest_kept,
            event_ids=ids,
            oldest_generation=self._oldest_generations(watermark_ms),
        )

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

    def _count(self, parts: Sequence[_Part]) -> None:
        """Metrics, and the loud stop when most records can't be used."""
        for part in parts:
            reasons = Counter(reject.reason.value for reject in part.decoded.rejects)
            for reason, count in reasons.items():
                metrics.REJECTS.labels(part.source, reason).inc(count)
            metrics.LATE.labels(part.source).inc(len(part.late_rows))
            metrics.DUPLICATES.labels(part.source).inc(part.duplicates)
            metrics.COUNTED_BEFORE.labels(part.source).inc(part.counted_before)
            if part.counted_before and part.source not in self._told_before:
                self._told_before.add(part.source)
                logger.info(
                    "%s partition %d: events of before %d ms are in the features already, from a table, and are "
                    "dropped; shelfcast_counted_before counts them",
                    *(part.records.topic, self.partition, self.claim.before[part.source]),
                )
            metrics.EVENTS.labels(part.source).inc(len(part.records))
            where = f"{part.records.topic} partition {self.partition}"
            self._reject_watch.note(where, len(part.records), list(reasons.elements()))


def _rejected(part: _Part, why: str) -> _Part:
    """The one record of a part, rejected."""
    nothing = part.decoded.events.take(np.zeros(len(part.decoded.events), dtype=np.bool_))
    decoded = Decoded(nothing, [], [Reject(0, Reason.OUT_OF_RANGE, why)])
    return dataclasses.replace(part, decoded=decoded)


def _steps(topics: Sequence[Records]) -> Iterator[list[Records]]:
    """Cut records, before they are decoded, where one script could not touch the keys of all their products: a step
    that is found too large afterwards is decoded twice."""
    if len(set(chain.from_iterable(records.keys for records in topics))) <= _MOST_SERIES:
        if topics:
            yield list(topics)
        return
    for records in topics:
        start, products = 0, set[bytes | None]()
        for row, key in enumerate(records.keys):
            if key not in products and len(products) == _MOST_SERIES:
                yield [records.part(start, row)]
                start, products = row, set()
            products.add(key)
        yield [records.part(start, len(records))]
