"""What the accuracy benchmark asks: of each real shop a table, where its past ends, and how far to look ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import accuracy_data as data
from benchmarks.promotions import dunnhumby_promotions
from forecaster.contract import NO_COVARIATES, Covariates
from forecaster.rolling_origins import Integers
from forecaster.series import SeriesTable
from forecaster.wrmsse import Level, Weights, levels_of, weights_of

_SAMPLE = 2_000
_HOURLY_SAMPLE = 150  # AutoETS and Theta take a second for each series of hours and origin
_SEED = 0
_SELLING_DAYS, _OF_DAYS = 20, 91


@dataclass(frozen=True)
class Hierarchy:
    """What WRMSSE needs at the only origin."""

    levels: tuple[Level, ...]
    weights: tuple[Weights, ...]


@dataclass(frozen=True)
class Task:
    """One table to be scored.

    Attributes:
        origins: bucket numbers of the first steps; models learn from what is before the first of them.
        rows: int64 (item,): series that are scored.
        sample: int64 (item,): of these, those on which slow methods are compared, seeded.
        season: lag of the naive error that scales MASE and SQL.
        split: in words.
        grouped: whether categories and brands group items that sell alike.
        final: nobody here knows what followed; models learn from all that is known.
    """

    name: str
    table: SeriesTable
    origins: tuple[int, ...]
    prediction_length: int
    rows: Integers
    sample: Integers
    season: int
    split: str
    covariates: Covariates = NO_COVARIATES
    hierarchy: Hierarchy | None = field(default=None)
    grouped: bool = False
    final: bool = False


def m5(folder: Path, *, final: bool = False) -> Task:
    """M5: trained on d_1..d_1913 and scored on the 28 days after them; `final`: trained on d_1..d_1941, of which nobody
    here knows what followed."""
    shop = data.m5(folder)
    days = data.M5_DAYS if final else data.M5_DAYS - data.M5_HORIZON
    running = data.M5_FIRST_DAY + days
    rows = np.arange(len(shop.table))
    last = f"d_{days + 1}..d_{days + data.M5_HORIZON}"
    return Task(
        name="m5",
        table=shop.table,
        origins=(running,),
        prediction_length=data.M5_HORIZON,
        rows=rows,
        sample=_sample(rows),
        season=7,
        split=f"M5, daily: d_1..d_{days} known, {last} forecast",
        covariates=data.M5_COVARIATES,
        hierarchy=_m5_hierarchy(shop, running),
        grouped=True,
        final=final,
    )


def _m5_hierarchy(shop: data.M5, running: int) -> Hierarchy:
    table, days = shop.table, running - data.M5_FIRST_DAY
    past = np.zeros((len(table), days), dtype=np.float32)
    dollars = np.zeros(len(table))
    for row in range(len(table)):
        before = int(table.first_bucket[row]) - data.M5_FIRST_DAY
        cells = slice(int(table.offsets[row]), int(table.offsets[row]) + max(days - before, 0))
        past[row, before:] = table.units[cells]
        # Of d_1914 on prices are not known, and the last known one stands in.
        dollars[row] = (past[row, -28:] * table.columns["unit_price"][cells][-28:]).sum()
    levels = levels_of(shop.keys)
    return Hierarchy(levels, weights_of(levels, past, dollars))


def walmart(folder: Path) -> Task:
    """Walmart: the last 39 weeks, the horizon of fev-bench's task (whose own weeks are later)."""
    table = data.walmart(folder)
    horizon = 39
    running = int(table.end_bucket.max()) - horizon
    rows = np.flatnonzero((table.first_bucket < running) & (table.end_bucket > running))
    return Task(
        name="walmart",
        table=table,
        origins=(running,),
        prediction_length=horizon,
        rows=rows,
        sample=_sample(rows),
        season=1,
        split="Walmart, weekly: 65 weeks known, the 39 up to 2012-01-27 forecast",
        covariates=data.WALMART_COVARIATES,
        grouped=True,
    )


def online_retail(folder: Path, freq: str) -> Task:
    """Online Retail II after 2011-02-27, up to where the shipped weights have learnt."""
    return _shop("online_retail", data.online_retail_table(folder, "1d"), data.online_retail_table(folder, freq))


def dunnhumby(folder: Path, freq: str) -> Task:
    """dunnhumby, of which the shipped weights know nothing."""
    return _shop("dunnhumby", data.dunnhumby_table(folder, "1d"), data.dunnhumby_table(folder, freq))


def dunnhumby_promoted(folder: Path, freq: str) -> Task:
    """The same, promotions being known ahead."""
    daily, table = (data.dunnhumby_table(folder, one) for one in ("1d", freq))
    return _shop("dunnhumby_promotions", daily, dunnhumby_promotions(folder).added_to(table))


def _shop(name: str, daily: SeriesTable, table: SeriesTable) -> Task:
    """The last eight weeks: two origins of 28 days, or eight of 48 hours, a week apart. Scored are 2,000 items, drawn
    of those that sold on 20 of the last 91 days before the first origin."""
    end = int(daily.end_bucket.max())
    first_day = end - 56
    begin = daily.offsets[:-1] + np.maximum(first_day - _OF_DAYS - daily.first_bucket, 0)
    stop = np.clip(daily.offsets[:-1] + first_day - daily.first_bucket, begin, daily.offsets[1:])
    selling = np.concatenate([[0], np.cumsum(daily.units > 0)])
    known = np.flatnonzero(selling[stop] - selling[begin] >= _SELLING_DAYS)
    chosen = {daily.item_ids[row] for row in _sample(known).tolist()}
    rows = np.array([row for row, item_id in enumerate(table.item_ids) if item_id in chosen], dtype=np.int64)
    origins: tuple[int, ...] = (first_day, first_day + 28)
    steps, season = 28, 7
    if table.freq == "1h":
        last_hour = int(table.end_bucket.max())
        origins = tuple(last_hour - 24 * (56 - 7 * week) for week in range(8))
        steps, season = 48, 24
    return Task(
        name=name,
        table=table,
        origins=origins,
        prediction_length=steps,
        rows=rows,
        sample=_sample(rows, _HOURLY_SAMPLE) if table.freq == "1h" else rows,
        season=season,
        split=f"{name}, {table.freq}: {len(rows)} items, {len(origins)} origins in the last eight weeks, {steps} steps",
    )


def _sample(rows: Integers, size: int = _SAMPLE) -> Integers:
    if len(rows) <= size:
        return rows
    return np.sort(np.random.default_rng(_SEED).choice(rows, size, replace=False))


TASKS: dict[str, Callable[[Path, str], Task]] = {
    "m5": lambda folder, freq: m5(folder),
    "walmart": lambda folder, freq: walmart(folder),
    "online_retail": online_retail,
    "dunnhumby": dunnhumby,
    "dunnhumby_promotions": dunnhumby_promoted,
}
FREQS = {"m5": ("1d",), "walmart": ("1w",)} | dict.fromkeys(
    ("online_retail", "dunnhumby", "dunnhumby_promotions"), ("1d", "1h")
)
