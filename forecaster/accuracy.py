"""Scores of forecasts. numpy in, a float out; the definitions are GluonTS' and fev's, and say where they differ.

Arrays are target (…, step) and quantiles (…, step, quantile) or point forecasts (…, step); steps whose target is NaN
are left out. A score of nothing, or one divided by 0, is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64] | NDArray[np.float32]


def pinball(target: Array, quantiles: Array, levels: Sequence[float]) -> NDArray[np.float64]:
    """2 · |(y - f) · (1[y <= f] - q)|: float64 (…, step, quantile), NaN where the target is.

    The factor 2 makes the loss of the median the absolute error: Gneiting and Raftery (2007); GluonTS'
    quantile_loss, fev.
    """
    miss = np.asarray(target, dtype=np.float64)[..., None] - np.asarray(quantiles, dtype=np.float64)
    q = np.asarray(levels, dtype=np.float64)
    return np.asarray(2 * np.maximum(q * miss, (q - 1) * miss))


def wql(target: Array, quantiles: Array, levels: Sequence[float]) -> float:
    """Weighted quantile loss: sum of pinball losses over sum of |y|, averaged over the levels.

    GluonTS' mean_weighted_sum_quantile_loss, fev's WQL.
    """
    return _ratio(float(np.nansum(pinball(target, quantiles, levels))) / len(levels), _total(target))


def sql(target: Array, quantiles: Array, levels: Sequence[float], scale: Array) -> float:
    """Scaled quantile loss: each series' pinball loss over its own `scale` (…), averaged over series, steps and levels.

    fev's SQL, M5's WSPL without its weights. Series with a scale of 0 or NaN are left out.
    """
    by_series = pinball(target, quantiles, levels).mean(axis=-1)
    return _mean(by_series / _usable(scale)[..., None])


def mase(target: Array, point: Array, scale: Array) -> float:
    """Mean absolute scaled error: sql of a point. Hyndman and Koehler (2006); `scale` as seasonal_error."""
    error = np.abs(np.asarray(target, dtype=np.float64) - point)
    return _mean(error / _usable(scale)[..., None])


def seasonal_error(past: Array, season: int) -> NDArray[np.float64]:
    """Scale of MASE and SQL: mean of |y[t] - y[t - season]| over the past (…, time); NaN days are left out. float64
    (…)."""
    values = np.asarray(past, dtype=np.float64)
    step = np.abs(values[..., season:] - values[..., :-season])
    known = np.isfinite(step)
    count = known.sum(axis=-1)
    return np.where(count > 0, np.where(known, step, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def wape(target: Array, point: Array) -> float:
    """Sum of absolute errors over sum of |y|. GluonTS' ND, fev's WAPE."""
    return _ratio(np.nansum(np.abs(np.asarray(target, dtype=np.float64) - point)), _total(target))


def mae(target: Array, point: Array) -> float:
    """Mean absolute error, in units."""
    return _mean(np.abs(np.asarray(target, dtype=np.float64) - point))


def mse(target: Array, point: Array) -> float:
    """Mean squared error, in units squared."""
    return _mean((np.asarray(target, dtype=np.float64) - point) ** 2)


def rmse(target: Array, point: Array) -> float:
    """Root of the mean squared error, in units."""
    return float(np.sqrt(mse(target, point)))


def mape(target: Array, point: Array) -> float:
    """Mean of |y - f| / |y| over the steps at which something was sold: of a 0 it is not defined."""
    values = np.asarray(target, dtype=np.float64)
    return _mean(np.abs(values - point) / _usable(np.abs(values)))


def r2(target: Array, point: Array) -> float:
    """Coefficient of determination, over all series and steps together: 1 - squared errors over squared distances from
    the mean of y."""
    values = np.asarray(target, dtype=np.float64)
    known = np.isfinite(values)
    spread = float(((values[known] - values[known].mean()) ** 2).sum()) if known.any() else 0.0
    return 1 - _ratio(float(np.nansum((values - point) ** 2)), spread)


def bias(target: Array, point: Array) -> float:
    """Sum of (forecast - y) over sum of |y|: above 0 = too much was forecast. What unbiased means are judged by."""
    return _ratio(np.nansum(np.asarray(point, dtype=np.float64) - target), _total(target))


def coverage(target: Array, lower: Array, upper: Array) -> float:
    """Share of targets with lower <= y <= upper. Demand of 0 on a lower quantile of 0 is covered, so that
    intermittent items cover more than the levels promise."""
    values = np.asarray(target, dtype=np.float64)
    known = np.isfinite(values)
    inside = (values >= np.asarray(lower)) & (values <= np.asarray(upper))
    return _ratio(float((inside & known).sum()), float(known.sum()))


def share_below(target: Array, quantiles: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of targets below each quantile, and of those not above it: float64 (quantile,) each.

    Forecasts keep their promise at a level that lies between the two: demand often equals a quantile that is 0.
    """
    values = np.asarray(target, dtype=np.float64)
    y = values[np.isfinite(values)][:, None]
    told = np.asarray(quantiles)[np.isfinite(values)]
    count = len(y) or np.nan
    return (y < told).sum(axis=0) / count, (y <= told).sum(axis=0) / count


def calibration_worst(
    below: NDArray[np.float64] | Sequence[float],
    not_above: NDArray[np.float64] | Sequence[float],
    levels: Sequence[float],
) -> float:
    """By how much the worst level misses its promise, 0 at best: `below` may not be more than the level, nor
    `not_above` less."""
    q = np.asarray(levels, dtype=np.float64)
    return float(np.max([np.asarray(below) - q, q - np.asarray(not_above), np.zeros_like(q)]))


def _total(target: Array) -> float:
    return float(np.nansum(np.abs(np.asarray(target, dtype=np.float64))))


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")


def _mean(values: NDArray[np.float64]) -> float:
    known = np.isfinite(values)
    return float(values[known].mean()) if known.any() else float("nan")


def _usable(scale: Array) -> NDArray[np.float64]:
    values = np.asarray(scale, dtype=np.float64)
    return np.where(values > 0, values, np.nan)
