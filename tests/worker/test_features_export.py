"""`shelfcast features` on a small recording, against sums in plain Python."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from feature_store.features import FEATURE_INDEX, FEATURES
from forecaster.contract import WINDOWS, features_hash
from tests.worker.recordings import Recorded, write_recording
from worker.errors import BacktestError
from worker.features_export import command

_ORDERS = "shop.orders.v1"
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_START_MS = int(dt.datetime(2026, 5, 4, tzinfo=dt.UTC).timestamp() * 1000)
_DAYS = 6
_CLOSE_MS = 5_000  # after midnight a day stays open for so long

# On day d product n sells n + d pieces at 10:30, but for product 2, which sells every other day.
_SALES = {(n, d): n + d for n in range(1, 5) for d in range(_DAYS) if n != 2 or d % 2 == 0}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "shop"
    records = []
    for (n, day), units in sorted(_SALES.items(), key=lambda sale: (sale[0][1], sale[0][0])):
        time_ms = _START_MS + day * _DAY_MS + 10 * _HOUR_MS + 30 * 60_000
        order = {"event_time": time_ms, "product_id": f"p{n}", "quantity": units, "unit_price": 1.0}
        records.append(Recorded(_ORDERS, f"p{n}", order, time_ms))
    write_recording(path, records, {_ORDERS: 2})
    return path


def _export(recording: Path, output: Path, *arguments: str) -> list[dict[str, object]]:
    done = CliRunner().invoke(
        command, [str(recording), "--output", str(output), "--processes", "1", *arguments], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    rows: list[dict[str, object]] = pq.read_table(output).to_pylist()
    return rows


def test_rows_hold_the_past_until_the_cutoff_and_what_then_happened(recording: Path, tmp_path: Path) -> None:
    rows = _export(recording, tmp_path / "features.parquet", "--set", "touched_freqs=1h")
    closes = [_START_MS + day * _DAY_MS + _CLOSE_MS for day in range(1, _DAYS)]
    assert Counter(row["cutoff_ms"] for row in rows) == dict.fromkeys(closes, 4)
    length = WINDOWS["1d"].context_length
    for row in rows:
        n, day = int(str(row["item_id"])[1:]), (int(str(row["cutoff_ms"])) - _START_MS) // _DAY_MS
        context = np.array(row["context"], dtype=float).reshape(length, len(FEATURES))[:, FEATURE_INDEX["units"]]
        assert context[-day:].tolist() == [_SALES.get((n, d), 0) for d in range(day)]
        assert np.isnan(context[:-day]).all()
        ended = [_SALES.get((n, d), 0) for d in range(day, _DAYS - 1)]  # of the last day there are only the orders
        assert row["target"] == [*ended, *[None] * (28 - len(ended))]


def test_a_sample_is_the_same_rows_each_time(recording: Path, tmp_path: Path) -> None:
    key = ("item_id", "cutoff_ms")
    whole = [tuple(row[name] for name in key) for row in _export(recording, tmp_path / "whole.parquet")]
    samples = [
        [tuple(row[name] for name in key) for row in _export(recording, tmp_path / f"{n}.parquet", "--sample", "0.5")]
        for n in range(2)
    ]
    assert samples[0] == samples[1]
    assert 0 < len(samples[0]) < len(whole)
    assert set(samples[0]) < set(whole)


def test_cutoffs_are_as_far_apart_as_asked(recording: Path, tmp_path: Path) -> None:
    rows = _export(recording, tmp_path / "features.parquet", "--every", "7200", "--from", "2026-05-05")
    touched = [_START_MS + day * _DAY_MS + 12 * _HOUR_MS for day in range(1, _DAYS)]
    closes = [_START_MS + day * _DAY_MS + _CLOSE_MS for day in range(1, _DAYS)]
    assert {row["cutoff_ms"] for row in rows} == {*touched, *closes}


def test_the_file_says_which_features_it_holds(recording: Path, tmp_path: Path) -> None:
    _export(recording, tmp_path / "features.parquet")
    metadata = pq.read_schema(tmp_path / "features.parquet").metadata
    assert metadata[b"features_hash"].decode() == features_hash()
    assert (metadata[b"freq"], metadata[b"prediction_length"]) == (b"1d", b"28")


def test_a_frequency_that_is_not_forecast_is_refused(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(BacktestError, match="rows of 1d need it there"):
        _export(recording, tmp_path / "features.parquet", "--set", "forecast_freqs=1h")
