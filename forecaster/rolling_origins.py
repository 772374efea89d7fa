"""Rolling origins: where in a table of series forecasts are made, what then happened, and who makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from forecaster.series import SeriesTable

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class Origin(NamedTuple):
    """One place from which to look ahead.

    Attributes:
        running: bucket number of the first step; nothing from its start on is known to who forecasts.
        rows: int64 (item,): the series that had begun by then, and of which at least one step is known.
    """

    running: int
    rows: Integers


class Forecasts(NamedTuple):
    """What a contestant said, in units: quantiles float32 (item, step, quantile), ascending over QUANTILE_LEVELS; mean
    float32 (item, step). Never NaN."""

    quantiles: Floats
    mean: Floats


class Contestants(Protocol):
    """One or several who forecast together."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of each, as the tables show them."""

    @property
    def fallbacks(self) -> Mapping[str, int]:
        """By name how many forecasts were somebody else's, since the method itself had no answer; 0 = left out."""

    def forecast(
        self, table: SeriesTable, rows: Integers, running: int, prediction_length: int
    ) -> Mapping[str, Forecasts]:
        """Forecasts of the series `rows` by name, from what was known at the start of bucket `running`."""


def origins_of(table: SeriesTable, count: int, stride: int, prediction_length: int) -> list[Origin]:
    """The last `count` origins whose steps are all within the table, oldest first, `stride` buckets apart.

    Raises:
        ValueError: the table is too short for so many.
    """
    end = int(table.end_bucket.max()) if len(table) else 0
    begin = int(table.first_bucket.min()) if len(table) else 0
    runnings = [end - prediction_length - stride * n for n in reversed(range(count))]
    if not len(table) or runnings[0] <= begin:
        room = max((end - prediction_length - 1 - begin) // stride + 1, 0) if len(table) else 0
        raise ValueError(
            f"{count} origins {stride} buckets apart, each with {prediction_length} buckets after it, do not fit into "
            f"{end - begin} buckets of {table.freq}: at most {room} do"
        )
    found = []
    for running in runnings:
        known = np.isfinite(targets(table, np.arange(len(table)), running, prediction_length)).any(axis=1)
        found.append(Origin(running, np.flatnonzero(known & (table.first_bucket < running))))
    return found


def targets(table: SeriesTable, rows: Integers, running: int, prediction_length: int) -> Floats:
    """What then happened: float32 (item, step), NaN where it is not known."""
    at = running + np.arange(prediction_length) - table.first_bucket[rows, None]
    inside = (at >= 0) & (at < np.diff(table.offsets)[rows, None])
    cells = np.where(inside, table.offsets[rows, None] + at, 0)
    return np.where(inside, table.units[cells], np.float32(np.nan))


def seasonal_scale(table: SeriesTable, rows: Integers, running: int, season: int) -> NDArray[np.float64]:
    """Scale of MASE and SQL at an origin, of each series from its first cell on: float64 (item,). The same as
    `accuracy.seasonal_error`, without a matrix of every series' whole past."""
    step = np.abs(table.units[season:].astype(np.float64) - table.units[:-season] if season < len(table.units) else [])
    known = np.isfinite(step)
    # sums[c] is over the steps that end before cell season + c
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, step, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    begin = table.offsets[rows]
    end = np.clip(begin + running - table.first_bucket[rows], begin, table.offsets[rows + 1])
    usable = end - begin > season
    low, high = np.where(usable, begin, 0), np.where(usable, end - season, 0)
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def filled_past(table: SeriesTable, row: int, running: int, season: int, longest: int) -> Floats:
    """A series' units before an origin, for libraries that take no gaps: float32 (bucket,), at most the `longest` last
    ones. What is not known is taken to be as a season before, else 0."""
    begin = int(table.offsets[row])
    end = min(begin + max(running - int(table.first_bucket[row]), 0), int(table.offsets[row + 1]))
    units = table.units[max(begin, end - longest) : end].copy()
    for cell in np.flatnonzero(~np.isfinite(units)).tolist():
        units[cell] = units[cell - season] if cell >= season else 0.0
    return units
