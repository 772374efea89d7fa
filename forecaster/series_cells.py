"""From rows in any order to the flat cells of a SeriesTable: which buckets each item has, and what is in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.known_future import KNOWN_CHANNELS
from forecaster.contract import PAST_CHANNELS
from forecaster.table_columns import Rows, SeriesFileError

Absent = Literal["zero", "missing"]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_CELLS_AT_ONCE = 1 << 22
_NEVER = np.iinfo(np.int32).max
# Of a bucket that has no row. Known channels stay NaN, which a window takes for their default.
_OF_PAST = frozenset(PAST_CHANNELS)
_ALWAYS_AVAILABLE = 1.0
# What a table of the future may say of a bucket: nothing that is only counted afterwards.
ONLY_PAST = _OF_PAST | {"available_fraction", "rating", "one_off"}


class Layout(NamedTuple):
    """How gaps are filled, and how far series reach.

    absent: a bucket without a row between an item's first and the table's last one: nothing was sold, or nobody knows.
    horizon: buckets after the table's last known units that every series has cells for, with the last price carried on.
    """

    absent: Absent = "zero"
    horizon: int = 0


class Spans(NamedTuple):
    """Buckets of each item: from `first` on, the cells offsets[i] to offsets[i + 1]. `end`: after the table's last
    bucket with known units."""

    first: Integers
    offsets: Integers
    end: int

    @property
    def lengths(self) -> Integers:
        """Cells of each item."""
        return np.diff(self.offsets)


def lay_out(rows: Rows, items: int, launch: Integers, ahead: int, horizon: int) -> Spans:
    """Each item begins with its first bucket with units above 0; with its launch, where that is told and earlier (at
    the table's first bucket at most); with its first row, where it never sold.

    Args:
        rows: all of the table, with `units`.
        launch: int64 (item,): bucket of the launch; below 0 = not told.
        ahead: bucket after the last one of which the future is told.

    Raises:
        ValueError: no units are known at all.
    """
    assert rows.item is not None
    bucket, units = rows.bucket, rows.values["units"]
    known = np.isfinite(units)
    if not known.any():
        raise ValueError("no row has units: at least one bucket of the past must be known")
    end = int(bucket[known].max()) + 1
    first_row = np.full(items, _NEVER, dtype=np.int32)
    np.minimum.at(first_row, rows.item, bucket)
    sold = units > 0
    first_sale = np.full(items, _NEVER, dtype=np.int32)
    np.minimum.at(first_sale, rows.item[sold], bucket[sold])
    first = np.where(first_sale < _NEVER, first_sale, first_row).astype(np.int64)
    launched = np.maximum(launch, int(bucket.min()))
    first = np.where((launch >= 0) & (launched < first), launched, first)
    last = np.full(items, max(end + horizon, ahead), dtype=np.int64)
    np.maximum.at(last, rows.item, bucket.astype(np.int64) + 1)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(last - first, 0))])
    return Spans(first, offsets, end)


def fill(rows: Rows, spans: Spans, absent: Absent, describe: Callable[[int, int], str]) -> dict[str, Floats]:
    """Flat columns of the rows' values, `units` among them; empties `rows.values` on the way to save memory.

    `describe(item, bucket)` names a row in messages.

    Raises:
        SeriesFileError: two rows are of the same item and bucket.
    """
    assert rows.item is not None
    cells = int(spans.offsets[-1])
    cell, kept = _places(rows, spans)
    present = np.zeros(cells, dtype=np.bool_)
    present[cell] = True
    if np.count_nonzero(present) != len(cell):
        raise SeriesFileError(_repeated(rows, kept, cell, describe))
    missing = np.flatnonzero(~present & _before_end(spans))
    del present
    columns = {}
    for name in list(rows.values):
        values = rows.values.pop(name)
        column = np.full(cells, np.nan, dtype=np.float32)
        column[cell] = values if kept is None else values[kept]
        if absent == "zero" and name in _OF_PAST:
            column[missing] = 0.0
        elif name == "available_fraction":
            column[missing] = _ALWAYS_AVAILABLE
        columns[name] = column
    return columns


def _places(rows: Rows, spans: Spans) -> tuple[Integers, Integers | None]:
    """Cell of each row that is not before its item's beginning, and which rows these are (None = all)."""
    assert rows.item is not None
    cell = rows.bucket - spans.first[rows.item]
    inside = (cell >= 0) & (cell < spans.lengths[rows.item])
    if inside.all():
        cell += spans.offsets[rows.item]
        return cell, None
    kept = np.flatnonzero(inside)
    return cell[kept] + spans.offsets[rows.item[kept]], kept


def _repeated(rows: Rows, kept: Integers | None, cell: Integers, describe: Callable[[int, int], str]) -> str:
    assert rows.item is not None
    order = np.argsort(cell, kind="stable")
    again = order[1:][cell[order[1:]] == cell[order[:-1]]]
    row = int(again.min()) if kept is None else int(kept[again.min()])
    named = describe(int(rows.item[row]), int(rows.bucket[row]))
    return (
        f"row {row + 1}: {named} has a row already ({len(again):,} such rows in all). Add the units of such rows up: "
        "one row an item and bucket"
    )


def _before_end(spans: Spans) -> NDArray[np.bool_]:
    """Cells of buckets before the end of the known units: bool (cell,)."""
    known = np.clip(spans.end - spans.first, 0, spans.lengths)
    edges = np.zeros(int(spans.offsets[-1]) + 1, dtype=np.int8)
    has = np.flatnonzero(spans.lengths > 0)
    # Two edges may fall on one cell: an item's end is the next one's beginning.
    np.add.at(edges, spans.offsets[:-1][has], 1)
    np.add.at(edges, (spans.offsets[:-1] + known)[has], -1)
    return np.cumsum(edges[:-1], dtype=np.int8).astype(np.bool_)


def tell(columns: dict[str, Floats], rows: Rows, spans: Spans, describe: Callable[[int, int], str]) -> None:
    """What a table of the future says, into cells of which nothing is known yet. In place.

    Raises:
        SeriesFileError: two rows are of the same item and bucket.
    """
    cells = int(spans.offsets[-1])
    for name in rows.values:
        if name not in columns:
            columns[name] = np.full(cells, np.nan, dtype=np.float32)
    if rows.item is None:
        _tell_all(columns, rows, spans, describe)
        return
    cell, kept = _places(rows, spans)
    if len(np.unique(cell)) != len(cell):
        raise SeriesFileError(_repeated(rows, kept, cell, describe))
    for name, told in rows.values.items():
        values, column = told if kept is None else told[kept], columns[name]
        column[cell] = np.where(np.isnan(column[cell]), values, column[cell])


def _tell_all(columns: dict[str, Floats], rows: Rows, spans: Spans, describe: Callable[[int, int], str]) -> None:
    """Rows that hold for every item."""
    if not len(rows.bucket):
        return
    first, last = int(rows.bucket.min()), int(rows.bucket.max())
    if len(np.unique(rows.bucket)) != len(rows.bucket):
        buckets, counts = np.unique(rows.bucket, return_counts=True)
        raise SeriesFileError(f"{describe(-1, int(buckets[counts > 1][0]))} has two rows: one row a bucket")
    for cells, bucket, _ in blocks(spans):
        inside = (bucket >= first) & (bucket <= last)
        for name, told in rows.values.items():
            by_bucket = np.full(last - first + 2, np.nan, dtype=np.float32)
            by_bucket[rows.bucket - first] = told
            values = by_bucket[np.where(inside, bucket - first, last - first + 1)]
            column = columns[name][cells]
            column[:] = np.where(np.isnan(column), values, column)


def blocks(spans: Spans) -> list[tuple[slice, Integers, Integers]]:
    """Whole items, some millions of cells at a time: (cells, bucket of each, first cell of each one's item, counted
    from the block's own)."""
    out = []
    item, items = 0, len(spans.first)
    while item < items:
        end = int(np.searchsorted(spans.offsets, spans.offsets[item] + _CELLS_AT_ONCE, side="right")) - 1
        end = min(max(end, item + 1), items)
        start, lengths = int(spans.offsets[item]), spans.lengths[item:end]
        begins = np.repeat(spans.offsets[item:end] - start, lengths)
        bucket = np.arange(len(begins)) - begins + np.repeat(spans.first[item:end], lengths)
        out.append((slice(start, int(spans.offsets[end])), bucket, begins))
        item = end
    return out


def carry_forward(column: Floats, spans: Spans) -> None:
    """Where a value is NaN the last one of the same item before it, in place."""
    for cells, _, begins in blocks(spans):
        own = column[cells]
        last = np.maximum.accumulate(np.where(np.isfinite(own), np.arange(len(own)), -1))
        found = last >= begins
        own[found] = own[last[found]]


def add_rating_sum(columns: dict[str, Floats]) -> None:
    """`rating`, a bucket's mean, becomes the `rating_sum` of models; it needs `review_count`, else each counts as one
    review. In place."""
    rating = columns.pop("rating", None)
    if rating is None or "rating_sum" in columns:
        return
    rated = np.isfinite(rating) & (rating > 0)
    if "review_count" not in columns:
        columns["review_count"] = rated.astype(np.float32)
    columns["rating_sum"] = np.where(rated, rating * columns["review_count"], np.float32(0))


def is_covariate(name: str) -> bool:
    """Whether a column of numbers has no meaning in the contract, so that only a model trained on it reads it."""
    return (
        name not in _OF_PAST and name not in KNOWN_CHANNELS and name not in ("available_fraction", "one_off", "rating")
    )


def kept_names(names: Mapping[str, object] | tuple[str, ...]) -> list[str]:
    """Without the clock's channels, which are worked out from the bucket itself."""
    clock = KNOWN_CHANNELS[KNOWN_CHANNELS.index("hour_of_day") :]
    return [name for name in names if name not in clock]
