"""Clock ticks: at which moments of event time a replay or a backtest stops to apply what is due and to forecast.

A tick at T names every record that is due before T (`due_ms < T`); a record is due at the running maximum of its
partition's timestamps. There is a tick

- at each multiple of `interval_ms` before which records fell due since the multiple before it, and
- at each close of a bucket that is forecast: each local midnight of each of the shop's zones, and with hourly forecasts
  each full hour, `out_of_orderness_ms` later, since that is when the watermark passes it. Nothing need have happened.

Ticks are a function of the records, these two numbers and the shop's calendar, so every replay has the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import FIXED_MS, ShopCalendar, bucket_of, bucket_start_ms

DEFAULT_INTERVAL_MS = 3_600_000


class Stretch(Protocol):
    """Records in replay order, as columns: `due_ms` int64 (record,) never falls, within a stretch and from one to the
    next."""

    @property
    def due_ms(self) -> NDArray[np.int64]: ...
    def part(self, first: int, stop: int) -> Self:
        """Records `first` up to, not including, `stop`."""
        ...


S = TypeVar("S", bound=Stretch)


class Due(NamedTuple, Generic[S]):
    """What comes next: records to hand on, and then, unless `tick_ms` is None, a tick that names them and all records
    before them. `rows` is None where a tick follows a tick with nothing in between."""

    rows: S | None
    tick_ms: int | None


class TickRules(NamedTuple):
    """When ticks are. `forecast_freqs`: 1h, 1d, 1w."""

    calendar: ShopCalendar
    forecast_freqs: Sequence[str]
    out_of_orderness_ms: int
    interval_ms: int = DEFAULT_INTERVAL_MS

    def closes(self, after_ms: int, until_ms: int) -> NDArray[np.int64]:
        """Closes of buckets in (after_ms, until_ms], ascending, each moment once: int64 (close,)."""
        if until_ms <= after_ms:
            return np.empty(0, dtype=np.int64)
        span = np.array([after_ms, until_ms], dtype=np.int64) - self.out_of_orderness_ms
        found = []
        for freq in self.forecast_freqs:
            zones = {self.calendar.time_zone}
            if freq not in FIXED_MS:
                zones |= set(self.calendar.by_location.values())
            for zone in zones:
                first, last = bucket_of(freq, span, zone).tolist()
                found.append(bucket_start_ms(freq, np.arange(first, last + 1, dtype=np.int64), zone))
        closes: NDArray[np.int64] = np.unique(np.concatenate(found)) + self.out_of_orderness_ms
        return closes[(closes > after_ms) & (closes <= until_ms)]

    def named_by(self, due_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """The multiple of the interval whose tick names a record at the latest: int64, elementwise."""
        return (due_ms // self.interval_ms + 1) * self.interval_ms


def ticks(stretches: Iterable[S], rules: TickRules, until_ms: int | None = None) -> Iterator[Due[S]]:
    """The records of a recording, cut where its clock ticks.

    Streams: holds one stretch, whatever the interval. The last tick names the last records; with `until_ms` closes of
    buckets follow up to that time.

    Args:
        stretches: a recording's records in replay order (`Recording.merged`).
        rules: when ticks are.
        until_ms: event time to go on to when the records have ended.
    """
    done_ms: int | None = None  # all ticks up to here have been given
    last_ms = 0
    for rows in stretches:
        due_ms = rows.due_ms
        if not len(due_ms):
            continue
        if done_ms is None:
            done_ms = last_ms = int(due_ms[0])
        start = 0
        moments = _moments(np.concatenate([[last_ms], due_ms]), rules, done_ms, int(due_ms[-1]))
        for tick_ms, stop in zip(moments.tolist(), np.searchsorted(due_ms, moments).tolist(), strict=True):
            yield Due(rows.part(start, stop) if stop > start else None, tick_ms)
            start, done_ms = stop, tick_ms
        if start < len(due_ms):
            yield Due(rows.part(start, len(due_ms)), None)
        last_ms = int(due_ms[-1])
        done_ms = max(done_ms, last_ms)  # its own tick is yet to come: later than the record that it names
    if done_ms is None:
        return
    end_ms = int(rules.named_by(np.array([last_ms]))[0])
    for tick_ms in sorted({end_ms, *rules.closes(done_ms, max(end_ms, until_ms or 0)).tolist()}):
        yield Due(None, tick_ms)


def _moments(due_ms: NDArray[np.int64], rules: TickRules, after_ms: int, until_ms: int) -> NDArray[np.int64]:
    """Ticks in (after_ms, until_ms], ascending."""
    named = np.unique(rules.named_by(due_ms))
    moments = np.unique(np.concatenate([named, rules.closes(after_ms, until_ms)]))
    kept: NDArray[np.int64] = moments[(moments > after_ms) & (moments <= until_ms)]
    return kept
