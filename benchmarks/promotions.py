"""dunnhumby's promotions, which a shop knows ahead: what is on display or in the mailer, by product, store and week."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.accuracy_data import numbers
from feature_store.calendar_time import bucket_start_ms
from forecaster.series import SeriesTable

_WEEKS = 53
_WEIGHED_WEEKS = 20  # which stores weigh how much is told by these, the first
_WEEK_MS = 604_800_000
_SECOND_WEEK_MS = int(np.datetime64("2017-01-02T04:00", "ms").astype(np.int64))  # the first one has a day


class Promotions(NamedTuple):
    """shares: float32 (product, week), of the shop's order lines those of stores where the product is promoted, 0 to 1.
    The first row is of products that never are, the first column of no week."""

    row_of: dict[str, int]
    shares: NDArray[np.float32]

    def added_to(self, table: SeriesTable) -> SeriesTable:
        """The table with a column `promotion`. A bucket is of the week that its middle lies in."""
        lengths = np.diff(table.offsets)
        series = np.repeat(np.arange(len(table)), lengths)
        bucket = np.arange(len(table.units)) + np.repeat(table.first_bucket - table.offsets[:-1], lengths)
        first = int(bucket.min())
        edges = bucket_start_ms(table.freq, np.arange(first, int(bucket.max()) + 2), table.time_zone)
        middle = ((edges[:-1] + edges[1:]) // 2)[bucket - first]
        week = np.clip((middle - _SECOND_WEEK_MS) // _WEEK_MS + 2, 1, _WEEKS)
        row = np.array([self.row_of.get(item_id, 0) for item_id in table.item_ids])
        return dataclasses.replace(table, columns={**table.columns, "promotion": self.shares[row[series], week]})


def dunnhumby_promotions(folder: Path) -> Promotions:
    """Display and mailer alike: any place in either counts."""
    sold = pq.read_table(folder / "dunnhumby_transactions.parquet", columns=["store_id", "week"])
    lines = numbers(sold["store_id"], "int64")[numbers(sold["week"], "int64") <= _WEIGHED_WEEKS]
    told = pq.read_table(folder / "dunnhumby_promotions.parquet")
    promoted = np.zeros(len(told), dtype=np.bool_)
    for name in ("display_location", "mailer_location"):
        place = told[name].combine_chunks()
        promoted |= np.asarray(place.indices) != place.dictionary.to_pylist().index("0")
    store_id, store = np.unique(numbers(told["store_id"], "int64")[promoted], return_inverse=True)
    product_id, product = np.unique(numbers(told["product_id"], "int64")[promoted], return_inverse=True)
    weight = np.bincount(np.searchsorted(store_id, lines[np.isin(lines, store_id)]), minlength=len(store_id))
    # Some rows are there twice.
    shape = (len(product_id) + 1, len(store_id), _WEEKS + 1)
    rows = np.ravel_multi_index((product + 1, store, numbers(told["week"], "int64")[promoted]), shape)
    product, store, week = np.unravel_index(np.unique(rows), shape)
    shares = np.zeros((shape[0], shape[2]))
    np.add.at(shares, (product, week), (weight / weight.sum())[store])
    row_of = {str(one): row for row, one in enumerate(product_id.tolist(), start=1)}
    return Promotions(row_of, shares.astype(np.float32))
