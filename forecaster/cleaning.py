"""Cleaning of series before a model sees them: what is left out or mended, and an account of it.

Every rule works item by item and on closed buckets only. A cell that a rule takes out becomes "not known" (NaN), which
models are used to; nothing is invented unless asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from forecaster.series import SeriesTable

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Of so few buckets with sales nobody can tell what is out of the ordinary.
_LEAST_SELLING = 8
# A selling bucket's spread is at least that of a Poisson count, so that the second piece of an item that sells one at a
# time is not an outlier.
_MAD_TO_SIGMA = 1.4826
# A run of zeros is a stock-out when an item that sells as often as this one would show any so long in its whole life
# with at most this probability.
_IMPROBABLE = 1e-3
_COUNTED = ("order_lines", "revenue")  # go with the units of their bucket


@dataclass(frozen=True)
class CleaningRules:
    """What to clean; as it stands, nothing but negative units.

    Attributes:
        negative: units below 0: `returns` = gross sales were 0 and the rest came back (into returned_units),
            `missing` = not known, `keep`. Models take units for gross sales and want none below 0.
        missing: buckets whose units are not known, between others: `leave`, `zero`, `interpolate` (a line from
            neighbour to neighbour). Goes before the rules below: what they take out stays out.
        outliers: too high a total for the item's buckets with sales: `none`, `iqr` (above the third quartile by
            `outlier_factor` interquartile ranges), `zscore` (above the median by that many robust standard deviations,
            1.4826 x the median absolute deviation). There are no outliers below: an item's bad day is real.
        outlier_factor: see there; 0 = 3 for iqr, 6 for zscore.
        outlier_action: `mask` = not known, `clip` = lowered to the limit.
        stock_outs: buckets without sales in which the item could not be bought: `none`; `recorded` = those with
            available_fraction 0; `suspected` = also runs of zeros between sales, improbably long for this item.
        one_off: buckets that are not to be learnt from: `none`; `flagged` = whose `one_off` is not 0; `large` = also
            above `one_off_factor` times the item's median bucket with sales.
        one_off_factor: see there.
    """

    negative: Literal["returns", "missing", "keep"] = "returns"
    missing: Literal["leave", "zero", "interpolate"] = "leave"
    outliers: Literal["none", "iqr", "zscore"] = "none"
    outlier_factor: float = 0.0
    outlier_action: Literal["mask", "clip"] = "mask"
    stock_outs: Literal["none", "recorded", "suspected"] = "none"
    one_off: Literal["none", "flagged", "large"] = "none"
    one_off_factor: float = 20.0


class Change(NamedTuple):
    """What one rule did: buckets and items it touched, units of these before and after (what is not known counts 0)."""

    rule: str
    buckets: int
    items: int
    units_before: float
    units_after: float


@dataclass(frozen=True)
class CleaningReport:
    """What was changed, rule by rule in the order in which they went; rules that were off are not in it."""

    buckets: int
    items: int
    units_before: float
    units_after: float
    changes: tuple[Change, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "buckets": self.buckets,
            "items": self.items,
            "units_before": self.units_before,
            "units_after": self.units_after,
            "changes": [change._asdict() for change in self.changes],
        }

    def table(self) -> Table:
        """For a terminal."""
        table = Table("rule", *(["buckets", "items", "units before", "units after"]), title="Cleaning")
        for column in table.columns[1:]:
            column.justify = "right"
        for change in self.changes:
            table.add_row(
                change.rule,
                f"{change.buckets:,}",
                f"{change.items:,}",
                f"{change.units_before:,.0f}",
                f"{change.units_after:,.0f}",
            )
        table.add_section()
        table.add_row(
            "all series",
            f"{self.buckets:,}",
            f"{self.items:,}",
            f"{self.units_before:,.0f}",
            f"{self.units_after:,.0f}",
        )
        return table


def clean(table: SeriesTable, rules: CleaningRules) -> tuple[SeriesTable, CleaningReport]:
    """The table after the rules, and what they changed. The table given stays as it is.

    Raises:
        ValueError: a rule needs a column that the table lacks; names it.
    """
    work = _Work(table, rules)
    before, buckets = _total(table.units), int(np.isfinite(table.units).sum())
    changes = [work.apply(name, rule) for name, rule in _rules(rules, table.columns)]
    cleaned = dataclasses.replace(table, units=work.units, columns=work.columns)
    return cleaned, CleaningReport(buckets, len(table), before, _total(work.units), tuple(changes))


def _total(units: Floats) -> float:
    return float(np.nansum(units, dtype=np.float64))


_Rule = Callable[["_Work"], "_New"]


class _New(NamedTuple):
    """Units that cells get; NaN = not known."""

    cells: NDArray[np.intp]
    units: Floats


def _rules(rules: CleaningRules, columns: Collection[str]) -> Iterator[tuple[str, _Rule]]:
    if rules.negative != "keep":
        yield f"negative: {rules.negative}", _Work.negative
    if rules.missing != "leave":
        yield f"missing: {rules.missing}", _Work.missing
    if rules.one_off == "flagged" or (rules.one_off == "large" and "one_off" in columns):
        yield "one-off: flagged", _Work.flagged
    if rules.one_off == "large":
        yield f"one-off: over {rules.one_off_factor:g} x the median", _Work.large
    if rules.outliers != "none":
        yield f"outliers: {rules.outliers}, {rules.outlier_action}", _Work.outliers
    if rules.stock_outs == "recorded" or (rules.stock_outs == "suspected" and "available_fraction" in columns):
        yield "stock-outs: recorded", _Work.recorded_stock_outs
    if rules.stock_outs == "suspected":
        yield "stock-outs: suspected", _Work.suspected_stock_outs


class _Work:
    """A table being cleaned."""

    def __init__(self, table: SeriesTable, rules: CleaningRules) -> None:
        self.rules = rules
        self.units = table.units.copy()
        self.columns = dict(table.columns)
        self._offsets = table.offsets
        self._known_cells = table.end_bucket - table.first_bucket
        self._lent = True  # columns are still the caller's

    def apply(self, name: str, rule: _Rule) -> Change:
        cells, units = rule(self)
        before = self.units[cells]
        self._follow(cells, before, units)
        self.units[cells] = units
        items = len(np.unique(np.searchsorted(self._offsets, cells, side="right")))
        return Change(name, len(cells), items, _total(before), _total(units))

    def _follow(self, cells: NDArray[np.intp], before: Floats, units: Floats) -> None:
        """What was counted with the units: not known where they are not, less in the same measure where they are."""
        if not len(cells):
            return
        share = np.divide(units, before, out=np.ones_like(units), where=before != 0)
        share[np.isnan(units)] = np.nan
        for name in _COUNTED:
            if name in self.columns:
                column = self.columns[name].copy()
                column[cells] *= share
                self.columns[name] = column

    def _series(self) -> Iterator[tuple[int, Floats]]:
        """First cell and units of each series up to its last known bucket, those without sales left out."""
        for start, length in zip(self._offsets[:-1].tolist(), self._known_cells.tolist(), strict=True):
            yield start, self.units[start : start + length]

    def _above(self, limit_of: Callable[[Floats], float]) -> tuple[NDArray[np.intp], Floats]:
        """Cells above their item's limit, which is judged by its buckets with sales, and that limit."""
        found, limits = [np.empty(0, dtype=np.intp)], [np.empty(0, dtype=np.float32)]
        for start, units in self._series():
            selling = units[units > 0]
            if len(selling) < _LEAST_SELLING:
                continue
            limit = limit_of(selling)
            above = np.flatnonzero(units > limit)
            found.append(above + start)
            limits.append(np.full(len(above), limit, dtype=np.float32))
        return np.concatenate(found), np.concatenate(limits)

    def negative(self) -> _New:
        cells = np.flatnonzero(self.units < 0)
        if self.rules.negative == "missing":
            return _unknown(cells)
        if len(cells):
            known = self.columns.get("returned_units")
            returned = np.where(np.isfinite(self.units), np.float32(0), np.nan) if known is None else known.copy()
            returned[cells] = np.nan_to_num(returned[cells]) - self.units[cells]
            self.columns["returned_units"] = returned.astype(np.float32)
        return _New(cells, np.zeros(len(cells), dtype=np.float32))

    def missing(self) -> _New:
        found, values = [np.empty(0, dtype=np.intp)], [np.empty(0, dtype=np.float32)]
        for start, units in self._series():
            gaps = np.flatnonzero(np.isnan(units))
            told = np.flatnonzero(~np.isnan(units))
            gaps = gaps[gaps > told[0]] if len(told) else gaps[:0]
            if not len(gaps):
                continue
            found.append(gaps + start)
            line = np.interp(gaps, told, units[told]) if self.rules.missing == "interpolate" else np.zeros(len(gaps))
            values.append(line.astype(np.float32))
        return _New(np.concatenate(found), np.concatenate(values))

    def flagged(self) -> _New:
        return _unknown(np.flatnonzero((np.nan_to_num(self._need("one_off")) != 0) & np.isfinite(self.units)))

    def large(self) -> _New:
        factor = self.rules.one_off_factor
        return _unknown(self._above(lambda selling: factor * float(np.median(selling)))[0])

    def outliers(self) -> _New:
        by_iqr = self.rules.outliers == "iqr"
        factor = self.rules.outlier_factor or (3.0 if by_iqr else 6.0)
        cells, limits = self._above(lambda selling: (_iqr_limit if by_iqr else _zscore_limit)(selling, factor))
        return _New(cells, limits) if self.rules.outlier_action == "clip" else _unknown(cells)

    def recorded_stock_outs(self) -> _New:
        return _unknown(np.flatnonzero((self._need("available_fraction") == 0) & (self.units == 0)))

    def suspected_stock_outs(self) -> _New:
        found = [np.empty(0, dtype=np.intp)]
        for start, units in self._series():
            sold = np.flatnonzero(units > 0)
            if len(sold) < _LEAST_SELLING:
                continue
            # Runs of zeros by where they begin and how long they are; what is not known ends a run.
            zero = np.concatenate([[False], units == 0, [False]])
            begins, ends = np.flatnonzero(~zero[:-1] & zero[1:]), np.flatnonzero(zero[:-1] & ~zero[1:])
            quiet = (1 - len(sold) / max(np.isfinite(units).sum(), 1)) ** (ends - begins) * len(units)
            out = (quiet < _IMPROBABLE) & (ends < sold[-1] + 1)
            found += [np.arange(b, e) + start for b, e in zip(begins[out], ends[out], strict=True)]
        return _unknown(np.concatenate(found))

    def _need(self, name: str) -> Floats:
        if name not in self.columns:
            raise ValueError(
                f"the series have no column {name}, which this cleaning goes by: add it, or leave that out"
            )
        return self.columns[name]


def _unknown(cells: NDArray[np.intp]) -> _New:
    return _New(cells, np.full(len(cells), np.nan, dtype=np.float32))


def _iqr_limit(selling: Floats, factor: float) -> float:
    low, median, high = np.quantile(selling, (0.25, 0.5, 0.75))
    return float(high + factor * max(high - low, np.sqrt(median), 1.0))


def _zscore_limit(selling: Floats, factor: float) -> float:
    median = float(np.median(selling))
    spread = _MAD_TO_SIGMA * float(np.median(np.abs(selling - median)))
    return median + factor * max(spread, float(np.sqrt(median)), 1.0)
