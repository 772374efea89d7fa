"""Distillation: what is drawn of a teacher agrees with what it says."""

import numpy as np
import pytest

from forecaster.contract import NO_COVARIATES, QUANTILE_LEVELS
from forecaster.dataset import Window
from forecaster.models.gbm import GbmModel
from forecaster.models.gbm_training import GbmPlan, train
from forecaster.sources import SeriesSource
from forecaster.teaching import Taught
from tests.forecaster.builders import small_table

ROWS = 600
PLAN = GbmPlan(mean_trees=20, quantile_trees=20, learning_rate=0.2, leaves=7, least_rows=20, levels=(0.1, 0.5, 0.9))


def source() -> SeriesSource:
    return SeriesSource(small_table(), first_bucket=20_060, last_bucket=20_199, known_end=20_200)


def drawn(of: SeriesSource | Taught) -> Window:
    window = of.draw("1d", ROWS, np.random.default_rng(8))
    assert window is not None
    return window


@pytest.fixture(scope="module")
def teacher() -> GbmModel:
    return train({"1d": [drawn(source())]}, {}, PLAN, NO_COVARIATES)


def test_draws_agree_with_the_quantiles_they_are_drawn_from(teacher: GbmModel) -> None:
    """As many as a level says are at or below its quantile; the cumulative ones likewise."""
    window = drawn(Taught(source(), teacher, 1.0))
    said = teacher.forecast(window.inputs)
    for units, quantiles in (
        (window.units, said.quantiles),
        (window.cumulative_units, said.cumulative_quantiles),
    ):
        known = np.isfinite(units)
        assert known.any()
        assert not known.all(), "what the record does not tell, the teacher does not make up"
        for level in (0.1, 0.5, 0.9):
            limit = quantiles[:, :, QUANTILE_LEVELS.index(level)][known]
            at_most, below = (units[known] <= limit).mean(), (units[known] < limit).mean()
            assert below - 0.05 <= level <= at_most + 0.05


def test_a_share_is_taught_and_the_rest_stays(teacher: GbmModel) -> None:
    plain, window = drawn(source()), drawn(Taught(source(), teacher, 0.3))
    changed = (np.nan_to_num(plain.units) != np.nan_to_num(window.units)).any(axis=1)
    assert 0.2 < changed.mean() < 0.4
    np.testing.assert_array_equal(np.isnan(plain.units), np.isnan(window.units))
    for before, after in zip(plain.inputs, window.inputs, strict=True):
        np.testing.assert_array_equal(before, after)
