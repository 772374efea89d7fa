"""Silence: orders, clicks or reviews of the whole shop that have stopped coming. Pure functions.

What was to be expected since the last event is what came in the same local hours of the last three weeks, on average of
the two in which the fewest came. Hours in which the shop is closed by its calendar expect nothing, and are
passed over in the past. That a stream is silent for so long by chance has a probability of

    spread^(-expected / (spread - 1))

were its counts negative binomial with a variance of `spread` times their mean: that of no event at all. `spread` is
measured on the same weeks, from how hours differ from those a week before. Its negative logarithm is the evidence. It
grows as time is rescaled by what is expected, so that gaps between events have evidence that is distributed
exponentially (Brown, Barbieri, Ventura, Kass and Frank 2002, "The time-rescaling theorem and its application to neural
spike train data analysis"): of a day with evidence e, longer gaps than x come about e × exp(-x) times. An alert opens
where that is once in a thousand days. It closes with the next event.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.events import CalendarEntry
from feature_store.known_future import KNOWN_CHANNELS, Span, known_channels
from worker.schemas import Alert

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

KIND = "stream_silent"
WEEKS = 3  # looked back on
_HOUR_MS, _WEEK = 3_600_000, 168
HISTORY = WEEKS * _WEEK + 1  # hours; one more where clocks have changed
_FEWEST_WEEKS = 2
_LONGEST = _WEEK  # hours of silence that are added up
_SELDOM_DAYS = 1_000.0  # chance alone opens an alert once in so many
_LEAST_SPREAD = 1.2
_SEVERE = (1e-6, 1e-12)  # probabilities from which on an alert is major, and critical
_SEVERITIES: tuple[Literal["minor", "major", "critical"], ...] = ("minor", "major", "critical")
_OPEN = KNOWN_CHANNELS.index("open")


class SilenceRules(NamedTuple):
    """least_ms: shorter silences are none. update_ms: an alert that is open is told of again after so long."""

    least_ms: int
    update_ms: int
    time_zone: str


class Stream(NamedTuple):
    """What is listened to."""

    topic: str
    source: str


class Heard(NamedTuple):
    """counts: int64 (hour,), events in each hour from `first_hour` on. newest_ms: of the last event."""

    first_hour: int
    counts: Integers
    newest_ms: int


class Expected(NamedTuple):
    """Of a silence: events that were to come in it, evidence against its being chance, and how much of that opens an
    alert."""

    events: float
    evidence: float
    opens: float


NOTHING = Expected(0.0, 0.0, math.inf)


class StreamState(msgspec.Struct, array_like=True, frozen=True):
    """What is remembered of a stream. newest_ms: of its last event, where nothing else tells it. All else of the alert
    that is open: an empty alert_id = none is. since_ms: the last event before the silence."""

    newest_ms: int = 0
    alert_id: str = ""
    sequence: int = 0
    opened_ms: int = 0
    told_ms: int = 0
    severity: int = 0
    since_ms: int = 0


def pack_stream(state: StreamState) -> str:
    """As text."""
    return msgspec.json.encode(state).decode()


def unpack_stream(text: str) -> StreamState:
    """The reverse of pack_stream."""
    return msgspec.json.decode(text, type=StreamState)


def first_hour_of(now_ms: int, newest_ms: int) -> int:
    """From which hour on counts are wanted."""
    return max(newest_ms, now_ms - _LONGEST * _HOUR_MS) // _HOUR_MS - HISTORY


def expected(heard: Heard, now_ms: int, rules: SilenceRules, entries: Sequence[CalendarEntry]) -> Expected:
    """What was to come since the last event.

    Args:
        heard: counts from `first_hour_of` on.
        now_ms: event time that has been reached.
        rules: of the shop.
        entries: its calendar; those of single locations are left out.
    """
    since_ms = max(heard.newest_ms, now_ms - _LONGEST * _HOUR_MS)
    if now_ms <= since_ms or not heard.counts.any():
        return NOTHING
    newest_hour = heard.newest_ms // _HOUR_MS
    past = _Past(heard, min(newest_hour, heard.first_hour + len(heard.counts)), rules.time_zone, entries)
    hours = np.arange(since_ms // _HOUR_MS, (now_ms - 1) // _HOUR_MS + 1)
    begins, ends = np.maximum(hours * _HOUR_MS, since_ms), np.minimum((hours + 1) * _HOUR_MS, now_ms)
    share = (ends - begins) / _HOUR_MS * past.open_share(hours)
    events = float((past.rates(hours) * share).sum())
    pace = math.log(past.spread) / (past.spread - 1)
    last_week = heard.counts[max(newest_hour - _WEEK - heard.first_hour, 0) : newest_hour - heard.first_hour]
    a_day = float(last_week.sum()) / 7 * pace
    return Expected(events, events * pace, math.log(_SELDOM_DAYS * max(a_day, 1.0)))


class _Past:
    """Hours before the silence: `stop` is the first that tells nothing."""

    def __init__(self, heard: Heard, stop: int, time_zone: str, entries: Sequence[CalendarEntry]) -> None:
        known = np.flatnonzero(heard.counts)
        self._first, self._stop = heard.first_hour + int(known[0]), stop  # before the first event nothing is known
        self._counts, self._offset = heard.counts, heard.first_hour
        self._zone = time_zone
        self._entries = [entry for entry in entries if not entry.location_id]
        self.spread = self._spread()

    def rates(self, hours: Integers) -> Floats:
        """Events to be expected of whole open hours: float64 (hour,); 0 where too few weeks tell of it."""
        before = np.stack([self._at(_weeks_before(hours, weeks, self._zone)) for weeks in range(1, WEEKS + 1)])
        known = np.isfinite(before).sum(axis=0)
        lowest = np.sort(before, axis=0)[:_FEWEST_WEEKS]  # NaN last
        return np.asarray(np.where(known >= _FEWEST_WEEKS, lowest.mean(axis=0), 0.0))

    def open_share(self, hours: Integers) -> Floats:
        """Part of each hour in which the shop is open: float64 (hour,)."""
        channels = known_channels("1h", [Span(int(hours[0]), self._zone)], len(hours), [self._entries])
        return channels[0, :, _OPEN].astype(np.float64)

    def _at(self, hours: Integers) -> Floats:
        """Counted; NaN = not known, or closed."""
        known = (hours >= self._first) & (hours < self._stop)
        counts = self._counts[np.clip(hours - self._offset, 0, len(self._counts) - 1)].astype(np.float64)
        span = np.arange(int(hours.min()), int(hours.max()) + 1)
        is_open = self.open_share(span)[hours - span[0]] >= 0.5
        return np.where(known & is_open, counts, np.nan)

    def _spread(self) -> float:
        hours = np.arange(self._first, max(self._stop, self._first + 1))
        now, before = self._at(hours), self._at(_weeks_before(hours, 1, self._zone))
        told = np.isfinite(now) & np.isfinite(before)
        total = float((now + before)[told].sum())
        steps = float(np.square(now - before)[told].sum())
        return max(steps / total, _LEAST_SPREAD) if total else _LEAST_SPREAD


def _weeks_before(hours: Integers, weeks: int, time_zone: str) -> Integers:
    """The hours of the same local time so many weeks before."""
    before = hours - weeks * _WEEK
    shift = [_offset_s(int(h), time_zone) - _offset_s(int(b), time_zone) for h, b in zip(hours, before, strict=True)]
    return np.asarray(before + np.array(shift, dtype=np.int64) // 3_600)


@lru_cache(maxsize=4_096)
def _offset_s(hour: int, time_zone: str) -> int:
    offset = dt.datetime.fromtimestamp(hour * 3_600, ZoneInfo(time_zone)).utcoffset()
    return int((offset or dt.timedelta()).total_seconds())


class Found(NamedTuple):
    """state: what is to be remembered. alert: what is to be said; None = nothing."""

    state: StreamState
    alert: Alert | None


def judge(stream: Stream, state: StreamState, newest_ms: int, now_ms: int, of: Expected, rules: SilenceRules) -> Found:
    """What is to be said of a stream.

    Args:
        stream: which.
        state: what was remembered.
        newest_ms: event time of its last event.
        now_ms: event time that has been reached.
        of: what was to come since, or while an alert is open since the silence began.
        rules: of the shop.
    """
    state = msgspec.structs.replace(state, newest_ms=newest_ms)
    severity = max(state.severity, sum(math.exp(-of.evidence) <= limit for limit in _SEVERE))
    if state.alert_id:
        if newest_ms > state.since_ms:
            return _tell(stream, state, now_ms, "close", of)
        if severity > state.severity or now_ms - state.told_ms >= rules.update_ms:
            return _tell(stream, msgspec.structs.replace(state, severity=severity), now_ms, "update", of)
        return Found(state, None)
    if now_ms - newest_ms < rules.least_ms or of.evidence < of.opens:
        return Found(state, None)
    digest = hashlib.blake2b(f"{stream.topic} {newest_ms}".encode(), digest_size=12).hexdigest()
    return _tell(stream, StreamState(newest_ms, digest, 0, now_ms, now_ms, severity, newest_ms), now_ms, "open", of)


def withdrawn(stream: Stream, state: StreamState, now_ms: int) -> Found:
    """The end of the alert of a stream that is no longer listened to."""
    return _tell(stream, state, now_ms, "close", NOTHING) if state.alert_id else Found(state, None)


def _tell(
    stream: Stream, state: StreamState, now_ms: int, episode_state: Literal["open", "update", "close"], of: Expected
) -> Found:
    state = msgspec.structs.replace(state, sequence=state.sequence + 1, told_ms=now_ms)
    since = dt.datetime.fromtimestamp(state.since_ms / 1000, dt.UTC)
    silent = f"no {stream.source} since {since:%Y-%m-%d %H:%M} UTC, where {of.events:.4g} were expected"
    alert = Alert(
        alert_id=state.alert_id,
        episode_state=episode_state,
        sequence=state.sequence,
        kind=KIND,
        event_time=now_ms,
        opened_at=state.opened_ms,
        window_start=state.since_ms,
        subject=stream.topic,
        channel=stream.source,
        observed=0.0,
        expected=round(of.events, 3),
        tail_probability=math.exp(-of.evidence),
        severity=_SEVERITIES[state.severity],
        reason=f"{stream.source} come again, or are no longer listened to" if episode_state == "close" else silent,
    )
    return Found(StreamState(state.newest_ms) if episode_state == "close" else state, alert)
