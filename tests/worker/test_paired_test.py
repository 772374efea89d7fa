"""The paired test against its formulas written out, scipy's distribution, and how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from worker.paired_test import paired_test, student_t_cdf


@given(st.floats(-50, 50), st.integers(1, 400))
@example(5.960464477539063e-08, 32)
@example(-1e-9, 400)
def test_the_t_distribution_is_scipys(t: float, degrees: int) -> None:
    assert student_t_cdf(t, degrees) == pytest.approx(float(stats.t.cdf(t, degrees)), abs=1e-8)


@pytest.mark.parametrize("horizon", [1, 3, 7])
def test_it_is_the_formula_of_harvey_leybourne_and_newbold(horizon: int) -> None:
    d = np.random.default_rng(horizon).normal(0.2, 1, 40).tolist()
    n, mean = len(d), math.fsum(d) / len(d)
    autocovariance = [math.fsum((d[t] - mean) * (d[t - k] - mean) for t in range(k, n)) / n for k in range(horizon)]
    variance = autocovariance[0] + 2 * math.fsum((1 - k / horizon) * autocovariance[k] for k in range(1, horizon))
    statistic = mean / math.sqrt(variance / n) * math.sqrt((n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n)
    found = paired_test(d, horizon)
    assert found.days == n
    assert found.mean == pytest.approx(mean)
    assert found.statistic == pytest.approx(statistic)
    assert found.p_better == pytest.approx(float(stats.t.sf(statistic, n - 1)))
    assert found.p_worse == pytest.approx(1 - found.p_better)


def test_without_lags_it_is_the_t_test_of_a_mean() -> None:
    d = np.random.default_rng(1).normal(0.3, 2, 25)
    assert paired_test(d.tolist(), 1).p_better == pytest.approx(stats.ttest_1samp(d, 0, alternative="greater").pvalue)


@pytest.mark.parametrize(("horizon", "lowest", "highest"), [(1, 0.03, 0.07), (7, 0.02, 0.12)])
def test_it_is_wrong_about_as_often_as_it_says(horizon: int, lowest: float, highest: float) -> None:
    """Of forecasts that are equally good, with errors that overlap as those of `horizon` days ahead do. Bartlett's
    weights leave a little of the overlap out."""
    random = np.random.default_rng(2)
    wrong = 0
    for _ in range(1_000):
        noise = random.normal(0, 1, 60 + horizon - 1)
        d = np.convolve(noise, np.ones(horizon), mode="valid")
        wrong += paired_test(d.tolist(), horizon).p_better < 0.05
    assert lowest < wrong / 1_000 < highest


@pytest.mark.parametrize(("differences", "horizon"), [([], 1), ([1.0], 1), ([1.0, 2.0, 3.0], 3), ([0.0] * 30, 1)])
def test_too_few_days_or_none_that_differ_tell_nothing(differences: list[float], horizon: int) -> None:
    found = paired_test(differences, horizon)
    assert math.isnan(found.statistic)
    assert not found.p_better < 1
