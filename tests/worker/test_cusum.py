"""Days held against the days before them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from worker.cusum import FEWEST_DAYS, normal_values, summed


def test_days_are_held_against_those_before_them_as_students_t() -> None:
    values = [float(v) for v in np.random.default_rng(3).normal(2, 0.5, 40)]
    values[30] = 4.5
    found = normal_values(values, 0.01)
    assert found[:FEWEST_DAYS] == [0.0] * FEWEST_DAYS
    for n in range(FEWEST_DAYS, 40):
        before = values[:n]
        t = (values[n] - np.mean(before)) / (np.std(before, ddof=1) * math.sqrt(1 + 1 / n))
        assert found[n] == pytest.approx(float(stats.norm.ppf(stats.t.cdf(t, n - 1))), abs=0.02)


def test_a_sum_is_that_of_pages_scheme() -> None:
    values = [float(v) for v in np.random.default_rng(4).normal(0.4, 1, 60)]
    for sign in (1, -1):
        walk = np.concatenate([[0.0], np.cumsum([sign * v - 0.5 for v in values])])
        assert summed(values, sign).evidence == pytest.approx(walk[-1] - walk.min())
        if summed(values, sign).evidence > 0:
            assert summed(values, sign).begin == int(walk.argmin())
    assert summed([-1.0] * 20, 1) == (0.0, 13)
