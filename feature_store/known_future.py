"""Channels known ahead of time: the clock, and what calendar messages say of prices, promotions and opening."""

from __future__ import annotations

from collections.abc import Sequence
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
    templates: dict[Span, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
    for i, span in enumerate(spans):
        if span not in templates:
            templates[span] = _template(freq, span, length)
        template, edges = templates[span]
        out[i] = template
        for entry in entries[i]:
            _lay(out[i], edges, entry)
    return out


def _template(freq: str, span: Span, length: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    buckets = span.first_bucket + np.arange(length + 1)
    template = np.empty((length, len(KNOWN_CHANNELS)), dtype=np.float32)
    template[:, 0] = np.nan
    template[:, 1] = 0.0
    template[:, 2] = 1.0
    template[:, 3] = 0.0
    template[:, 4:] = local_clock(freq, buckets[:-1], span.time_zone)
    return template, bucket_start_ms(freq, buckets, span.time_zone)


def _lay(channels: NDArray[np.float32], edges: NDArray[np.int64], entry: CalendarEntry) -> None:
    overlap = np.minimum(edges[1:], entry.end_time) - np.maximum(edges[:-1], entry.start_time)
    touched = np.flatnonzero(overlap > 0)
    covered = (overlap[touched] / (edges[1:] - edges[:-1])[touched]).astype(np.float32)
    if entry.unit_price is not None:
        channels[touched, 0] = entry.unit_price
    for channel, value, rest in ((1, entry.promotion, 0.0), (2, entry.open, 1.0), (3, entry.event_name, 0.0)):
        if value is not None:
            state = 1.0 if value else 0.0
            blend = channels[touched, channel] + covered * (state - rest)
            channels[touched, channel] = np.clip(blend, 0.0, 1.0)
