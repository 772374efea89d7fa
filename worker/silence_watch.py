"""SilenceWatch: listens to the streams of the whole shop, and alerts when one falls silent.

The worker that runs the first lane does it for all: one message an episode, whatever the number of partitions. Live it
looks every few seconds at what stands in Redis of all partitions, and only at topics that have been read to their ends
everywhere: what is merely behind is not silent. In a replay the clock's ticks tell what has arrived in the whole shop,
so what is found depends on neither speed, nor workers, nor kills.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from feature_store.alert_state import Untold
from feature_store.events import CalendarEntry
from feature_store.lane_totals import FIRST_LANE, HOUR_MS, LANE_SERIES, SHOP_SERIES
from feature_store.store import BehindError, Claim, FencedError
from feature_store.stream_store import STREAM_NOTE, Peeked, StreamStore
from worker import metrics
from worker.alert_sending import untold_of
from worker.schemas import Alert
from worker.silence import (
    NOTHING,
    Found,
    Heard,
    SilenceRules,
    Stream,
    StreamState,
    expected,
    first_hour_of,
    judge,
    pack_stream,
    unpack_stream,
    withdrawn,
)

Partition = tuple[str, int]
# Offset after the last record of each; None = Kafka does not answer. Whether there is a record from an offset on.
Ends = Callable[[Collection[Partition]], Awaitable[Mapping[Partition, int] | None]]
HoldsRecord = Callable[[Partition, int], Awaitable[bool]]


class Lane(Protocol):
    """What is asked of a lane."""

    closed: bool
    claim: Claim

    async def tell(self, untold: Mapping[str, Untold]) -> None: ...
    async def tell_untold(self) -> None: ...


class WatchRules(NamedTuple):
    """streams: listened to. known: all that could be. freq: under which notes stand. entries: of the shop's calendar,
    by event time."""

    streams: Sequence[Stream]
    known: Sequence[Stream]
    topic_alerts: str
    freq: str
    partition_count: int
    silence: SilenceRules
    entries: Callable[[int], Sequence[CalendarEntry]]


class _Now(NamedTuple):
    """A look. series: where counts stand, in these partitions, by their incarnations."""

    time_ms: int
    series: str
    incarnations: Mapping[int, str]


class SilenceWatch:
    """Listens for one worker; owns no lane."""

    def __init__(self, rules: WatchRules, streams: StreamStore) -> None:
        self._rules, self._store = rules, streams
        self._states: WeakKeyDictionary[Lane, dict[Stream, StreamState]] = WeakKeyDictionary()
        self._passed: dict[Partition, tuple[int, int]] = {}  # position and end between which there is no record

    async def look_replayed(self, lane: Lane, time_ms: int, arrived: Mapping[str, int]) -> None:
        """At a tick of the clock, before it has been passed.

        Args:
            lane: the first one.
            time_ms: event time of the tick.
            arrived: by topic the last tick that named records, since the last look; absent = none did.
        """
        states = await self._remembered(lane)
        newest = {stream: arrived.get(stream.topic, states[stream].newest_ms) for stream in self._rules.streams}
        now = _Now(time_ms, SHOP_SERIES, {FIRST_LANE: lane.claim.incarnation})
        await self._look(lane, now, newest)

    async def look_live(self, lane: Lane | None, now_ms: int, ends: Ends, holds_record: HoldsRecord) -> None:
        """Once in a while.

        1. Ask Kafka how far topics go, then Redis how far they have been read.
        2. Judge those that have been read to their ends as they were at `now_ms`.

        Args:
            lane: the first one; None = another worker has it.
            now_ms: the time, taken before anything is asked.
            ends, holds_record: see above.
        """
        if lane is None or lane.closed:
            metrics.STREAM_SILENCE.clear()
            return
        places = [(s.topic, p) for s in self._rules.streams for p in range(self._rules.partition_count)]
        known_ends = await ends(places)  # 1
        if known_ends is None:
            return
        peeked = dict(enumerate(await asyncio.gather(*map(self._store.peek, range(self._rules.partition_count)))))
        newest = {}
        for stream in self._rules.streams:
            if await self._is_read(stream.topic, known_ends, peeked, holds_record):
                times = [found.newest.get(stream.source, 0) for found in peeked.values() if found is not None]
                newest[stream] = max(times, default=0)
        incarnations = {p: found.incarnation for p, found in peeked.items() if found is not None}
        try:
            await self._look(lane, _Now(now_ms, LANE_SERIES, incarnations), newest)  # 2
        except (FencedError, BehindError):
            return  # its forecasts notice too, and end the lane

    async def _is_read(
        self,
        topic: str,
        ends: Mapping[Partition, int],
        peeked: Mapping[int, Peeked | None],
        holds_record: HoldsRecord,
    ) -> bool:
        """Whether all records of a topic are counted. Behind the last one a transaction's mark may stand, which counts
        as an offset: where nothing moves it is asked for once."""
        for p, found in peeked.items():
            end, position = ends[topic, p], found.positions.get(topic, 0) if found is not None else 0
            if position < end and self._passed.get((topic, p)) != (position, end):
                if await holds_record((topic, p), position):
                    return False
                self._passed[topic, p] = position, end
        return True

    async def _remembered(self, lane: Lane) -> dict[Stream, StreamState]:
        states = self._states.get(lane)
        if states is None:
            names = {stream: STREAM_NOTE + stream.source for stream in self._rules.known}
            notes = await self._store.notes(lane.claim, self._rules.freq, list(names.values()))
            states = {s: unpack_stream(notes[name]) if name in notes else StreamState() for s, name in names.items()}
            self._states[lane] = states
        return states

    async def _look(self, lane: Lane, now: _Now, newest: Mapping[Stream, int]) -> None:
        """1. Judge. 2. Note what is new, with what is to be said of it. 3. Say it."""
        await lane.tell_untold()
        states, found = await self._remembered(lane), dict[Stream, Found]()
        for stream, state in states.items():  # 1
            if stream in newest:
                found[stream] = await self._judge(stream, state, newest[stream], now)
            elif stream not in self._rules.streams:
                found[stream] = withdrawn(stream, state, now.time_ms)
        # Live, events tell by themselves how far they go.
        changed = {
            stream: one.state
            for stream, one in found.items()
            if one.alert is not None or (now.series == SHOP_SERIES and one.state != states[stream])
        }
        told = [one.alert for one in found.values() if one.alert is not None]
        alerts = [(f"{alert.subject}|{alert.kind}", alert) for alert in told]
        if changed:
            untold = untold_of(self._rules.topic_alerts, alerts)
            notes = {STREAM_NOTE + stream.source: pack_stream(state) for stream, state in changed.items()}
            await self._store.note(lane.claim, self._rules.freq, notes, untold)  # 2
            states.update(changed)
            await self._say(lane, untold, told)  # 3

    async def _say(self, lane: Lane, untold: Mapping[str, Untold], alerts: Sequence[Alert]) -> None:
        await lane.tell(untold)
        for alert in alerts:
            metrics.ALERTS.labels(alert.kind, alert.episode_state, alert.severity).inc()

    async def _judge(self, stream: Stream, state: StreamState, newest_ms: int, now: _Now) -> Found:
        rules = self._rules.silence
        silent_ms = max(now.time_ms - newest_ms, 0) if newest_ms else 0
        metrics.STREAM_SILENCE.labels(stream.source).set(silent_ms / 1000)
        found = NOTHING
        if state.alert_id or (newest_ms and silent_ms >= rules.least_ms):
            since_ms = state.since_ms if state.alert_id else newest_ms
            hours = first_hour_of(now.time_ms, since_ms), now.time_ms // HOUR_MS
            parts = [
                (await self._store.hours(p, incarnation, now.series, hours))[stream.source]
                for p, incarnation in now.incarnations.items()
            ]
            heard = Heard(hours[0], sum(parts[1:], start=parts[0]), since_ms)
            found = expected(heard, now.time_ms, rules, self._rules.entries(now.time_ms))
        return judge(stream, state, newest_ms, now.time_ms, found, rules)
