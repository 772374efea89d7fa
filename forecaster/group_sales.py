"""What groups of items sell together: their weekdays, holidays and seasons, which are clear in a group's sums where
each item's own are lost in noise. Forecasts of items are scaled so that the group's sums follow them.

By day a group is the items of one category and one brand (of M5: one department of one store). Two things are taken
from its past, and each is followed in part, by the means alone:

- how a day's sales relate to the other days of the forecast: a ridge regression of the logarithm of the group's daily
  sales on weekday, day of the month, time of year (Fourier terms), a straight trend, and the covariates known ahead
  with the day before and after them;
- how much all days together sell, next to the last weeks: as a year (52 weeks) ago, by the group's own sales where they
  went nearly as all groups' did. A group that has doubled had a reason, which will not come back with the season.

By week a group is the items of one category: each week is followed in part, by means and quantiles, to what the group
sold in the same week a year (52 weeks) ago, times what it has grown by since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import local_clock
from forecaster.rolling_origins import Contestants, Floats, Forecasts, Integers
from forecaster.series import SeriesTable

_YEAR, _RECENT = 364, 28  # days
_HALF_LIFE = 800.0  # of a past day's weight, days
_WAVES = 6
_MONTH_DAYS = np.array([1, 4, 8, 12, 16, 20, 24, 28])
_BUMP = 3.0  # days
# Ridge penalties: the rarer a regressor, the more evidence it takes.
_PENALTY = {"constant": 0.0, "trend": 0.5, "weekday": 0.5, "month_day": 2.0, "wave": 1.0, "known": 0.5, "around": 4.0}
_DAY_FOLLOWED, _TOTAL_FOLLOWED = 0.75, 0.7
_OWN = 1.05  # a group's season over four weeks differs from all groups' by at most this factor
_LEAST_DAYS = 56  # without as many, a group's past says nothing
_BOUNDS = (0.0, 3.0)
_YEAR_WEEKS, _GROWTH_WEEKS = 52, 13
_WEEK_FOLLOWED = 0.7
_PRIOR = 20.0  # units a week of a group that speak for the forecast as it is: few sales make no season
_GROWTH_BOUNDS, _WEEK_BOUNDS = (0.7, 1.4), (0.25, 4.0)

Values = NDArray[np.float64]


class GroupError(ValueError):
    """There are no groups that could be followed; says why and the remedy."""


class _Groups(NamedTuple):
    """Groups of the forecast items, over all days from the first one known to the forecast's last."""

    of_item: NDArray[np.intp]  # (item,)
    sales: Values  # (group, past day): units of its items
    known: Values  # (group, day, covariate): means over its items
    open: Values  # (group, day)
    days: Integers  # (day,) bucket numbers


class GroupScaled:
    """A contestant whose forecasts are scaled to what groups sell, see `follow_groups`."""

    def __init__(self, name: str, member: Contestants, known: Sequence[str] = ()) -> None:
        """
        Args:
            known: columns that are known ahead and say something of a day.
        """
        self.names = (name,)
        self.fallbacks: Mapping[str, int] = {}
        self._member, self._known = member, tuple(known)

    def forecast(
        self, table: SeriesTable, rows: Integers, running: int, prediction_length: int
    ) -> Mapping[str, Forecasts]:
        """See `rolling_origins.Contestants`."""
        said = next(iter(self._member.forecast(table, rows, running, prediction_length).values()))
        return {self.names[0]: follow_groups(table, rows, running, said, self._known)}


def follow_groups(
    table: SeriesTable, rows: Integers, running: int, said: Forecasts, known: Sequence[str] = ()
) -> Forecasts:
    """Forecasts scaled to what groups of items sell: of days the means, of weeks the quantiles too.

    Args:
        table: of days or weeks; what is sold from bucket `running` on is not looked at.
        rows: int64 (item,), the forecast series; only these make up the groups.
        said: of these series, from bucket `running` on.
        known: columns of the table, known ahead; of use by day alone.

    Raises:
        GroupError: the table's buckets are hours, or none of its items has a category or brand.
    """
    if table.freq not in ("1d", "1w"):
        raise GroupError(f"groups are looked at by day and by week, not by {table.freq}")
    if not (table.category_code[rows].any() or table.brand_code[rows].any()):
        raise GroupError(
            "no item has a category or a brand, so that there are no groups to follow: name them in a table of the "
            "items (--static)"
        )
    if table.freq == "1d":
        return said._replace(mean=scaled_means(table, rows, running, said.mean, known))
    factor = _week_factors(table, rows, running, said.mean.astype(np.float64))
    whole = (said.quantiles == said.quantiles.round()).all(axis=(1, 2), keepdims=True)
    quantiles = said.quantiles * factor[:, :, None]
    quantiles = np.where(whole, np.floor(quantiles + 0.5), quantiles)
    return Forecasts(quantiles.astype(np.float32), (said.mean * factor).astype(np.float32))


def _week_factors(table: SeriesTable, rows: Integers, running: int, mean: Values) -> Values:
    """What each item's weeks are multiplied by: float64 (item, step); 1 where nothing is known of a year ago."""
    steps = mean.shape[1]
    _, of_item = np.unique(table.category_code[rows], return_inverse=True)
    of_item = of_item.reshape(-1)
    groups = int(of_item.max()) + 1
    past = _last_cells(table, rows, running, 2 * _YEAR_WEEKS)
    now, before = past[:, -_GROWTH_WEEKS:], past[:, -_YEAR_WEEKS - _GROWTH_WEEKS : -_YEAR_WEEKS]
    both = np.isfinite(now) & np.isfinite(before)
    sums = [_summed(of_item, np.where(both, part, 0.0), groups).sum(axis=1) + _PRIOR for part in (now, before)]
    growth = np.clip(sums[0] / sums[1], *_GROWTH_BOUNDS)
    year_ago = past[:, -_YEAR_WEEKS:][:, np.arange(steps) % _YEAR_WEEKS]
    told = np.isfinite(year_ago)
    expected = growth[:, None] * _summed(of_item, np.where(told, year_ago, 0.0), groups)
    bottom_up = _summed(of_item, np.where(told, mean, 0.0), groups)
    factor = np.clip((expected + _PRIOR) / (bottom_up + _PRIOR), *_WEEK_BOUNDS) ** _WEEK_FOLLOWED
    return np.asarray(factor[of_item])


def _last_cells(table: SeriesTable, rows: Integers, running: int, count: int) -> Values:
    """Units of the last buckets before `running`, at least 0: float64 (item, count), NaN = not known."""
    out = np.full((len(rows), count), np.nan)
    for place, row in enumerate(rows.tolist()):
        known = min(running - int(table.first_bucket[row]), int(table.offsets[row + 1] - table.offsets[row]))
        last = int(table.offsets[row]) + known
        missing = running - int(table.first_bucket[row]) - known  # a series that ended before
        values = table.units[max(last - count, int(table.offsets[row])) : last]
        at = count - missing
        if at > 0:
            values = values[-at:]
            out[place, at - len(values) : at] = np.maximum(values, 0.0)
    return out


def scaled_means(
    table: SeriesTable, rows: Integers, running: int, mean: Floats, known: Sequence[str] = ()
) -> NDArray[np.float32]:
    """Means scaled to the groups' days and totals.

    Args:
        table: of days; what is sold from bucket `running` on is not looked at.
        rows: int64 (item,), the forecast series; only these make up the groups.
        mean: float32 (item, step), units.
        known: columns of the table, known ahead.

    Returns:
        float32 (item, step). Groups with less than eight weeks of past stay as they are, those with less than a year
        and four weeks keep their total.

    Raises:
        GroupError: the table's buckets are not days.
    """
    if table.freq != "1d":
        raise GroupError(f"groups are looked at by day, not by {table.freq}")
    steps = mean.shape[1]
    groups = _groups(table, rows, (running, steps), known)
    bottom_up = _summed(groups.of_item, mean.astype(np.float64), len(groups.sales))
    factor = np.ones_like(bottom_up)
    of_all = _as_a_year_ago(groups.sales.sum(axis=0), steps)
    for group, sales in enumerate(groups.sales):
        begun = int(np.argmax(sales > 0))
        if len(sales) - begun < _LEAST_DAYS or bottom_up[group].min() < 0 or not bottom_up[group].any():
            continue
        of_days = _days(groups, group, begun, steps)
        day = _relative(of_days) / np.maximum(_relative(bottom_up[group]), 1e-9)
        day = np.clip(day, *_BOUNDS) ** _DAY_FOLLOWED
        growth = np.clip(_as_a_year_ago(sales[begun:], steps), of_all / _OWN, of_all * _OWN)
        recent = sales[-_RECENT:].sum() * steps / _RECENT
        total = growth * recent / max((bottom_up[group] * day).sum(), 1e-9)
        factor[group] = day * (np.clip(total, 1 / 3, 3) ** _TOTAL_FOLLOWED if np.isfinite(total) else 1.0)
    return np.asarray(mean * factor[groups.of_item], dtype=np.float32)


def _relative(values: Values) -> Values:
    return np.asarray(values / max(values.mean(), 1e-9))


def _as_a_year_ago(sales: Values, steps: int) -> float:
    """What a day of the forecast sells next to one of the last weeks, as it was a year ago; NaN where nothing was sold
    then, or nothing is known."""
    if len(sales) < _YEAR + _RECENT:
        return np.nan
    before, after = sales[-_YEAR - _RECENT : -_YEAR].mean(), sales[len(sales) - _YEAR :][:steps].mean()
    return float(after / before) if before > 0 else np.nan


def _groups(table: SeriesTable, rows: Integers, span: tuple[int, int], known: Sequence[str]) -> _Groups:
    running, steps = span
    codes = np.stack([table.category_code[rows], table.brand_code[rows]], axis=1)
    _, of_item = np.unique(codes, axis=0, return_inverse=True)
    of_item = of_item.reshape(-1)
    first = int(table.first_bucket[rows].min())
    days = np.arange(first, running + steps)
    names = [name for name in (*known, "open") if name in table.columns]
    shape = (int(of_item.max()) + 1, len(days))
    sales, count = np.zeros(shape), np.zeros(shape)
    sums = {name: np.zeros(shape) for name in names}
    for group, row in zip(of_item.tolist(), rows.tolist(), strict=True):
        begin = int(table.first_bucket[row]) - first
        cells = slice(int(table.offsets[row]), int(table.offsets[row + 1]))
        length = min(cells.stop - cells.start, len(days) - begin)
        at, cells = slice(begin, begin + length), slice(cells.start, cells.start + length)
        sales[group, at] += np.nan_to_num(table.units[cells])
        count[group, at] += 1
        for name in names:
            sums[name][group, at] += np.nan_to_num(table.columns[name][cells])
    means = {name: values / np.maximum(count, 1) for name, values in sums.items()}
    opened = np.where(count > 0, means.pop("open"), 1.0) if "open" in means else np.ones(shape)
    of_known = np.stack(list(means.values()), axis=-1) if means else np.zeros((*shape, 0))
    return _Groups(of_item, sales[:, : running - first], of_known, opened, days)


def _summed(of_item: NDArray[np.intp], values: Values, groups: int) -> Values:
    out = np.zeros((groups, values.shape[1]))
    np.add.at(out, of_item, values)
    return out


def _days(groups: _Groups, group: int, begun: int, steps: int) -> Values:
    """What each day of the forecast sells next to the others, by the group's past: float64 (step,)."""
    past = len(groups.sales[group])
    regressors, penalty = _design(groups.days, groups.known[group])
    opened = groups.open[group] > 0
    learnt = np.flatnonzero(opened[:past] & (np.arange(past) >= begun))
    weight = np.exp2((learnt - past) / _HALF_LIFE)
    target = np.log(np.maximum(groups.sales[group, learnt], 0.5))
    weighted = regressors[learnt] * weight[:, None]
    normal = regressors[learnt].T @ weighted + np.diag(penalty + 1e-6)
    coefficients = np.linalg.solve(normal, weighted.T @ target)
    return np.where(opened[past:], np.exp(regressors[past:] @ coefficients), 0.0)[:steps]


def _design(days: Integers, known: Values) -> tuple[Values, Values]:
    """Regressors float64 (day, regressor), and the penalty of each."""
    clock = local_clock("1d", days, "UTC")
    weekday, month_day, year_day = clock[:, 1].astype(int), clock[:, 2], clock[:, 3]
    wave = 2 * np.pi * np.arange(1, _WAVES + 1) * year_day[:, None] / 365.25
    weekend = (weekday >= 5)[:, None]
    before, after = np.roll(known, -1, axis=0), np.roll(known, 1, axis=0)
    before[-1:], after[:1] = 0.0, 0.0
    parts: list[tuple[str, Any]] = [
        ("constant", np.ones((len(days), 1))),
        ("trend", (np.arange(len(days)) / 365.25)[:, None]),
        ("weekday", np.eye(7)[weekday]),
        ("month_day", np.exp(-(((month_day[:, None] - _MONTH_DAYS) / _BUMP) ** 2) / 2)),
        ("wave", np.hstack([np.sin(wave), np.cos(wave)])),
        ("known", np.hstack([known, known * weekend])),
        ("around", np.hstack([before, after])),
    ]
    penalty = np.concatenate([np.full(values.shape[1], _PENALTY[name]) for name, values in parts])
    return np.hstack([values for _, values in parts]), penalty
