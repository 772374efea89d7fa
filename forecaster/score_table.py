"""The table of scores: one row for each contestant, by one piece of code, for `shelfcast evaluate` and the benchmarks.

Medians answer for what is judged by absolute errors (MAE, MAPE, WAPE, MASE), means for squared errors and sums (MSE,
RMSE, R², bias). SQL and WQL are over the levels 0.1 to 0.9, as in fev-bench and GluonTS, so that published figures can
stand beside them; pinball losses and calibration are over all of the contract's levels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forecaster import accuracy
from forecaster.contract import QUANTILE_LEVELS
from forecaster.score_sums import INTERVALS, Forecasts, ScoreSums

DECILES: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_DECILES = [QUANTILE_LEVELS.index(level) for level in DECILES]
# Lag of the naive forecast whose past error scales MASE and SQL, in buckets: fev-bench's and GluonTS' by frequency.
SEASONS: dict[str, int] = {"1h": 24, "1d": 7, "1w": 1}
# A loss by level and step is eight bytes for each of some thousand cells a row: this many rows at once stay small.
_ROWS = 2_000

Scores = dict[str, float]


def score_table(target: NDArray[np.float32], forecasts: Forecasts, scale: NDArray[np.float64] | None = None) -> Scores:
    """Scores of one contestant.

    Args:
        target: float32 (item, step): what happened, in units; NaN = not known, left out.
        forecasts: of the same items and steps.
        scale: float64 (item,), `accuracy.seasonal_error` of each item's past from its first sale on; items whose scale
            is 0 or NaN are left out of MASE and SQL. None = neither is told.
    """
    return table_of(sums_of(target, forecasts, scale))


def sums_of(target: NDArray[np.float32], forecasts: Forecasts, scale: NDArray[np.float64] | None = None) -> ScoreSums:
    """The sums behind `score_table`: those of several origins can be merged, and tell of steps and levels too."""
    sums = ScoreSums(target.shape[1])
    for first in range(0, len(target), _ROWS):
        rows = slice(first, first + _ROWS)
        part = _Part(forecasts.quantiles[rows], forecasts.mean[rows])
        sums.add(target[rows], part, None if scale is None else scale[rows])
    return sums


def table_of(sums: ScoreSums) -> Scores:
    """Scores over all steps; NaN where a measure has nothing to measure.

    Keys: targets, mse, rmse, mae, mape, wape, r2, bias, mase, sql, wql, coverage_50, coverage_80, coverage_95,
    calibration_worst, and pinball_LEVEL (mean of 2 · pinball, in units).
    """
    total = {name: values.sum(axis=0) for name, values in sums.sums.items()}
    count, actual = float(total["count"]), float(total["actual"])
    # Demand is never negative, so that the sum of |y| is the sum of y.
    spread = float(total["actual_square"]) - (actual**2 / count if count else 0.0)
    calibration = sums.calibration()
    scores = {
        "targets": count,
        "mse": _ratio(total["square_mean"], count),
        "rmse": float(np.sqrt(_ratio(total["square_mean"], count))),
        "mae": _ratio(total["abs_median"], count),
        "mape": _ratio(total["percentage"], total["percentage_count"]),
        "wape": _ratio(total["abs_median"], actual),
        "r2": 1 - _ratio(total["square_mean"], spread),
        "bias": _ratio(total["error_mean"], actual),
        "mase": _ratio(total["scaled"], total["scaled_count"]),
        "sql": _ratio(total["scaled_pinball"][_DECILES].mean(), total["scaled_count"]),
        "wql": _ratio(total["pinball"][_DECILES].mean(), actual),
        "calibration_worst": accuracy.calibration_worst(
            calibration["below"], calibration["not_above"], QUANTILE_LEVELS
        ),
    }
    scores |= {f"coverage_{share}": _ratio(total[f"inside_{share}"], count) for share in INTERVALS}
    losses = zip(QUANTILE_LEVELS, total["pinball"].tolist(), strict=True)
    return scores | {f"pinball_{level:g}": _ratio(loss, count) for level, loss in losses}


class _Part:
    """Some rows of forecasts."""

    def __init__(self, quantiles: NDArray[np.float32], mean: NDArray[np.float32]) -> None:
        self.quantiles = quantiles
        self.mean = mean


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")
