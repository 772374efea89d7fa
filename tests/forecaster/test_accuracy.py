"""Expected values are worked by hand, beside each test."""

import numpy as np
import pytest

from forecaster import accuracy

TARGET = np.array([[10.0, 0.0]])
LEVELS = (0.1, 0.5, 0.9)
QUANTILES = np.array([[[4.0, 8.0, 12.0], [0.0, 1.0, 3.0]]])
# y = 10: 2·0.1·6 = 1.2; 2·0.5·2 = 2; 2·0.1·2 = 0.4. y = 0: 0; 2·0.5·1 = 1; 2·0.1·3 = 0.6. Sum 5.2.


def test_pinball_is_twice_the_usual_so_that_the_median_gives_the_absolute_error() -> None:
    loss = accuracy.pinball(TARGET, QUANTILES, LEVELS)
    assert loss == pytest.approx(np.array([[[1.2, 2.0, 0.4], [0.0, 1.0, 0.6]]]))


def test_wql() -> None:
    assert accuracy.wql(TARGET, QUANTILES, LEVELS) == pytest.approx(5.2 / 3 / 10)


def test_wql_of_a_point_is_its_wape() -> None:
    point = np.array([[7.0, 2.0]])
    same = np.repeat(point[..., None], 3, axis=-1)
    assert accuracy.wape(TARGET, point) == pytest.approx(0.5)
    # Symmetric levels: over- and under-forecast cost the same on average.
    assert accuracy.wql(TARGET, same, LEVELS) == pytest.approx(0.5)


def test_bias_and_rmse() -> None:
    point = np.array([[7.0, 2.0]])
    assert accuracy.bias(TARGET, point) == pytest.approx(-0.1)
    assert accuracy.rmse(TARGET, point) == pytest.approx(np.sqrt((9 + 4) / 2))


def test_coverage_counts_the_ends() -> None:
    assert accuracy.coverage(TARGET, QUANTILES[..., 0], QUANTILES[..., 2]) == 1.0
    assert accuracy.coverage(TARGET, QUANTILES[..., 1], QUANTILES[..., 2]) == 0.5


def test_mase_and_sql_divide_by_the_seasonal_error() -> None:
    past = np.array([[1.0, 2.0, 4.0, np.nan, 3.0, 6.0]])
    # Season 2: |4-1| = 3, (nan), |3-4| = 1, (nan): mean 2.
    scale = accuracy.seasonal_error(past, 2)
    assert scale == pytest.approx(np.array([2.0]))
    assert accuracy.mase(TARGET, np.array([[7.0, 2.0]]), scale) == pytest.approx(2.5 / 2)
    assert accuracy.sql(TARGET, QUANTILES, LEVELS, scale) == pytest.approx(5.2 / 3 / 2 / 2)


def test_unknown_targets_are_left_out() -> None:
    target = np.array([[10.0, 0.0, np.nan]])
    quantiles = np.concatenate([QUANTILES, np.full((1, 1, 3), 99.0)], axis=1)
    point = np.array([[7.0, 2.0, 99.0]])
    assert accuracy.wql(target, quantiles, LEVELS) == pytest.approx(5.2 / 30)
    assert accuracy.wape(target, point) == pytest.approx(0.5)
    assert accuracy.bias(target, point) == pytest.approx(-0.1)
    assert accuracy.coverage(target, quantiles[..., 0], quantiles[..., 2]) == 1.0


def test_a_score_over_nothing_is_nan() -> None:
    nothing = np.zeros((1, 2))
    assert np.isnan(accuracy.wape(nothing, nothing))
    assert np.isnan(accuracy.coverage(np.full((1, 2), np.nan), nothing, nothing))
    assert np.isnan(accuracy.mase(TARGET, TARGET, np.zeros(1)))
