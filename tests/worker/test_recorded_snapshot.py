"""A recording that starts from a snapshot gives the forecasts of one that holds everything from the start."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from feature_store.recording_files import Recording
from feature_store.recording_manifest import load_manifest, save_manifest
from feature_store.snapshot_files import About, CalendarRecord, SnapshotWriter
from feature_store.snapshots import save_partition
from feature_store.store import FeatureStore
from tests.worker.recordings import Recorded, write_recording
from worker.backtest import BacktestOptions, run_backtest
from worker.backtest_lanes import LaneJob, run_lanes
from worker.backtest_variants import parse_variants
from worker.errors import BacktestError
from worker.recorded_snapshot import FOLDER, keep_copy, with_calendar
from worker.settings import Settings, load_settings
from worker.snapshot import meaning_of

_ORDERS, _CALENDAR = "shop.orders.v1", "shop.calendar_global.v1"
_PARTITIONS = {_ORDERS: 2, _CALENDAR: 1}
_HOUR_MS = 3_600_000
_BEGIN_MS = int(dt.datetime(2026, 3, 2, tzinfo=dt.UTC).timestamp()) * 1000
_SPLIT_MS = _BEGIN_MS + 60 * _HOUR_MS
_SHUT = {"event_time": _BEGIN_MS, "entries": [{"start_time": _SPLIT_MS, "end_time": _SPLIT_MS + 1, "open": False}]}


def _orders() -> list[Recorded]:
    rng = random.Random(3)
    found = []
    for n in range(84 * 3):  # three an hour, so that nothing is to be told at an hour without any
        time_ms, product_id = _BEGIN_MS + n * _HOUR_MS // 3, f"p{rng.randrange(6)}"
        value = {"event_time": time_ms, "product_id": product_id, "quantity": rng.randint(1, 5), "unit_price": 2}
        found.append(Recorded(_ORDERS, product_id, value | {"event_id": f"e{n}"}, time_ms))
    # Sent again after the snapshot: its id is in there.
    again = found[170]
    assert again.timestamp_ms < _SPLIT_MS
    return [*found, again._replace(timestamp_ms=_SPLIT_MS + 5 * _HOUR_MS)]


def _write(path: Path, records: Sequence[Recorded]) -> Recording:
    write_recording(path, sorted(records, key=lambda record: record.timestamp_ms), _PARTITIONS)
    return Recording.open(path)


async def _snapshot(early: Recording, settings: Settings, folder: Path) -> None:
    """What a worker would have saved that had counted the early records."""
    await run_lanes(LaneJob(early.path, (0, 1), settings), None)
    store, writer = FeatureStore(**settings.store_options()), SnapshotWriter(folder)
    writer.add_calendar([CalendarRecord(b"shop", msgspec.json.encode(_SHUT), _BEGIN_MS)])
    for partition in range(settings.partition_count):
        assert await save_partition(store, writer, partition) is not None
    writer.close(About(store.namespace, store.partition_count, store.forecast_freqs, meaning_of(settings), False))
    await store.close()


@pytest.fixture
def recordings(redis_url: str, tmp_path: Path) -> tuple[Recording, Recording]:
    """All of it; and what comes after the snapshot, with the snapshot."""
    orders = _orders()
    calendar = Recorded(_CALENDAR, "shop", _SHUT, _BEGIN_MS)
    early = _write(tmp_path / "early", [record for record in orders if record.timestamp_ms < _SPLIT_MS])
    settings = load_settings({"SHELFCAST_REDIS_URL": redis_url, "SHELFCAST_PARTITION_COUNT": "2"})
    asyncio.run(_snapshot(early, settings, tmp_path / "snapshot"))
    late = _write(tmp_path / "late", [record for record in orders if record.timestamp_ms >= _SPLIT_MS])
    keep_copy(tmp_path / "snapshot", late.path)
    manifest = load_manifest(late.path)
    manifest.snapshot = FOLDER
    save_manifest(late.path, manifest)
    return _write(tmp_path / "whole", [calendar, *orders]), Recording.open(late.path)


def _forecasts(recording: Recording, output: Path, from_ms: int | None) -> list[dict[str, Any]]:
    variants = parse_variants(["empirical"], ["forecast_freqs=1h,1d"], {}, recording)
    run_backtest(recording, variants, BacktestOptions(output, from_ms=from_ms, processes=1, keep_forecasts=True))
    rows = [row for path in sorted(output.glob("forecasts/*/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: (row["item_id"], row["freq"], row["cutoff_ms"]))


def test_it_forecasts_as_if_all_had_been_recorded(recordings: tuple[Recording, Recording], tmp_path: Path) -> None:
    whole, late = recordings
    assert late.verify() == []
    found = _forecasts(late, tmp_path / "a", None)
    assert len(found) > 100
    assert found == _forecasts(whole, tmp_path / "b", _SPLIT_MS + 1)


def test_its_calendar_comes_before_its_records(recordings: tuple[Recording, Recording]) -> None:
    whole, late = recordings
    stretches = list(with_calendar(late.merged(), late, _CALENDAR))
    first = stretches[0]
    assert (first.topics[first.topic[0]], first.keys[0], first.due_ms[0]) == (_CALENDAR, b"shop", first.due_ms[1])
    assert sum(len(s.keys) for s in stretches) == late.rows(_ORDERS) + 1
    assert sum(len(s.keys) for s in with_calendar(whole.merged(), whole, _CALENDAR)) == whole.rows(_ORDERS) + 1


def test_a_snapshot_that_means_something_else_is_refused(
    recordings: tuple[Recording, Recording], tmp_path: Path
) -> None:
    _, late = recordings
    variants = parse_variants(["empirical"], ["time_zone=Europe/London"], {}, late)
    with pytest.raises(BacktestError, match="was taken under time_zone = 'UTC'"):
        run_backtest(late, variants, BacktestOptions(tmp_path / "out", processes=1))
