"""LaneState: what a lane knows of its partition, and what forecasts of its items start from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.alert_state import AlertLevels, ItemAlerts, Untold
from feature_store.calendar_time import FREQS, bucket_of
from feature_store.calibration_state import ItemCalibration, SegmentLevels
from feature_store.decoding import DecodeLimits
from feature_store.events import item_id_of
from feature_store.features import BucketRows, pool_product_rows
from feature_store.items import NO_PRODUCT_STATE, Item, ProductState
from feature_store.plan import Retention
from feature_store.score_state import ItemScores
from feature_store.store import NO_ADDITIONS, Additions, Claim, Done, FeatureStore, Heads, Remembered
from worker.aside import Message

_DAY_MS = 86_400_000
_IDLE_AFTER_MS = 2_000  # a live lane without records for this long is caught up, and follows the clock again

# topic, partition, messages -> returns when Kafka has acknowledged them all
Send = Callable[[str, int, Sequence[Message]], Awaitable[None]]


@dataclass(frozen=True)
class LaneRules:
    """What all lanes of a worker have in common."""

    sources: Mapping[str, str]  # source by input topic
    clock_topic: str  # empty = live
    retention: Retention
    forecast_freqs: tuple[str, ...]
    limits: DecodeLimits  # partition and max_event_time_ms are filled in batch by batch
    dedup_window_ms: Mapping[str, int]  # by source; 0 or absent = events are not told apart by their id
    out_of_orderness_ms: int
    max_future_ms: int
    live_days: int
    max_reject_share: float
    reject_window: int
    send: Send
    touched_freqs: Collection[str] = FREQS  # forecast as soon as an item is touched; others when their bucket closes
    # By frequency which states are read too of what calibration, scoring and alerts remember; absent = none.
    remembered: Mapping[str, Remembered] = field(default_factory=dict)
    refreshed_freqs: Collection[str] = FREQS  # live items are forecast anew when their bucket closes
    now_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)
    # A replay's ticks also name messages of the whole shop's calendar: its topic, and how to wait until they are known.
    global_calendar_topic: str = ""
    global_calendar_read: Callable[[int], Awaitable[None]] | None = None


class LaneRead(NamedTuple):
    """What forecasts of some items start from."""

    partition: int
    cutoff_ms: int
    positions: dict[str, int]
    feature_age_ms: dict[str, int]
    subjects: list[tuple[Item, ProductState]]
    revisions: list[int]
    marks: list[int | None]
    rows: BucketRows
    calibrations: list[ItemCalibration | None]  # of each subject; nothing of a frequency that is not calibrated
    segments: dict[str, SegmentLevels]  # by time zone
    scores: list[ItemScores | None]  # of each subject; nothing of a frequency that is not scored
    alerts: list[ItemAlerts | None]  # of each subject; nothing of a frequency in which no alerts are raised
    alert_levels: dict[str, AlertLevels]  # by name


class LaneState:
    """A partition as claimed. Methods that ask Redis raise FencedError and BehindError of the store."""

    def __init__(self, store: FeatureStore, claim: Claim, rules: LaneRules) -> None:
        self.partition = claim.partition
        self.claim = claim
        self.closed = False
        self._store = store
        self._rules = rules
        self._telling = asyncio.Lock()
        self._lock = asyncio.Lock()  # held while records are on their way into the features
        self._stale: dict[str, tuple[dict[str, int], list[str]]] = {}
        self._deferred: dict[str, tuple[dict[str, int], list[str]]] = {}
        newest = claim.newest
        self._clock_ms = newest.get("clock", 0) if rules.clock_topic else max(newest.values(), default=0)
        self._last_record_ms = rules.now_ms()

    def clock_ms(self) -> int:
        """Event time this lane has reached: the replay's clock, or live the newest event while records flow and the
        wall clock while none do. Never goes back."""
        if not self._rules.clock_topic:
            now_ms = self._rules.now_ms()
            if now_ms - self._last_record_ms >= _IDLE_AFTER_MS and not self._lock.locked():
                self._clock_ms = max(self._clock_ms, now_ms)
        return self._clock_ms

    def watermark_ms(self) -> int | None:
        """Event time before which nothing more is expected; None before the first event."""
        clock_ms = self.clock_ms()
        return clock_ms - self._rules.out_of_orderness_ms if clock_ms else None

    def owed(self, freq: str) -> int:
        """How many items an event has touched since their last forecast."""
        return len(self.claim.dirty[freq])

    def is_touched(self, freq: str, item_id: str) -> bool:
        """Whether the item is one of them."""
        return item_id in self.claim.dirty[freq]

    def touched(self, freq: str, most: int | None = None) -> list[str]:
        """Those items, oldest mark first; at most so many. Of a frequency that is not forecast at every touch only
        those whose last forecast, or else first order, was in a bucket that has closed since."""
        if freq in self._rules.touched_freqs:
            return list(islice(self.claim.dirty[freq], most))
        return self._touched_before_close(freq)[:most]

    def _touched_before_close(self, freq: str) -> list[str]:
        running = self._running_by_zone(freq)
        if running is None:
            return []
        dirty, items, zone = self.claim.dirty[freq], self.claim.items, self._rules.retention.calendar.zone
        seen_running, candidates = self._deferred.get(freq, ({}, []))
        left = [
            item_id
            for item_id in (dirty if running != seen_running else candidates)
            if item_id in dirty and self._bucket_before(freq, item_id) < running[zone(items[item_id].location_id)]
        ]
        self._deferred[freq] = (running, left)
        return left

    def _bucket_before(self, freq: str, item_id: str) -> int:
        """The bucket of an item's last forecast, or else of its first order."""
        head, item = self.claim.heads[freq].get(item_id), self.claim.items[item_id]
        if head is not None:
            return head.running_bucket
        zone = self._rules.retention.calendar.zone(item.location_id)
        return int(bucket_of(freq, np.array([item.first_event_ms]), zone)[0])

    def _running_by_zone(self, freq: str) -> dict[str, int] | None:
        """The bucket that the watermark falls into; None before the first event."""
        watermark_ms = self.watermark_ms()
        if watermark_ms is None:
            return None
        return {zone: int(bucket_of(freq, np.array([watermark_ms]), zone)[0]) for zone in self._zones()}

    def stale(self, freq: str) -> list[str]:
        """Live items whose last forecast was made in a bucket that has closed since."""
        running, watermark_ms = self._running_by_zone(freq), self.watermark_ms()
        if running is None or watermark_ms is None or freq not in self._rules.refreshed_freqs:
            return []
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

    async def read(self, freq: str, stored: str, buckets: int, item_ids: Sequence[str]) -> LaneRead:
        """Everything forecasts of the items start from: the running bucket of frequency `stored`, and `buckets` before
        it. One round trip for up to about a thousand items."""
        items = [self.claim.items[item_id] for item_id in item_ids]
        product_series = [(i, item_id_of(item.product_id, "")) for i, item in enumerate(items) if item.location_id]
        series = [*item_ids, *(name for _, name in product_series)]
        last, running = -1, self._running(stored, self.clock_ms())
        remembered = self._rules.remembered.get(freq, Remembered())
        while last < running:  # once, unless a step that was under way has moved the newest event on
            first, last = running - buckets - 1, running + 1
            found = await self._store.read(self.claim, freq, item_ids, stored, series, first, last, remembered)
            # The newest event that the script saw may have been applied a moment after the lane's own clock was set.
            cutoff_ms = self._clock_ms if self._rules.clock_topic else max(self.clock_ms(), *found.newest.values())
            running = self._running(stored, cutoff_ms)
        reader = np.array([*range(len(items)), *(i for i, _ in product_series)], dtype=np.int64)
        is_own = found.rows.item < len(items)
        rows = BucketRows(reader[found.rows.item], found.rows.bucket, found.rows.values)
        return LaneRead(
            partition=self.partition,
            cutoff_ms=cutoff_ms,
            # Sorted: in which order Redis has them depends on how a lane has come to them.
            positions={topic: p for topic, p in sorted(found.positions.items()) if topic in self._rules.sources},
            feature_age_ms={s: max(cutoff_ms - ms, 0) for s, ms in sorted(found.newest.items()) if s != "clock"},
            subjects=[(item, self.claim.products.get(item.product_id, NO_PRODUCT_STATE)) for item in items],
            revisions=[self.claim.heads[freq].get(item_id, Heads(0, 0)).revision for item_id in item_ids],
            marks=found.marks,
            rows=pool_product_rows(_where(rows, is_own), _where(rows, ~is_own), [bool(i.location_id) for i in items]),
            calibrations=found.calibrations,
            segments=found.segments,
            scores=found.scores,
            alerts=found.alerts,
            alert_levels=found.alert_levels,
        )

    def _running(self, freq: str, time_ms: int) -> int:
        """The running bucket in the shop's zone; another zone's is at most a day away."""
        return int(bucket_of(freq, np.array([time_ms]), self._rules.retention.calendar.time_zone)[0])

    async def send(self, topic: str, messages: Sequence[Message]) -> None:
        """Send to the lane's own partition; returns when Kafka has acknowledged all."""
        if messages:
            await self._rules.send(topic, self.partition, messages)

    async def tell(self, untold: Mapping[str, Untold]) -> None:
        """Send alerts whose state stands, and note that Kafka has them. Whoever is killed between the two is followed
        by one that sends them again."""
        by_topic: dict[str, list[Message]] = {}
        for one in untold.values():
            by_topic.setdefault(one.topic, []).append(Message(one.key.encode(), one.value.encode()))
        for topic, messages in by_topic.items():
            await self.send(topic, messages)
        if untold:
            await self._store.streams().told(self.claim, list(untold))

    async def tell_untold(self) -> None:
        """Send the alerts that the lane's last owner may not have sent, before anything else is said of them."""
        async with self._telling:
            await self.tell(dict(self.claim.untold))

    async def send_forecasts(self, topic: str, freq: str, messages: Sequence[tuple[str, bytes | None]]) -> None:
        """Send forecasts (item_id, message or None for a tombstone); returns when Kafka has acknowledged all."""
        await self.send(topic, [Message(f"{item_id}|{freq}".encode(), value) for item_id, value in messages])

    async def forecasts_done(self, freq: str, done: Sequence[Done], additions: Additions = NO_ADDITIONS) -> None:
        """Store acknowledged forecasts, with what calibration has learnt and what was scored, and clear what is no
        longer owed."""
        await self._store.forecasts_done(self.claim, freq, done, additions)
        heads = [Heads(s.revision, s.running_bucket) if (s := one.summary) is not None else None for one in done]
        self.note_done(freq, [(one.item_id, one.mark, head) for one, head in zip(done, heads, strict=True)])

    def note_done(self, freq: str, done: Sequence[tuple[str, int | None, Heads | None]]) -> None:
        """What forecasts change in memory: (item_id, mark that was read, the forecast's head or None = withdrawn)."""
        dirty, heads = self.claim.dirty[freq], self.claim.heads[freq]
        for item_id, mark, head in done:
            touched = dirty.pop(item_id, None)
            if touched is not None and touched != mark:  # again, meanwhile: it queues behind those that still wait
                dirty[item_id] = touched
            if head is None:
                heads.pop(item_id, None)
            else:
                heads[item_id] = head

    def _zones(self) -> set[str]:
        calendar = self._rules.retention.calendar
        return {calendar.time_zone, *calendar.by_location.values()}


def _where(rows: BucketRows, keep: NDArray[np.bool_]) -> BucketRows:
    return BucketRows(rows.item[keep], rows.bucket[keep], rows.values[keep])
