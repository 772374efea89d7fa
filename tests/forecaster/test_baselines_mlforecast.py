"""LightGBM through mlforecast on small tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from forecaster import accuracy
from forecaster.baselines_mlforecast import LightGbm
from forecaster.contract import QUANTILE_LEVELS
from forecaster.rolling_origins import seasonal_scale, targets
from forecaster.score_table import score_table
from tests.forecaster.series_tables import FIRST_DAY, changed_after, made_table

_H = 7
_RUNNING = FIRST_DAY + 200 - _H
_MEDIAN = QUANTILE_LEVELS.index(0.5)


def _small(*, scaled: bool = False) -> LightGbm:
    return LightGbm(rounds=30, scaled=scaled)


@pytest.mark.parametrize("scaled", [False, True])
def test_it_answers_for_short_and_dead_series_too_and_does_not_look_ahead(scaled: bool) -> None:
    table = made_table(covariates=True)
    rows = np.array([11, 3, 10, 0])  # in the order asked for
    name = "lightgbm_scaled" if scaled else "lightgbm"
    made = _small(scaled=scaled).forecast(table, rows, _RUNNING, _H)[name]
    assert made.quantiles.shape == (4, _H, len(QUANTILE_LEVELS))
    assert (np.diff(made.quantiles, axis=2) >= 0).all()
    assert (made.quantiles >= 0).all()
    assert made.mean[2].max() < 0.2  # never sold anything
    later = _small(scaled=scaled).forecast(changed_after(table, _RUNNING), rows, _RUNNING, _H)[name]
    assert np.array_equal(made.quantiles, later.quantiles)


def test_it_learns_the_rhythm_of_the_week_and_promotions_known_ahead() -> None:
    table = made_table(items=40, days=400, covariates=True)
    units = (table.units + 20 * table.columns["promotion"]).astype(np.float32)
    table = dataclasses.replace(table, units=units)
    rows, running = np.arange(38), FIRST_DAY + 400 - _H
    made = LightGbm(rounds=60).forecast(table, rows, running, _H)["lightgbm"]
    target = targets(table, rows, running, _H)
    naive = targets(table, rows, running - 7, _H)
    assert accuracy.wape(target, made.quantiles[:, :, _MEDIAN]) < 0.7 * accuracy.wape(target, naive)
    assert abs(accuracy.bias(target, made.mean)) < 0.15


def test_series_of_any_size_are_learnt_together_when_scaled() -> None:
    table = made_table(items=20)
    size = 10.0 ** (np.arange(20) % 5)
    units = (table.units * np.repeat(size, np.diff(table.offsets))).astype(np.float32)
    table = dataclasses.replace(table, units=units)
    rows = np.arange(18)
    target, scale = targets(table, rows, _RUNNING, _H), seasonal_scale(table, rows, _RUNNING, 7)
    found = {}
    for scaled in (False, True):
        ((name, made),) = _small(scaled=scaled).forecast(table, rows, _RUNNING, _H).items()
        found[name] = score_table(target, made, scale)["sql"]
    assert found["lightgbm_scaled"] < 0.8 * found["lightgbm"]


def test_a_past_shorter_than_the_horizon_is_refused() -> None:
    table = made_table(items=2)
    with pytest.raises(ValueError, match="no series has more than 28 buckets"):
        _small().forecast(table, np.array([0]), int(table.first_bucket[0]) + 20, 28)
