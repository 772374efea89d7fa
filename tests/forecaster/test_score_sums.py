"""Sums of accuracy against the measures themselves, over the whole of what was summed in parts."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from forecaster import accuracy
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import ModelOutputs
from forecaster.score_sums import INTERVALS, MEDIAN, ScoreSums

_STEPS = 5


def _forecasts(items: int, seed: int) -> tuple[NDArray[np.float32], ModelOutputs]:
    rng = np.random.default_rng(seed)
    quantiles = np.sort(rng.gamma(1.5, 3.0, (items, _STEPS, len(QUANTILE_LEVELS))), axis=-1).astype(np.float32)
    target = rng.poisson(3.0, (items, _STEPS)).astype(np.float32)
    target[rng.random((items, _STEPS)) < 0.2] = np.nan
    return target, ModelOutputs(quantiles, quantiles.mean(axis=-1), np.cumsum(quantiles, axis=1))


@pytest.mark.parametrize("steps", [slice(None), slice(0, 1), slice(1, 4)])
def test_sums_of_parts_give_the_measures_of_the_whole(steps: slice) -> None:
    target, made = _forecasts(40, seed=1)
    scale = np.random.default_rng(2).uniform(0.5, 4, 40)
    scale[3] = 0.0
    total = ScoreSums(_STEPS)
    for rows in (slice(0, 7), slice(7, 40)):
        part = ScoreSums(_STEPS)
        part.add(target[rows], ModelOutputs(*(column[rows] for column in made)), scale[rows])
        total.merge(part)

    found = total.scores(steps)
    y, quantiles, mean = target[:, steps], made.quantiles[:, steps], made.mean[:, steps]
    median = quantiles[:, :, MEDIAN]
    assert found["targets"] == np.isfinite(y).sum()
    assert found["wql"] == pytest.approx(accuracy.wql(y, quantiles, QUANTILE_LEVELS))
    assert found["wape"] == pytest.approx(accuracy.wape(y, median))
    assert found["wape_mean"] == pytest.approx(accuracy.wape(y, mean))
    assert found["rmse"] == pytest.approx(accuracy.rmse(y, mean))
    assert found["bias"] == pytest.approx(accuracy.bias(y, mean))
    assert found["mase"] == pytest.approx(accuracy.mase(y, median, scale))
    for share, (lower, upper) in INTERVALS.items():
        covered = accuracy.coverage(y, quantiles[:, :, lower], quantiles[:, :, upper])
        assert found[f"coverage_{share}"] == pytest.approx(covered)


def test_calibration_is_the_share_of_targets_below_and_not_above_each_level() -> None:
    target, made = _forecasts(30, seed=3)
    target[0, 0] = made.quantiles[0, 0, 4]  # counts as not above that level, and not as below it
    sums = ScoreSums(_STEPS)
    sums.add(target, made)
    known = [(i, s) for i in range(30) for s in range(_STEPS) if not np.isnan(target[i, s])]
    levels = range(len(QUANTILE_LEVELS))
    below = [sum(target[i, s] < made.quantiles[i, s, level] for i, s in known) / len(known) for level in levels]
    not_above = [sum(target[i, s] <= made.quantiles[i, s, level] for i, s in known) / len(known) for level in levels]
    assert below != not_above
    assert sums.calibration() == {"below": pytest.approx(below), "not_above": pytest.approx(not_above)}


def test_steps_of_which_nothing_is_known_have_no_score() -> None:
    target, made = _forecasts(6, seed=4)
    target[:, 2] = np.nan
    sums = ScoreSums(_STEPS)
    sums.add(target, made)
    assert np.isnan(sums.by_step()["wql"][2])
    assert np.isnan(sums.by_step()["loss"][2])
    assert np.isfinite(sums.by_step()["loss"][1])
    assert np.isnan(sums.scores()["mase"])  # no scale was given
