"""Baselines of statsforecast against the library's own front door, and on what would trip them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import statsforecast
from statsforecast import models as library
from statsforecast.utils import ConformalIntervals

from forecaster.baselines_statsforecast import FAST, SLOW, StatsForecast
from forecaster.contract import QUANTILE_LEVELS
from tests.forecaster.series_tables import FIRST_DAY, changed_after, made_table

_H = 7
_RUNNING = FIRST_DAY + 200 - _H
_LONG = np.arange(6)  # series with enough past for every method
_EVERYTHING = (*FAST, *SLOW)


@pytest.fixture(scope="module")
def peer() -> pd.DataFrame:
    """What `statsforecast.StatsForecast` says of the same series, which is asked for intervals by their shares."""
    table = made_table()
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(6), np.diff(table.offsets)[:6]),
            "ds": np.concatenate([begin + np.arange(n) for begin, n in _spans()]),
            "y": table.units[: table.offsets[6]],
        }
    )
    conformal = ConformalIntervals(h=_H, n_windows=10)
    models = [
        library.SeasonalNaive(season_length=7),
        library.AutoETS(season_length=7),
        library.AutoTheta(season_length=7),
        library.CrostonSBA(prediction_intervals=conformal),
        library.IMAPA(prediction_intervals=conformal),
    ]
    front_door = statsforecast.StatsForecast(models=models, freq=1)
    return front_door.forecast(df=frame[frame["ds"] < _RUNNING], h=_H, level=[80, 99]).sort_values(["unique_id", "ds"])


def _spans() -> list[tuple[int, int]]:
    table = made_table()
    return list(zip(table.first_bucket[:6].tolist(), np.diff(table.offsets)[:6].tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("seasonal_naive", "SeasonalNaive"),
        ("auto_ets", "AutoETS"),
        ("theta", "AutoTheta"),
        ("croston_sba", "CrostonSBA"),
        ("imapa", "IMAPA"),
    ],
)
def test_levels_are_the_ends_of_the_librarys_intervals(peer: pd.DataFrame, name: str, theirs: str) -> None:
    made = StatsForecast([name], processes=1, non_negative=False).forecast(made_table(), _LONG, _RUNNING, _H)[name]
    for level, column in ((0.005, "-lo-99"), (0.1, "-lo-80"), (0.5, ""), (0.9, "-hi-80"), (0.995, "-hi-99")):
        found = made.quantiles[:, :, QUANTILE_LEVELS.index(level)].ravel()
        assert found == pytest.approx(peer[f"{theirs}{column}"].to_numpy(), rel=1e-4, abs=1e-4)
    assert made.mean.ravel() == pytest.approx(peer[theirs].to_numpy(), rel=1e-4, abs=1e-4)


def test_everyone_answers_for_every_series_without_looking_ahead() -> None:
    table = made_table()
    rows = np.arange(len(table))
    together = StatsForecast(_EVERYTHING, processes=1)
    made = together.forecast(table, rows, _RUNNING, _H)
    later = StatsForecast(_EVERYTHING, processes=1).forecast(changed_after(table, _RUNNING), rows, _RUNNING, _H)
    assert tuple(made) == _EVERYTHING
    for name, (quantiles, mean) in made.items():
        assert quantiles.shape == (len(table), _H, len(QUANTILE_LEVELS))
        assert (np.diff(quantiles, axis=2) >= 0).all()
        assert (quantiles >= 0).all()
        assert np.isfinite(mean).all()
        assert np.array_equal(quantiles, later[name].quantiles)
    assert "naive" not in together.fallbacks


def test_several_processes_say_what_one_does() -> None:
    table = made_table(items=60, days=80)
    rows = np.arange(len(table))
    alone, shared = (StatsForecast(["tsb"], processes=n).forecast(table, rows, _RUNNING - 120, _H) for n in (1, 2))
    assert np.array_equal(alone["tsb"].quantiles, shared["tsb"].quantiles)


def test_a_series_that_a_method_cannot_take_gets_the_naive_forecast_and_is_counted() -> None:
    table = made_table()
    units = table.units.copy()
    units[0:3] = [4, 2, 5]
    table = dataclasses.replace(table, units=units)
    baselines = StatsForecast(["seasonal_naive", "auto_ets"], processes=1)
    made = baselines.forecast(table, np.array([0]), int(table.first_bucket[0]) + 3, _H)
    assert baselines.fallbacks["seasonal_naive"] == 1
    assert (made["seasonal_naive"].quantiles == 5).all()
    nothing = StatsForecast(["naive"], processes=1).forecast(table, np.array([0]), int(table.first_bucket[0]), _H)
    assert (nothing["naive"].mean == 0).all()
