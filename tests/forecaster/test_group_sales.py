"""Means of items, scaled to what groups of items sell."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from forecaster.group_sales import GroupError, GroupScaled, follow_groups, scaled_means
from forecaster.rolling_origins import Forecasts
from forecaster.series import SeriesTable

_FIRST, _STEPS, _ITEMS = 18_000, 28, 12


def _rates(days: int) -> NDArray[np.float64]:
    """Of every item of a group, by day: a week, a year that repeats itself, a covariate that doubles sales."""
    day = _FIRST + np.arange(days)
    week = np.array([1.0, 0.8, 0.9, 1.0, 1.2, 1.6, 1.5])[(day + 3) % 7]
    year = 1 + 0.4 * np.sin(2 * np.pi * day / 364)
    return np.asarray(week * year * (1 + _offer(days)))


def _offer(days: int) -> NDArray[np.float64]:
    return (np.random.default_rng(3).random(days) < 0.1).astype(np.float64)


def _table(days: int, seed: int = 0) -> SeriesTable:
    """Two groups; `days` of them known, and the days of a forecast after them."""
    rng = np.random.default_rng(seed)
    length = days + _STEPS
    level = np.where(np.arange(_ITEMS) < _ITEMS // 2, 2.0, 10.0)
    units = rng.poisson(level[:, None] * _rates(length)).astype(np.float32)
    units[:, 0] = np.maximum(units[:, 0], 1)
    units[:, days:] = np.nan
    columns = {"offer": np.tile(_offer(length), _ITEMS), "open": np.ones(_ITEMS * length)}
    codes = (np.arange(_ITEMS) >= _ITEMS // 2).astype(np.int64)
    return SeriesTable(
        freq="1d",
        time_zone="UTC",
        item_ids=tuple(str(i) for i in range(_ITEMS)),
        first_bucket=np.full(_ITEMS, _FIRST),
        offsets=np.arange(_ITEMS + 1) * length,
        units=units.ravel(),
        columns={name: values.astype(np.float32) for name, values in columns.items()},
        category_code=codes,
        brand_code=np.zeros(_ITEMS, dtype=np.int64),
        launch_bucket=np.full(_ITEMS, _FIRST),
    )


def _flat(table: SeriesTable, days: int) -> NDArray[np.float32]:
    """Means of the last four weeks, the same for every step."""
    recent = table.units.reshape(_ITEMS, -1)[:, days - 28 : days].mean(axis=1)
    return np.repeat(recent[:, None], _STEPS, axis=1).astype(np.float32)


def test_groups_lend_their_days_and_seasons_to_items() -> None:
    days = 900
    table, rows = _table(days), np.arange(_ITEMS)
    flat = _flat(table, days)
    scaled = scaled_means(table, rows, _FIRST + days, flat, ["offer"])
    level = np.where(rows < _ITEMS // 2, 2.0, 10.0)
    truth = level[:, None] * _rates(days + _STEPS)[days:]

    def wrong(mean: NDArray[np.float32]) -> float:
        return float(np.abs(mean.sum(axis=0) - truth.sum(axis=0)).mean() / truth.sum(axis=0).mean())

    assert wrong(flat) > 0.2
    assert wrong(scaled) < 0.4 * wrong(flat)
    # What items of a group have of each other stays as it was.
    assert np.allclose(scaled[0] * flat[1, 0], scaled[1] * flat[0, 0], rtol=1e-4)


def test_nothing_after_the_origin_is_looked_at() -> None:
    days, rows = 600, np.arange(_ITEMS)
    table = _table(days)
    flat = _flat(table, days)
    told = table.units.reshape(_ITEMS, -1).copy()
    told[:, days:] = 1e6
    later = dataclasses.replace(table, units=told.ravel())
    a, b = (scaled_means(t, rows, _FIRST + days, flat, ["offer"]) for t in (table, later))
    assert np.array_equal(a, b)


def test_a_closed_day_sells_nothing() -> None:
    days, rows = 600, np.arange(_ITEMS)
    table = _table(days)
    opened = table.columns["open"].reshape(_ITEMS, -1).copy()
    opened[:, days + 3] = 0
    table = dataclasses.replace(table, columns=dict(table.columns) | {"open": opened.ravel()})
    scaled = scaled_means(table, rows, _FIRST + days, _flat(table, days), ["offer"])
    assert (scaled[:, 3] == 0).all()
    assert (scaled[:, [2, 4]] > 0).all()


def test_a_short_past_changes_nothing() -> None:
    table, rows = _table(50), np.arange(_ITEMS)
    flat = _flat(table, 50)
    assert np.array_equal(scaled_means(table, rows, _FIRST + 50, flat, ["offer"]), flat)


def test_without_a_year_totals_stay_as_they_are() -> None:
    days, rows = 200, np.arange(_ITEMS)
    table = _table(days)
    flat = _flat(table, days)
    scaled = scaled_means(table, rows, _FIRST + days, flat)
    assert not np.allclose(scaled, flat, rtol=0.05)
    assert np.allclose(scaled.sum() / flat.sum(), 1.0, atol=0.05)


def test_weeks_are_refused() -> None:
    table = dataclasses.replace(_table(60), freq="1w")
    with pytest.raises(ValueError, match="by day, not by 1w"):
        scaled_means(table, np.arange(_ITEMS), _FIRST + 60, np.ones((_ITEMS, _STEPS), np.float32))


class _Flat:
    names = ("flat",)
    fallbacks: dict[str, int] = {}  # noqa: RUF012 - a protocol's attribute

    def forecast(
        self, table: SeriesTable, rows: NDArray[np.int64], running: int, prediction_length: int
    ) -> dict[str, Forecasts]:
        mean = _flat(table, running - _FIRST)[rows]
        return {"flat": Forecasts(np.repeat(mean[:, :, None], 19, axis=2), mean)}


def test_a_contestants_quantiles_stay() -> None:
    days, rows = 500, np.arange(_ITEMS)
    table = _table(days)
    raw = _Flat().forecast(table, rows, _FIRST + days, _STEPS)["flat"]
    said = GroupScaled("scaled", _Flat(), ["offer"]).forecast(table, rows, _FIRST + days, _STEPS)["scaled"]
    assert np.array_equal(said.quantiles, raw.quantiles)
    assert np.array_equal(said.mean, scaled_means(table, rows, _FIRST + days, raw.mean, ["offer"]))


def _weeks(known: int, steps: int, units: float, seed: int = 0) -> tuple[SeriesTable, NDArray[np.float64]]:
    """Two categories with opposite years, and what each of their items is expected to sell in every week."""
    week = np.arange(known + steps)
    peak = 1 + 2 * np.exp(-0.5 * (((week - 40) % 52 - 26) / 2.0) ** 2)
    codes = (np.arange(_ITEMS) >= _ITEMS // 2).astype(np.int64) + 1
    rates = units * np.where(codes[:, None] == 1, peak, 2 - 0.5 * peak)
    sold = np.random.default_rng(seed).poisson(rates).astype(np.float32)
    sold[:, 0] = 1
    sold[:, known:] = np.nan
    table = SeriesTable(
        freq="1w",
        time_zone="UTC",
        item_ids=tuple(str(i) for i in range(_ITEMS)),
        first_bucket=np.full(_ITEMS, 2_500),
        offsets=np.arange(_ITEMS + 1) * (known + steps),
        units=sold.ravel(),
        columns={},
        category_code=codes,
        brand_code=np.arange(_ITEMS),
        launch_bucket=np.full(_ITEMS, 2_500),
    )
    return table, rates[:, known:]


def _said(table: SeriesTable, known: int, steps: int) -> Forecasts:
    recent = table.units.reshape(_ITEMS, -1)[:, :known].mean(axis=1)
    mean = np.repeat(recent[:, None], steps, axis=1).astype(np.float32)
    return Forecasts(np.repeat(mean[:, :, None], 19, axis=2) + np.arange(19, dtype=np.float32) / 100, mean)


def test_weeks_follow_what_the_category_sold_a_year_ago() -> None:
    known, steps = 70, 39
    table, truth = _weeks(known, steps, 100.0)
    raw = _said(table, known, steps)
    said = follow_groups(table, np.arange(_ITEMS), 2_500 + known, raw)

    def wrong(mean: NDArray[np.float32]) -> float:
        return float(np.abs(mean - truth).mean())

    assert wrong(said.mean) < 0.5 * wrong(raw.mean)
    factor = said.mean / raw.mean
    assert np.allclose(said.quantiles, raw.quantiles * factor[:, :, None], rtol=1e-4)
    assert np.allclose(factor[0], factor[1]), "items of a category are scaled alike"


def test_weeks_after_the_origin_and_unknown_years_change_nothing() -> None:
    known, steps = 70, 39
    table, _ = _weeks(known, steps, 100.0)
    told = table.units.reshape(_ITEMS, -1).copy()
    told[:, known:] = 1e6
    rows, raw = np.arange(_ITEMS), _said(table, known, steps)
    later = dataclasses.replace(table, units=told.ravel())
    a, b = (follow_groups(t, rows, 2_500 + known, raw) for t in (table, later))
    assert np.array_equal(a.quantiles, b.quantiles)
    short = follow_groups(table, rows, 2_500 + 30, raw)
    # The first week known is the last year's of the 22nd step after these.
    assert np.allclose(short.mean[:, :22], raw.mean[:, :22])


def test_few_sales_make_no_season() -> None:
    known, steps = 70, 39
    table, _ = _weeks(known, steps, 0.2)
    raw = _said(table, known, steps)
    said = follow_groups(table, np.arange(_ITEMS), 2_500 + known, raw)
    assert np.abs(said.mean / raw.mean - 1).max() < 0.25


def test_whole_quantiles_of_weeks_stay_whole() -> None:
    known, steps = 70, 39
    table, _ = _weeks(known, steps, 100.0)
    raw = _said(table, known, steps)
    whole = raw._replace(quantiles=np.rint(raw.quantiles))
    said = follow_groups(table, np.arange(_ITEMS), 2_500 + known, whole).quantiles
    assert (said == said.round()).all()


def test_what_has_no_groups_is_refused() -> None:
    table, rows = _table(60), np.arange(_ITEMS)
    raw = Forecasts(np.ones((_ITEMS, _STEPS, 19), np.float32), np.ones((_ITEMS, _STEPS), np.float32))
    with pytest.raises(GroupError, match="by day and by week, not by 1h"):
        follow_groups(dataclasses.replace(table, freq="1h"), rows, _FIRST + 60, raw)
    nameless = dataclasses.replace(table, category_code=np.zeros(_ITEMS, dtype=np.int64))
    with pytest.raises(GroupError, match="no item has a category or a brand"):
        follow_groups(nameless, rows, _FIRST + 60, raw)
