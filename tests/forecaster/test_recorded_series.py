"""Events as series: windows of the table equal those that the worker's own functions give of the events."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from feature_store.calendar_time import ShopCalendar, bucket_of, bucket_start_ms
from feature_store.items import ProductState
from feature_store.known_future import KNOWN_CHANNELS
from feature_store.recording_files import (
    Manifest,
    RecordColumns,
    Recording,
    RecordingError,
    RecordingWriter,
    TopicEntry,
)
from forecaster.contract import PAST_CHANNELS, WINDOWS
from forecaster.dataset import History, Window
from forecaster.recorded_series import counted_series, recorded_series
from forecaster.series import SeriesTable
from forecaster.series_cells import Layout
from forecaster.table_files import read_series
from tests.forecaster.builders import ZONE, small_shop
from tests.forecaster.tables import cells_of, write_table

HOUR_MS = 3_600_000


def cutoff_ms(freq: str) -> int:
    """A bucket's start: 09:00 on a summer's day, its midnight, the midnight of that week's Monday."""
    hour = 9 if freq == "1h" else 0
    return int(dt.datetime(2022, 8, 8, hour, tzinfo=ZoneInfo(ZONE)).timestamp()) * 1000


def history_of(table: SeriesTable) -> History:
    """The same shop with no calendar, each product launched where its series begins."""
    shop = small_shop()
    launched = bucket_start_ms(table.freq, table.first_bucket, ZONE)
    by_item = dict(zip(table.item_ids, launched.tolist(), strict=True))
    products = [ProductState(launch_ms=by_item.get(product_id)) for product_id, _ in shop.batch.series]
    return History(shop.batch, ShopCalendar(ZONE), shop.end_ms, products)


def both_windows(table: SeriesTable) -> tuple[Window, Window]:
    """At one cutoff, of all that are items by then: (of the table, of the events)."""
    history, at_ms = history_of(table), cutoff_ms(table.freq)
    running = bucket_of(table.freq, np.array([at_ms]), ZONE)
    rows = np.flatnonzero(table.first_bucket < running)
    series = np.array([history.item_ids.index(table.item_ids[row]) for row in rows], dtype=np.int64)
    steps = WINDOWS[table.freq].max_prediction_length
    return (
        table.windows(rows, np.repeat(running, len(rows)), steps),
        history.window(table.freq, at_ms, series, steps),
    )


def assert_same(of_table: Window, of_events: Window) -> None:
    for name in ("context", "available_fraction", "known", "running", "elapsed_fraction", "freq"):
        got, expected = getattr(of_table.inputs, name), getattr(of_events.inputs, name)
        assert np.array_equal(got, expected, equal_nan=True), name
    # A day lasts 23 or 25 hours twice a year, and a table counts days.
    assert of_table.inputs.static == pytest.approx(of_events.inputs.static, abs=1.01 / 24)
    assert np.array_equal(of_table.units, of_events.units, equal_nan=True)
    assert of_table.cumulative_units == pytest.approx(of_events.cumulative_units, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("freq", ["1h", "1d"])
def test_counted_events_give_the_very_tensors_of_the_events(freq: str) -> None:
    shop = small_shop()
    table = counted_series(shop.batch, freq, ZONE, end_ms=shop.end_ms)
    of_table, of_events = both_windows(table)
    assert len(of_table.units) > 30
    assert np.nansum(of_events.inputs.context, axis=(0, 1)).all()  # every channel has something to get wrong
    assert_same(of_table, of_events)


@pytest.mark.parametrize("freq", ["1h", "1d"])
def test_a_file_of_counts_gives_the_very_tensors_of_the_events(tmp_path: Path, freq: str) -> None:
    """Only buckets in which something was counted have rows; in any order."""
    shop = small_shop()
    counted = counted_series(shop.batch, freq, ZONE, end_ms=shop.end_ms)
    item = np.repeat(np.arange(len(counted)), np.diff(counted.offsets))
    bucket = np.arange(len(item)) - counted.offsets[item] + counted.first_bucket[item]
    columns = {"units": counted.units, **counted.columns}
    rows = np.flatnonzero(np.any([column > 0 for column in columns.values()], axis=0))
    rows = np.random.default_rng(4).permutation(rows)
    path = write_table(
        tmp_path / "series.parquet",
        item_id=[counted.item_ids[i] for i in item[rows]],
        bucket_start=pa.array(bucket_start_ms(freq, bucket[rows], ZONE)),
        **{name: pa.array(column[rows]) for name, column in columns.items()},
    )
    assert_same(*both_windows(read_series(path, freq, ZONE)))


def test_prices_of_a_table_stand_where_a_calendar_would_announce_them(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "series.parquet",
        item_id=["a"] * 3,
        bucket_start=[dt.date(2024, 3, day) for day in (4, 5, 6)],
        units=[2, 0, 3],
        unit_price=[4.0, 4.0, 5.0],
        promotion=[0, 0, 1],
    )
    table = read_series(path, "1d")
    running = table.first_bucket + 2
    known = table.windows(np.array([0]), running, 1).inputs.known[0]
    assert known[-3:, KNOWN_CHANNELS.index("unit_price")].tolist() == [4, 4, 5]
    assert known[-3:, KNOWN_CHANNELS.index("promotion")].tolist() == [0, 0, 1]
    revenue = table.windows(np.array([0]), running, 1).inputs.context[0, :, PAST_CHANNELS.index("revenue")]
    assert revenue[-2:].tolist() == [8, 0]


def write_recording(path: Path, events: list[tuple[str, dict[str, Any]]]) -> Recording:
    topics = sorted({topic for topic, _ in events})
    with RecordingWriter(path, Manifest("s", 0, {topic: TopicEntry(1) for topic in topics})) as writer:
        for topic in topics:
            own = [fields for of, fields in events if of == topic]
            times = np.array([fields["event_time"] for fields in own], dtype=np.int64)
            keys: list[bytes | None] = [fields["product_id"].encode() for fields in own]
            values: list[bytes | None] = [json.dumps(fields).encode() for fields in own]
            count = len(own)
            ones = np.ones(count, dtype=np.int8)
            writer.append(RecordColumns(topic, 0, np.arange(count), times, ones, keys, values, [None] * count))
    return Recording.open(path)


def order(product_id: str, hour: int, quantity: float, **more: Any) -> tuple[str, dict[str, Any]]:
    """`hour` of 4 March 2024 (UTC) and on."""
    time_ms = 1_709_510_400_000 + hour * HOUR_MS
    fields = {"event_time": time_ms, "product_id": product_id, "quantity": quantity, "unit_price": 2.5, "kind": "sale"}
    return "a.orders.v1", {**fields, **more}


def test_a_recordings_last_bucket_is_left_out_for_it_is_not_over(tmp_path: Path) -> None:
    view = {"event_time": 1_709_510_400_000 + 26 * HOUR_MS, "product_id": "a", "action": "view"}
    recording = write_recording(
        tmp_path / "r",
        [
            order("a", 3, 2),
            order("a", 30, 1, kind="return"),
            order("a", 50, 4, location_id="leeds"),
            order("b", 30, 7),
            order("b", 31, 500, one_off=True),
            order("c", 73, 1),
            order("a", 75, 9),
            ("a.clicks.v1", view),
        ],
    )
    (table,) = recorded_series(recording, "1d", ShopCalendar("UTC"), Layout(horizon=1))
    # Of the fourth day, in which the record ends, nothing is told; c began on it.
    assert dict(zip(table.item_ids, np.diff(table.offsets).tolist(), strict=True)) == {"a": 4, "a@leeds": 2, "b": 3}
    assert cells_of(table, "a") == [2, 0, 0, None]
    assert cells_of(table, "a", "returned_units") == [0, 1, 0, None]
    assert cells_of(table, "a", "views") == [0, 1, 0, None]
    assert cells_of(table, "a", "revenue") == [5, 0, 0, None]
    assert cells_of(table, "a@leeds") == [4, None]
    assert cells_of(table, "b") == [7, 0, None]
    assert cells_of(table, "b", "order_lines") == [1, 0, None]
    with pytest.raises(RecordingError, match="has no orders"):
        recorded_series(write_recording(tmp_path / "c", [("a.clicks.v1", view)]), "1d", ShopCalendar("UTC"))
