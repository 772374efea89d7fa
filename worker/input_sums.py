"""Inputs: what forecasts are made from, summed over a lane's items day by day, to see it drift. Pure functions.

With the first forecast that an item gets in a bucket it is summed up what its inputs say of the bucket that has just
closed. The sums are whole numbers and stand beside those of scores, so that batches, restarts and workers do not
matter. What comes late of that bucket is not added any more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.features import FEATURE_INDEX
from feature_store.known_future import KNOWN_CHANNELS
from feature_store.score_state import RowName
from forecaster.contract import STATIC_CHANNELS
from forecaster.inputs import ModelInputs

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

INPUTS = "inputs"  # segment of the rows
_NO_VERSION, _STEP = "-", 1
_PAST = {"1h": 336, "1d": 56}  # buckets before the closed one that an item's usual price is of
_THOUSANDTHS = 1000
_MOST = 1e10  # of an item's number: sums stay exact
_MOST_LOG = 5.0
_PRICE, _PROMOTION = KNOWN_CHANNELS.index("unit_price"), KNOWN_CHANNELS.index("promotion")
_CATEGORY = STATIC_CHANNELS.index("category_code")

# In the order in which they are stored. Of the bucket that has closed unless said otherwise.
INPUT_SUMS: tuple[str, ...] = (
    "items",  # that were looked at
    "order_lines",
    "units",  # thousandths
    "returned_units",  # thousandths
    "log_price",  # thousandths: logarithm of the price paid over the item's own of before, at most 5 from 0
    "compared",  # items that have sold, and had before
    "views",
    "add_to_carts",
    "review_count",
    "rating_sum",
    "promoted",  # thousandths of items: share of the running bucket under a promotion
    "priced",  # items whose price in the running bucket is told by the calendar
    "log_listed",  # thousandths: logarithm of those prices over the item's own of before, at most 5 from 0
    "listed",  # items that have such a price, and sold before
    "uncategorised",  # items of no known category
)


class Bucket(NamedTuple):
    """freq: of the forecasts. closed: int64 (item,), days since 1970-01-01 of the bucket that has just closed."""

    freq: str
    closed: Integers


def input_sums(bucket: Bucket, inputs: ModelInputs, fresh: NDArray[np.bool_]) -> dict[RowName, dict[int, list[int]]]:
    """Rows to be added up, in the order of INPUT_SUMS.

    Args:
        inputs: of all items.
        fresh: bool (item,), which of them are forecast for the first time in their running bucket.
    """
    if not fresh.any():
        return {}
    added = np.rint(np.clip(_numbers(bucket.freq, inputs), -_MOST, _MOST)).astype(np.int64)
    rows: dict[RowName, dict[int, list[int]]] = {}
    for day in np.unique(bucket.closed[fresh]).tolist():
        own = fresh & (bucket.closed == day)
        rows[RowName(day, _NO_VERSION, INPUTS)] = {_STEP: added[own].sum(axis=0).tolist()}
    return rows


def _numbers(freq: str, inputs: ModelInputs) -> Floats:
    """float64 (item, INPUT_SUMS)."""
    context, length = inputs.context, inputs.context.shape[1]
    closed = np.nan_to_num(context[:, -1].astype(np.float64))
    past = np.nansum(context[:, -1 - _PAST[freq] : -1].astype(np.float64), axis=1)
    feature: dict[str, NDArray[Any]] = {name: closed[:, column] for name, column in FEATURE_INDEX.items()}
    usual = _price(past[:, FEATURE_INDEX["revenue"]], past[:, FEATURE_INDEX["units"]])
    paid = _price(feature["revenue"], feature["units"])
    listed, promotion = inputs.known[:, length, [_PRICE, _PROMOTION]].astype(np.float64).T
    columns: dict[str, NDArray[Any]] = {
        "items": np.ones(len(closed)),
        "units": feature["units"] * _THOUSANDTHS,
        "returned_units": feature["returned_units"] * _THOUSANDTHS,
        "log_price": _log_ratio(paid, usual) * _THOUSANDTHS,
        "compared": (paid > 0) & (usual > 0),
        "promoted": np.nan_to_num(promotion) * _THOUSANDTHS,
        "priced": ~np.isnan(listed),
        "log_listed": _log_ratio(listed, usual) * _THOUSANDTHS,
        "listed": (listed > 0) & (usual > 0),
        "uncategorised": inputs.static[:, _CATEGORY] == 0,
    }
    named = feature | columns
    return np.column_stack([named[name] for name in INPUT_SUMS]).astype(np.float64)


def _price(revenue: Floats, units: Floats) -> Floats:
    """Of a unit; 0 = not known."""
    return np.divide(revenue, units, out=np.zeros(len(units)), where=units > 0)


def _log_ratio(price: Floats, usual: Floats) -> Floats:
    """0 where one of them is not known."""
    known = (price > 0) & (usual > 0)
    ratio = np.divide(price, usual, out=np.ones(len(price)), where=known)
    return np.asarray(np.clip(np.log(ratio), -_MOST_LOG, _MOST_LOG))
