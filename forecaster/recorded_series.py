"""A recording as series: its events counted into buckets by the worker's own functions."""

from __future__ import annotations

import numpy as np

from feature_store.calendar_time import ShopCalendar, bucket_of
from feature_store.events import ORDER_ACTIONS, EventBatch
from feature_store.features import FEATURES, UNITS_PER_ONE, bucket_rows
from feature_store.recording_files import Recording
from forecaster.recorded import last_time_ms, recorded_events, split_by_zone
from forecaster.series import SeriesTable
from forecaster.series_cells import Layout, Spans


def recorded_series(
    recording: Recording, freq: str, calendar: ShopCalendar, layout: Layout | None = None
) -> list[SeriesTable]:
    """A recording's items, one table for each time zone that has any.

    Raises:
        RecordingError: it holds no orders, or is damaged.
    """
    parts = split_by_zone(recorded_events(recording), calendar)
    horizon = (layout or Layout()).horizon
    return [counted_series(events, freq, zone, horizon=horizon) for zone, events in parts]


def counted_series(
    events: EventBatch, freq: str, time_zone: str, *, end_ms: int | None = None, horizon: int = 0
) -> SeriesTable:
    """Events of a shop without locations, counted into buckets: the channels are those that a worker has. Products are
    named by their item_id, as `recorded.split_by_zone` does it.

    A series begins with its item's first order line. The last bucket is the one before that which holds `end_ms`, the
    end of the record (None: its newest event), for that one is not over. There are `horizon` cells after it, of which
    nothing is known.
    """
    calendar = ShopCalendar(time_zone)
    end_ms = last_time_ms(events) if end_ms is None else end_ms
    end = int(bucket_of(freq, np.array([end_ms]), time_zone)[0])
    orders = events.action <= max(ORDER_ACTIONS)
    first = np.full(len(events.series), end, dtype=np.int64)
    np.minimum.at(first, events.series_index[orders], bucket_of(freq, events.event_time_ms[orders], time_zone))
    items = np.flatnonzero(first < end)
    lengths = end - first[items] + horizon
    spans = Spans(first[items], np.concatenate([[0], np.cumsum(lengths)]), end)
    place = np.full(len(events.series), -1, dtype=np.int64)
    place[items] = np.arange(len(items))
    rows = bucket_rows(events, freq, calendar)
    inside = (place[rows.item] >= 0) & (rows.bucket >= first[rows.item]) & (rows.bucket < end)
    cell = spans.offsets[place[rows.item[inside]]] + rows.bucket[inside] - first[rows.item[inside]]
    of_future = np.arange(horizon) - horizon + spans.offsets[1:, None]
    columns = {}
    for channel, feature in enumerate(FEATURES):
        column = np.zeros(int(spans.offsets[-1]), dtype=np.float32)
        column[cell] = (rows.values[inside, channel] / UNITS_PER_ONE[channel]).astype(np.float32)
        column[of_future] = np.nan
        columns[feature.name] = column
    nobody = np.zeros(len(items), dtype=np.int64)
    return SeriesTable(
        freq=freq,
        time_zone=time_zone,
        item_ids=tuple(events.series[s][0] for s in items.tolist()),
        first_bucket=spans.first,
        offsets=spans.offsets,
        units=columns.pop("units"),
        columns=columns,
        category_code=nobody,
        brand_code=nobody,
        launch_bucket=spans.first.copy(),
    )
