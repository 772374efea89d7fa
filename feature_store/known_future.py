"""Channels known ahead of time: the clock, and what calendar messages say of prices, promotions and opening."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import bucket_start_ms, local_clock
from feature_store.events import CalendarEntry

# promotion, event and open are the fraction of the bucket that they cover (open is 1 where nothing is said);
# unit_price is NaN where nothing is said. The clock channels are those of calendar_time.local_clock.
KNOWN_CHANNELS: tuple[str, ...] = (
    "unit_price",
    "promotion",
    "open",
    "event",
    "hour_of_day",
    "day_of_week",
    "day_of_month",
    "day_of_year",
)


_CASES_KEPT = 256  # of up to 15 kB


class Span(NamedTuple):
    """Which buckets of one item are asked for: `length` buckets from `first_bucket` on, in `time_zone`."""

    first_bucket: int
    time_zone: str


def known_channels(
    freq: str, spans: Sequence[Span], length: int, entries: Sequence[Sequence[CalendarEntry]]
) -> NDArray[np.float32]:
    """Known channels: float32 (item, length, channel), oldest first.

    `entries` holds, for each item, the calendar entries that apply to its location and were known at the cutoff; where
    two overlap and disagree the later one in the list wins.
    """
    out = np.empty((len(spans), length, len(KNOWN_CHANNELS)), dtype=np.float32)
    # Many items share the whole shop's entries and have none of their own: each distinct case is worked out once. Told
    # apart here by the entries themselves, since what they say takes longer to hash than all the rest.
    done: dict[tuple[Span, tuple[int, ...]], NDArray[np.float32]] = {}
    for i, (span, listed) in enumerate(zip(spans, entries, strict=True)):
        case = (span, tuple(map(id, listed)))
        if case not in done:
            done[case] = _channels(freq, span, length, tuple(listed))
        out[i] = done[case]
    return out


@lru_cache(maxsize=_CASES_KEPT)
def _channels(freq: str, span: Span, length: int, entries: tuple[CalendarEntry, ...]) -> NDArray[np.float32]:
    """One item's channels; kept, since forecasts of the same bucket come batch after batch. Not to be written to."""
    template, edges = _template(freq, span, length)
    return _with_entries(template, edges, entries)


@lru_cache(maxsize=_CASES_KEPT)
def _template(freq: str, span: Span, length: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    buckets = span.first_bucket + np.arange(length + 1)
    template = np.empty((length, len(KNOWN_CHANNELS)), dtype=np.float32)
    template[:, 0] = np.nan
    template[:, 1] = 0.0
    template[:, 2] = 1.0
    template[:, 3] = 0.0
    template[:, 4:] = local_clock(freq, buckets[:-1], span.time_zone)
    return template, bucket_start_ms(freq, buckets, span.time_zone)


def _with_entries(
    template: NDArray[np.float32], edges: NDArray[np.int64], entries: Sequence[CalendarEntry]
) -> NDArray[np.float32]:
    inside = [e for e in entries if e.start_time < e.end_time and e.start_time < edges[-1] and e.end_time > edges[0]]
    channels = template.copy()
    for entry in inside:
        if entry.unit_price is not None:
            touched = (edges[:-1] < entry.end_time) & (edges[1:] > entry.start_time) & (edges[:-1] < edges[1:])
            channels[touched, 0] = entry.unit_price
    promotions = [(e.start_time, e.end_time, e.promotion) for e in inside if e.promotion is not None]
    closures = [(e.start_time, e.end_time, not e.open) for e in inside if e.open is not None]
    events = [(e.start_time, e.end_time, bool(e.event_name)) for e in inside if e.event_name is not None]
    for channel, stretches in ((1, promotions), (2, closures), (3, events)):
        if stretches:
            share = _share_true(edges, stretches)
            channels[:, channel] = 1.0 - share if channel == 2 else share
    return channels


def _share_true(edges: NDArray[np.int64], stretches: Sequence[tuple[int, int, bool]]) -> NDArray[np.float64]:
    """Fraction of each bucket in which (start, end, value) stretches say true; the later in the list paints over."""
    points = np.unique(np.clip([t for start, end, _ in stretches for t in (start, end)], edges[0], edges[-1]))
    is_true = np.zeros(len(points) - 1, dtype=bool)
    for start, end, value in stretches:
        first, last = np.searchsorted(points, np.clip([start, end], edges[0], edges[-1]))
        is_true[first:last] = value
    true_ms_before = np.r_[0, np.cumsum(np.diff(points) * is_true)]
    true_ms = np.diff(np.interp(edges, points, true_ms_before))
    width = np.diff(edges)
    return np.divide(true_ms, width, out=np.zeros(len(width)), where=width > 0)
