"""Forecasts without a network: what models are measured against, and what the worker sends while no model answers.

numpy only, vectorised over items. Both take the tensors of the contract and hold its promises: quantiles ascend, the
first step's are never below what has been observed, nothing is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.features import FEATURE_INDEX
from feature_store.known_future import KNOWN_CHANNELS
from forecaster.contract import FREQ_CODES, QUANTILE_LEVELS
from forecaster.inputs import ModelInputs, ModelOutputs

_UNITS = FEATURE_INDEX["units"]
_OPEN = KNOWN_CHANNELS.index("open")


class _Season(NamedTuple):
    """Which past buckets speak for a step: those a multiple of `spacing` before it, `samples` of them. Those a
    multiple of `period` before it count fully, the others by `weight`."""

    period: int
    spacing: int
    samples: int
    weight: float


_SEASONS: dict[int, _Season] = {
    FREQ_CODES["5m"]: _Season(period=2016, spacing=288, samples=14, weight=0.12),
    # Two weeks hold an hour of the week only twice: the same hour of other days helps out.
    FREQ_CODES["1h"]: _Season(period=168, spacing=24, samples=14, weight=0.12),
    # Eight times the same weekday, with the other days of those weeks as a seasoning.
    FREQ_CODES["1d"]: _Season(period=7, spacing=1, samples=56, weight=0.08),
    FREQ_CODES["1w"]: _Season(period=1, spacing=1, samples=12, weight=1.0),
}
# With what weight three made-up values (nothing, the item's mean, three times that) stand beside real ones: enough to
# answer for an item with no closed bucket, too little to matter later.
_PRIOR_WEIGHT = 0.02


def seasonal_naive(inputs: ModelInputs, prediction_length: int) -> NDArray[np.float32]:
    """Each step's value one season before it (a week; the last bucket for 1w), repeated for longer horizons: float32
    (item, step). Where that bucket was not observed, the mean of those that were; the running bucket's at least what it
    has sold."""
    units = inputs.context[:, :, _UNITS]
    length = units.shape[1]
    period = _SEASONS[int(inputs.freq[0, 0])].period
    steps = np.arange(prediction_length)
    at = length - period + steps % period
    out = np.where(np.isfinite(units[:, at]), units[:, at], _level(inputs)[:, None]).astype(np.float32)
    out[:, 0] = np.maximum(out[:, 0], inputs.running[:, _UNITS])
    return out


def seasonal_naive_forecast(inputs: ModelInputs, prediction_length: int) -> ModelOutputs:
    """The same where quantiles are asked for: every quantile is the point."""
    point = seasonal_naive(inputs, prediction_length)
    quantiles = np.repeat(point[:, :, None], len(QUANTILE_LEVELS), axis=2)
    return ModelOutputs(quantiles, point, np.cumsum(quantiles, axis=1))


def empirical_forecast(inputs: ModelInputs, prediction_length: int) -> ModelOutputs:
    """Quantiles of each item's own past at the same place of the season, shrunk towards its other past.

    The rest of the running bucket is taken as the unexpired part of such a bucket. Sums over steps add deviations
    from the mean in quadrature, as if steps were independent. Steps announced as closed are forecast as 0. All items
    have one freq.
    """
    units = inputs.context[:, :, _UNITS].astype(np.float64)
    available = np.nan_to_num(inputs.available_fraction, nan=1.0)
    units = np.where(available > 0, units, np.nan)
    values, weights = _samples(units, _SEASONS[int(inputs.freq[0, 0])], _level(inputs), prediction_length)
    future_open = inputs.known[:, inputs.context.shape[1] :, _OPEN][:, :prediction_length]
    share = np.where(np.isfinite(future_open), np.clip(future_open, 0, 1), 1.0).astype(np.float64)
    share[:, 0] *= 1 - np.clip(np.nan_to_num(inputs.elapsed_fraction[:, 0]), 0, 1)
    quantiles = _weighted_quantiles(values, weights)[:, _phase(values, prediction_length)] * share[:, :, None]
    mean = ((values * weights).sum(-1) / weights.sum(-1))[:, _phase(values, prediction_length)] * share
    cumulative = _sums(quantiles, mean)
    observed = np.nan_to_num(inputs.running[:, _UNITS]).astype(np.float64)
    quantiles[:, 0] += observed[:, None]
    mean[:, 0] += observed
    final = quantiles.astype(np.float32)
    # float32 may round a sum to below the float32 it was made from.
    final[:, 0] = np.maximum(final[:, 0], np.nan_to_num(inputs.running[:, _UNITS, None]))
    return ModelOutputs(final, mean.astype(np.float32), cumulative.astype(np.float32))


def _phase(values: NDArray[np.float64], prediction_length: int) -> NDArray[np.intp]:
    return np.arange(prediction_length) % values.shape[1]


def _level(inputs: ModelInputs) -> NDArray[np.float64]:
    """Units a bucket, from closed buckets, else from the running one: float64 (item,)."""
    units = inputs.context[:, :, _UNITS].astype(np.float64)
    known = np.isfinite(units)
    # Of a bucket that has only begun, no more than fourfold is made.
    running = np.nan_to_num(inputs.running[:, _UNITS]) / np.clip(np.nan_to_num(inputs.elapsed_fraction[:, 0]), 0.25, 1)
    mean = np.where(known, units, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    return np.where(known.any(1), mean, running)


def _samples(
    units: NDArray[np.float64], season: _Season, level: NDArray[np.float64], steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values that speak for each phase of the season, and their weights: float64 (item, phase, value), ascending
    values.

    Phases beyond `steps` are left out. Weights of values not observed are 0.
    """
    length = units.shape[1]
    phases = min(season.period, steps)
    phase = np.arange(phases)[:, None]
    at = length + phase % season.spacing - season.spacing * (1 + np.arange(season.samples))
    base = np.where((length + phase - at) % season.period == 0, 1.0, season.weight)
    values = units[:, np.clip(at, 0, length - 1)]
    weights = np.where((at >= 0) & np.isfinite(values), base, 0.0)
    prior = level[:, None, None] * np.array([0.0, 1.0, 3.0])
    values = np.concatenate([np.nan_to_num(values), np.broadcast_to(prior, (len(units), phases, 3))], axis=-1)
    weights = np.concatenate([weights, np.full((len(units), phases, 3), _PRIOR_WEIGHT)], axis=-1)
    order = np.argsort(values, axis=-1)
    return np.take_along_axis(values, order, -1), np.take_along_axis(weights, order, -1)


def _weighted_quantiles(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smallest value at which the weights below and at it reach each level's share: (item, phase, quantile),
    ascending."""
    reached = np.cumsum(weights, axis=-1)
    out = np.empty((*values.shape[:2], len(QUANTILE_LEVELS)))
    for i, level in enumerate(QUANTILE_LEVELS):
        below = (reached < level * reached[..., -1:]).sum(-1)
        out[..., i] = np.take_along_axis(values, below[..., None], -1)[..., 0]
    return out


def _sums(quantiles: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of sums from the first step on: ascending over levels, never falling over steps, never below 0."""
    deviation = quantiles - mean[:, :, None]
    squares = np.cumsum(np.sign(deviation) * deviation**2, axis=1)
    total = np.cumsum(mean, axis=1)[:, :, None] + np.sign(squares) * np.sqrt(np.abs(squares))
    return np.maximum.accumulate(np.maximum(total, 0.0), axis=1)
