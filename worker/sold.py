"""What items have sold in buckets, from what a lane has read of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import week_of_day
from feature_store.features import FEATURE_INDEX, BucketRows

_UNITS = FEATURE_INDEX["units"]
_BUCKET_BITS = 32


def rows_of(freq: str, rows: BucketRows) -> BucketRows:
    """What was read, in buckets of the forecast's frequency: weeks are stored as days."""
    return rows._replace(bucket=week_of_day(rows.bucket)) if freq == "1w" else rows


def sold_in(rows: BucketRows, item: NDArray[np.int64], bucket: NDArray[np.int64]) -> NDArray[np.int64]:
    """Units sold of items in buckets, in thousandths: int64 (pair,). Exact, for it is summed in whole thousandths."""
    sold = np.zeros(len(item), dtype=np.int64)
    if len(item) and len(rows.item):
        pairs, place = np.unique(_pair(item, bucket), return_inverse=True)
        keys = _pair(rows.item, rows.bucket)
        at = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
        found = pairs[at] == keys
        sums = np.zeros(len(pairs), dtype=np.int64)
        np.add.at(sums, at[found], rows.values[found, _UNITS])
        sold = sums[place]
    return sold


def _pair(item: NDArray[np.int64], bucket: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for an item and a bucket."""
    return (item << _BUCKET_BITS) + bucket
