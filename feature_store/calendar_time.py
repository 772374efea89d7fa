"""Buckets of event time.

`5m` and `1h` count from the epoch in UTC. `1d` and `1w` follow the local date in the location's IANA time zone, so a
day lasts 23 to 25 hours; a `1d` bucket is the date as days since 1970-01-01, a `1w` bucket the number of its
Monday-started week. Bucket numbers are int64; starts are inclusive, milliseconds UTC.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000
FIXED_MS = {"5m": 300_000, "1h": 3_600_000}
_QUARTER_MS = 900_000
FREQS: tuple[str, ...] = ("5m", "1h", "1d", "1w")
_FIRST_DAY, _LAST_DAY = (
    0,
    36_525,
)  # 1970-01-01 to 2070-01-01: a table of a century of midnights is 300 kB a zone
_WEEK_OFFSET = 3  # 1970-01-01 was a Thursday: day + 3 puts Monday first


class UnknownTimeZoneError(ValueError):
    """A time zone name that the IANA data base does not have."""


@lru_cache(maxsize=64)
def _midnights(time_zone: str) -> NDArray[np.int64]:
    """UTC milliseconds at which each local date begins, day 0 first. A date that a zone skipped has length 0."""
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UnknownTimeZoneError(
            f"unknown time zone {time_zone!r}: use an IANA name such as Europe/London"
        ) from error
    epoch = dt.datetime(1970, 1, 1)
    # fold=0 in a gap gives the instant of the jump, which is where that date begins.
    days = (epoch + dt.timedelta(days=d) for d in range(_FIRST_DAY, _LAST_DAY + 1))
    return np.array([int(day.replace(tzinfo=zone).timestamp()) * 1000 for day in days], dtype=np.int64)


@lru_cache(maxsize=64)
def _consists_of(time_zone: str, bucket_ms: int) -> bool:
    return not (_midnights(time_zone) % bucket_ms).any()


def _local_day(time_zone: str, event_time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(_midnights(time_zone), event_time_ms, side="right").astype(np.int64) - 1 + _FIRST_DAY


def bucket_of(freq: str, event_time_ms: NDArray[np.int64], time_zone: str) -> NDArray[np.int64]:
    """Bucket numbers of event times, elementwise. `time_zone` is read for `1d` and `1w` only."""
    if freq in FIXED_MS:
        return event_time_ms // FIXED_MS[freq]
    day = _local_day(time_zone, event_time_ms)
    return day if freq == "1d" else week_of_day(day)


def week_of_day(day: NDArray[np.int64]) -> NDArray[np.int64]:
    """The `1w` bucket that holds each `1d` bucket."""
    return (day + _WEEK_OFFSET) // 7


def bucket_start_ms(freq: str, bucket: NDArray[np.int64], time_zone: str) -> NDArray[np.int64]:
    """First millisecond (UTC) of each bucket. The end of a bucket is the start of the next."""
    if freq in FIXED_MS:
        return bucket * FIXED_MS[freq]
    day = bucket if freq == "1d" else bucket * 7 - _WEEK_OFFSET
    return _midnights(time_zone)[np.clip(day - _FIRST_DAY, 0, _LAST_DAY)]


def local_to_utc_ms(local_ms: NDArray[np.int64], time_zone: str) -> NDArray[np.int64]:
    """UTC of local times. Of an hour that comes twice in autumn the first is meant."""
    if time_zone == "UTC":
        return local_ms
    # Clocks change on a quarter of an hour, so each distinct one is asked for once.
    zone, epoch = ZoneInfo(time_zone), dt.datetime(1970, 1, 1)
    quarters, index = np.unique(local_ms // _QUARTER_MS, return_inverse=True)
    local = (epoch + dt.timedelta(milliseconds=int(q) * _QUARTER_MS) for q in quarters)
    starts_ms = np.array([int(start.replace(tzinfo=zone).timestamp()) * 1000 for start in local], dtype=np.int64)
    return np.asarray(starts_ms[index] + local_ms % _QUARTER_MS, dtype=np.int64)


def local_clock(freq: str, bucket: NDArray[np.int64], time_zone: str) -> NDArray[np.float32]:
    """Local time of each bucket's start: float32 (..., 4): hour_of_day (NaN from `1d` up), day_of_week (Monday 0),
    day_of_month (1 first), day_of_year (1 first)."""
    start = bucket_start_ms(freq, bucket, time_zone)
    day = _local_day(time_zone, start)
    date = day.astype("datetime64[D]")
    clock = np.empty((*bucket.shape, 4), dtype=np.float32)
    if freq in FIXED_MS:
        # Wall-clock hour by elapsed time; on the two days a year with a jump it is off by one after the jump.
        clock[..., 0] = (start - _midnights(time_zone)[day - _FIRST_DAY]) // 3_600_000
    else:
        clock[..., 0] = np.nan
    clock[..., 1] = (day + _WEEK_OFFSET) % 7
    clock[..., 2] = (date - date.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64) + 1
    clock[..., 3] = (date - date.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64) + 1
    return clock


class ShopCalendar:
    """Which time zone each location keeps. Locations without an entry keep the shop's."""

    def __init__(self, time_zone: str, location_time_zones: Mapping[str, str] | None = None) -> None:
        self.time_zone = time_zone
        self.by_location = dict(location_time_zones or {})
        for zone in self._all_zones():
            _midnights(zone)

    def days_consist_of(self, freq: str) -> bool:
        """Whether no bucket of a frequency counted in UTC lies across the midnight of any location."""
        return freq in FIXED_MS and all(_consists_of(zone, FIXED_MS[freq]) for zone in self._all_zones())

    def _all_zones(self) -> set[str]:
        return {self.time_zone, *self.by_location.values()}

    def zone(self, location_id: str) -> str:
        """IANA name of the location's time zone."""
        return self.by_location.get(location_id, self.time_zone)

    def _zone_groups(self, location_ids: Sequence[str]) -> list[tuple[str, NDArray[np.intp]]]:
        zones = np.array([self.zone(location) for location in location_ids], dtype=object)
        return [(zone, np.flatnonzero(zones == zone)) for zone in sorted(set(zones.tolist()))]

    def buckets(self, freq: str, event_time_ms: NDArray[np.int64], location_ids: Sequence[str]) -> NDArray[np.int64]:
        """Bucket number of each event, by the time zone of its own location. Both arguments have one entry an event."""
        if freq in FIXED_MS or not self.by_location:
            return bucket_of(freq, event_time_ms, self.time_zone)
        out = np.empty(len(event_time_ms), dtype=np.int64)
        for zone, rows in self._zone_groups(location_ids):
            out[rows] = bucket_of(freq, event_time_ms[rows], zone)
        return out
