"""Promotions of dunnhumby as a column of a table."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.promotions import dunnhumby_promotions
from forecaster.series import SeriesTable

_MONDAY = (dt.date(2017, 1, 9) - dt.date(1970, 1, 1)).days  # week 3 begins at 04:00


def _write(folder: Path) -> None:
    """Three of four order lines are of store 1, the fourth of store 2; a third store has no promotions at all."""
    lines = {"store_id": [1, 1, 1, 2, 3, 2], "week": [1, 2, 3, 3, 3, 40]}
    sold = pa.table({name: pa.array(values, pa.int32()) for name, values in lines.items()})
    pq.write_table(sold, folder / "dunnhumby_transactions.parquet")
    told = {"product_id": [7, 7, 7, 8, 8], "store_id": [1, 2, 2, 2, 2], "week": [3, 4, 3, 2, 2]}
    columns = {name: pa.array(values, pa.int32()) for name, values in told.items()}
    columns["display_location"] = pa.array(["0", "A", "0", "9", "1"]).dictionary_encode()
    columns["mailer_location"] = pa.array(["D", "0", "0", "0", "0"]).dictionary_encode()
    pq.write_table(pa.table(columns), folder / "dunnhumby_promotions.parquet")


def _table(freq: str, first: int, cells: int) -> SeriesTable:
    ids = ("7", "8", "9")
    count = len(ids) * cells
    nobody = np.zeros(len(ids), dtype=np.int64)
    return SeriesTable(
        freq=freq,
        time_zone="UTC",
        item_ids=ids,
        first_bucket=np.full(len(ids), first),
        offsets=np.arange(len(ids) + 1) * cells,
        units=np.zeros(count, dtype=np.float32),
        columns={"order_lines": np.zeros(count, dtype=np.float32)},
        category_code=nobody,
        brand_code=nobody,
        launch_bucket=np.full(len(ids), first),
    )


def test_days_know_the_share_of_the_shop_that_promotes_the_product(tmp_path: Path) -> None:
    _write(tmp_path)
    table = dunnhumby_promotions(tmp_path).added_to(_table("1d", _MONDAY - 1, 9))
    found = table.columns["promotion"].reshape(3, 9)
    # Sunday is of week 2, then seven days of week 3, then a Monday of week 4. Only promoting stores have a weight.
    assert found[0] == pytest.approx([0, *[0.75] * 7, 0.25])
    assert found[1] == pytest.approx([0.25, *[0] * 8])
    assert not found[2].any()
    assert "order_lines" in table.columns


def test_weeks_turn_over_at_four_in_the_morning(tmp_path: Path) -> None:
    _write(tmp_path)
    table = dunnhumby_promotions(tmp_path).added_to(_table("1h", 24 * _MONDAY + 3, 2))
    assert table.columns["promotion"].reshape(3, 2)[0] == pytest.approx([0, 0.75])
