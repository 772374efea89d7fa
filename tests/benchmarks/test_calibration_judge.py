"""How quantiles of counts are judged, against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration_judge import LEVELS, STEPS, Judge, judged, miss
from forecaster.inputs import ModelOutputs


def outputs(quantiles: list[float], items: int) -> ModelOutputs:
    told = np.tile(np.array(quantiles, dtype=np.float32), (items, STEPS, 1))
    return ModelOutputs(told, told.mean(axis=2), np.cumsum(told, axis=1))


def test_the_worst_level_is_found_on_both_sides_and_atoms_count_for_either() -> None:
    judge = Judge(np.full(10, 2.0))
    quantiles = [0.0] * 10 + [1.0] * 9  # up to the median nothing is said to sell, above it one
    actual = np.zeros((10, STEPS), dtype=np.float32)
    actual[:3] = 1  # three of ten sell one
    for day in range(20):
        judge.add(day, actual, {"it": outputs(quantiles, 10)})
    days = list(judge.days("all items", "day 1", "it").values())
    # Of those sold nothing, seven tenths, are below the 0.6 quantile of one: 0.1 too many. All else holds.
    assert miss(days)[0] == pytest.approx(0.1)
    assert days[0].below[10] == 7
    assert (days[0].not_above == np.r_[np.full(10, 7), np.full(9, 10)]).all()
    assert miss(days)[1] == pytest.approx(0, abs=1e-9), "each day is as the others"
    assert judge.days("over 10", "day 1", "it") == {}


def test_the_error_is_that_of_days() -> None:
    judge = Judge(np.full(4, 2.0))
    for day in range(30):
        actual = np.full((4, STEPS), float(day % 2), dtype=np.float32)
        actual[0] = 1  # somebody buys: a day on which nobody does is left out
        judge.add(day, actual, {"it": outputs([0.5] * 19, 4)})
    worst, error = miss(list(judge.days("all items", "day 1", "it").values()))
    below = np.tile([3, 0], 15) / 4
    assert worst == pytest.approx(max(below.mean() - LEVELS[0], LEVELS[-1] - below.mean()))
    assert error == pytest.approx(below.std(ddof=1) / np.sqrt(30))


def test_windows_with_few_days_are_not_judged() -> None:
    judge = Judge(np.full(4, 2.0))
    actual = np.ones((4, STEPS), dtype=np.float32)
    for day in range(13):
        judge.add(day, actual, {"raw": outputs([1.0] * 19, 4), "adjusted": outputs([1.0] * 19, 4)})
    found = judged(judge, None)["all items"]
    assert found["day 1"]["raw"]["worst"] is None
    assert found["days 2-7"]["raw"]["worst"] == 0
    assert found["day 1"]["raw"]["wql"] == 0
