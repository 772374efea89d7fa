"""The table of scores against independent libraries: utilsforecast's losses and scikit-learn's metrics."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn import metrics
from utilsforecast import losses

from forecaster import accuracy
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import ModelOutputs
from forecaster.score_table import DECILES, score_table, sums_of, table_of

_ITEMS, _STEPS, _PAST, _SEASON = 30, 14, 60, 7
_NAMES = [f"q{level:g}" for level in QUANTILE_LEVELS]


class _Case:
    """Sales, forecasts, and both as the libraries want them: one row a target."""

    def __init__(self) -> None:
        rng = np.random.default_rng(4)
        rate = rng.gamma(1.0, 4.0, (_ITEMS, 1))
        self.past = rng.poisson(rate, (_ITEMS, _PAST)).astype(np.float32)
        self.past[:, 0] += 1
        self.target = rng.poisson(rate, (_ITEMS, _STEPS)).astype(np.float32)
        quantiles = np.sort(rng.gamma(1.5, rate[:, :, None], (_ITEMS, _STEPS, len(QUANTILE_LEVELS))), axis=-1)
        quantiles[:, :4] = np.round(quantiles[:, :4])  # some are met exactly
        self.made = ModelOutputs(quantiles.astype(np.float32), quantiles.mean(-1).astype(np.float32), quantiles)
        self.scale = accuracy.seasonal_error(self.past, _SEASON)
        self.scores = score_table(self.target, self.made, self.scale)
        self.long = self._long(np.repeat(np.arange(_ITEMS), _STEPS))
        self.train = pd.DataFrame(
            {
                "unique_id": np.repeat(np.arange(_ITEMS), _PAST),
                "ds": np.tile(np.arange(_PAST), _ITEMS),
                "y": self.past.ravel(),
            }
        )

    def _long(self, item: NDArray[np.int64]) -> pd.DataFrame:
        columns = dict(zip(_NAMES, self.made.quantiles.reshape(-1, len(QUANTILE_LEVELS)).T, strict=True))
        steps = np.tile(np.arange(_STEPS) + _PAST, _ITEMS)
        frame = {"unique_id": item, "ds": steps, "y": self.target.ravel(), "mean": self.made.mean.ravel()}
        return pd.DataFrame(frame | columns).astype(dict.fromkeys(("y", "mean", *_NAMES), "float64"))

    @property
    def pooled(self) -> pd.DataFrame:
        """All targets as if of one series."""
        return self.long.assign(unique_id=0)


@pytest.fixture(scope="module")
def case() -> _Case:
    return _Case()


@pytest.mark.parametrize(("ours", "theirs", "point"), [("mae", losses.mae, "q0.5"), ("mse", losses.mse, "mean")])
def test_errors_are_those_of_utilsforecast(case: _Case, ours: str, theirs: object, point: str) -> None:
    assert case.scores[ours] == pytest.approx(theirs(case.pooled, [point])[point].iloc[0])  # type: ignore[operator]


def test_wape_mape_and_rmse_are_those_of_utilsforecast(case: _Case) -> None:
    assert case.scores["rmse"] == pytest.approx(losses.rmse(case.pooled, ["mean"])["mean"].iloc[0])
    assert case.scores["wape"] == pytest.approx(losses.nd(case.pooled, ["q0.5"])["q0.5"].iloc[0])
    sold = case.pooled[case.pooled["y"] > 0]
    assert 0 < len(sold) < len(case.pooled)
    assert case.scores["mape"] == pytest.approx(losses.mape(sold, ["q0.5"])["q0.5"].iloc[0])


def test_mase_and_sql_are_those_of_utilsforecast(case: _Case) -> None:
    theirs = losses.mase(case.long, ["q0.5"], _SEASON, case.train)["q0.5"]
    assert case.scores["mase"] == pytest.approx(theirs.mean(), rel=1e-6)
    deciles = [f"q{level:g}" for level in DECILES]
    scaled = losses.scaled_mqloss(case.long, {"m": deciles}, np.array(DECILES), _SEASON, case.train)["m"]
    # Its pinball loss is half of GluonTS' and fev's.
    assert case.scores["sql"] == pytest.approx(2 * scaled.mean(), rel=1e-6)


def test_pinball_and_wql_are_those_of_scikit_learn(case: _Case) -> None:
    theirs = {
        level: 2 * metrics.mean_pinball_loss(case.long["y"], case.long[f"q{level:g}"], alpha=level)
        for level in QUANTILE_LEVELS
    }
    for level, loss in theirs.items():
        assert case.scores[f"pinball_{level:g}"] == pytest.approx(loss)
    expected = np.mean([theirs[level] for level in DECILES]) / case.long["y"].mean()
    assert case.scores["wql"] == pytest.approx(expected)


def test_r2_is_that_of_scikit_learn_and_bias_that_of_utilsforecast(case: _Case) -> None:
    assert case.scores["r2"] == pytest.approx(metrics.r2_score(case.long["y"], case.long["mean"]))
    assert accuracy.r2(case.target, case.made.mean) == pytest.approx(case.scores["r2"])
    per_target = losses.bias(case.pooled, ["mean"])["mean"].iloc[0]
    assert case.scores["bias"] == pytest.approx(per_target / case.long["y"].mean())


@pytest.mark.parametrize(("share", "ends"), [(50, (0.25, 0.75)), (80, (0.1, 0.9)), (95, (0.025, 0.975))])
def test_coverage_is_that_of_utilsforecast(case: _Case, share: int, ends: tuple[float, float]) -> None:
    named = {f"q{ends[0]:g}": f"m-lo-{share}", f"q{ends[1]:g}": f"m-hi-{share}"}
    theirs = losses.coverage(case.pooled.rename(columns=named), ["m"], share)["m"].iloc[0]
    assert case.scores[f"coverage_{share}"] == pytest.approx(theirs)


def test_the_worst_calibration_is_that_of_the_level_furthest_off(case: _Case) -> None:
    # utilsforecast's calibration is the share of targets not above a quantile.
    not_above = {name: losses.calibration(case.pooled, {name: name})[name].iloc[0] for name in _NAMES}
    misses = [max(level - not_above[f"q{level:g}"], 0.0) for level in QUANTILE_LEVELS]
    for level, name in zip(QUANTILE_LEVELS, _NAMES, strict=True):
        below = float((case.long["y"] < case.long[name]).mean())
        assert below < not_above[name] or level > 0.5
        misses.append(max(below - level, 0.0))
    assert case.scores["calibration_worst"] == pytest.approx(max(misses))


def test_zeros_promised_and_sold_are_not_held_against_anyone() -> None:
    target = np.zeros((4, 5), dtype=np.float32)
    zeros = np.zeros((4, 5, len(QUANTILE_LEVELS)), dtype=np.float32)
    assert score_table(target, ModelOutputs(zeros, zeros[:, :, 0], zeros))["calibration_worst"] == 0
    always_above = ModelOutputs(zeros + 1, zeros[:, :, 0], zeros)
    assert score_table(target, always_above)["calibration_worst"] == pytest.approx(1 - 0.005)


def test_unknown_targets_are_left_out(case: _Case) -> None:
    target = case.target.copy()
    target[:, 10:] = np.nan
    cut = ModelOutputs(*(column[:, :10] for column in case.made))
    assert score_table(target, case.made, case.scale) == pytest.approx(score_table(target[:, :10], cut, case.scale))


def test_items_whose_scale_is_zero_are_left_out_of_scaled_errors_only(case: _Case) -> None:
    scale = case.scale.copy()
    scale[:10] = 0
    rest = ModelOutputs(*(column[10:] for column in case.made))
    found, expected = score_table(case.target, case.made, scale), score_table(case.target[10:], rest, scale[10:])
    assert (found["sql"], found["mase"]) == pytest.approx((expected["sql"], expected["mase"]))
    assert found["wql"] == case.scores["wql"]


def test_origins_add_up(case: _Case) -> None:
    total = sums_of(case.target[:9], ModelOutputs(*(column[:9] for column in case.made)), case.scale[:9])
    total.merge(sums_of(case.target[9:], ModelOutputs(*(column[9:] for column in case.made)), case.scale[9:]))
    assert table_of(total) == pytest.approx(case.scores)


def test_scores_of_nothing_are_nan() -> None:
    empty = np.empty((0, 3, len(QUANTILE_LEVELS)), dtype=np.float32)
    scores = score_table(np.empty((0, 3), dtype=np.float32), ModelOutputs(empty, empty[:, :, 0], empty))
    assert scores.pop("targets") == 0
    assert np.isnan(list(scores.values())).all()
