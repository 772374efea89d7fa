"""Trains the boosted trees: of windows, which are drawn like those of any other model.

Means by Tweedie's deviance, weighted so that it is the deviance in units (a deviance of power p of y/s is that of y
times s^(p-2)): large items count as much as they sell, and sums over items come out unbiased. Quantiles by pinball
loss, each item weighing 1 / (its error by the seasonal naive), which is what SQL measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from feature_store.features import FEATURE_INDEX
from forecaster import contract
from forecaster.accuracy import pinball, seasonal_error
from forecaster.contract import QUANTILE_LEVELS, Covariates
from forecaster.dataset import Window
from forecaster.models.gbm import GbmConfig, GbmModel, Trees, add_up
from forecaster.models.gbm_features import Rows, build_rows

_UNITS = FEATURE_INDEX["units"]
_SEASONS = {"1h": 168, "1d": 7, "1w": 1}
_EXPONENTS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class GbmPlan:
    """How the trees are grown."""

    mean_trees: int = 600
    quantile_trees: int = 200
    learning_rate: float = 0.05
    leaves: int = 63
    least_rows: int = 100  # of a leaf
    tweedie_power: float = 1.1
    quantile_rows: int = 600_000  # of all rows, at most, for each level
    levels: tuple[float, ...] = (
        0.005, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.995,
    )  # fmt: skip
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class _Sample:
    rows: Rows
    target: NDArray[np.float32]  # (row,) what is sold after the cutoff, in levels of the item; NaN = not known
    level: NDArray[np.float32]  # (row,)
    weight: NDArray[np.float32]  # (row,) of quantiles


def train(
    windows: Mapping[str, Sequence[Window]],
    validation: Mapping[str, Sequence[Window]],
    plan: GbmPlan,
    covariates: Covariates,
) -> GbmModel:
    """Trees of every freq in `windows`. `validation` says when to stop adding trees, and how sums spread.

    Windows of one freq have one number of steps.
    """
    trees, addition = {}, {}
    for freq, some in windows.items():
        learnt, judged = _sample(freq, some, covariates), _sample(freq, validation[freq], covariates)
        mean = _grow(learnt, judged, _mean_parameters(plan), plan.mean_trees, _mean_weight(plan))
        quantiles = [_grow_quantile(learnt, judged, level, plan) for level in plan.levels]
        trees[freq] = Trees(mean, quantiles)
        addition[freq] = 0.5
    config = GbmConfig(
        freqs=tuple(windows),
        levels=plan.levels,
        past_covariates=covariates.past,
        known_covariates=covariates.known,
        addition=addition,
        features_hash=contract.features_hash(covariates),
    )
    model = GbmModel(config, trees, threads=plan.threads)
    for freq, some in validation.items():
        addition[freq] = _best_addition(model, some)
    return model


def _sample(freq: str, windows: Sequence[Window], covariates: Covariates) -> _Sample:
    made = [build_rows(window.inputs, covariates) for window in windows]
    level = np.concatenate([rows.level for rows in made])
    steps = windows[0].units.shape[1]
    units = np.concatenate([window.units for window in windows])
    units[:, 0] -= np.concatenate([window.inputs.running[:, _UNITS] for window in windows])
    past = np.concatenate([window.inputs.context[:, :, _UNITS] for window in windows])
    error = seasonal_error(past, _SEASONS[freq])
    # An item without a usable past weighs as one whose error is its level; none more than ten of those.
    weight = np.where(error > 0, np.minimum(level / np.maximum(error, 1e-9), 10.0), 1.0)
    return _Sample(
        rows=Rows(made[0].names, np.concatenate([rows.values for rows in made]), level, made[0].categorical),
        target=(np.maximum(units, 0) / level[:, None]).ravel(),
        level=np.repeat(level, steps),
        weight=np.repeat(weight, steps).astype(np.float32),
    )


def _common(plan: GbmPlan) -> dict[str, Any]:
    return {
        "learning_rate": plan.learning_rate,
        "num_leaves": plan.leaves,
        "min_data_in_leaf": plan.least_rows,
        "feature_fraction": 0.6,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambda_l2": 0.1,
        "max_cat_to_onehot": 8,
        "cat_smooth": 50,
        "num_threads": plan.threads,
        "seed": plan.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


def _mean_parameters(plan: GbmPlan) -> dict[str, Any]:
    return _common(plan) | {"objective": "tweedie", "tweedie_variance_power": plan.tweedie_power, "metric": "tweedie"}


def _mean_weight(plan: GbmPlan) -> float:
    return 2 - plan.tweedie_power


def _grow(learnt: _Sample, judged: _Sample, parameters: dict[str, Any], trees: int, power: float) -> lightgbm.Booster:
    """The booster of the mean; rows weigh level^power."""
    known, held = np.isfinite(learnt.target), np.isfinite(judged.target)
    names, categorical = learnt.rows.names, learnt.rows.categorical
    data = lightgbm.Dataset(
        learnt.rows.values[known],
        learnt.target[known],
        weight=learnt.level[known] ** power,
        feature_name=names,
        categorical_feature=categorical,
        params=parameters,
    )
    check = lightgbm.Dataset(
        judged.rows.values[held], judged.target[held], weight=judged.level[held] ** power, reference=data
    )
    return _boost(parameters, data, check, trees)


def _grow_quantile(learnt: _Sample, judged: _Sample, level: float, plan: GbmPlan) -> lightgbm.Booster:
    parameters = _common(plan) | {"objective": "quantile", "alpha": level, "metric": "quantile"}
    rng = np.random.default_rng(plan.seed)
    known, held = np.flatnonzero(np.isfinite(learnt.target)), np.flatnonzero(np.isfinite(judged.target))
    if len(known) > plan.quantile_rows:
        known = np.sort(rng.choice(known, plan.quantile_rows, replace=False))
    data = lightgbm.Dataset(
        learnt.rows.values[known],
        learnt.target[known],
        weight=learnt.weight[known],
        feature_name=learnt.rows.names,
        categorical_feature=learnt.rows.categorical,
        params=parameters,
    )
    check = lightgbm.Dataset(judged.rows.values[held], judged.target[held], weight=judged.weight[held], reference=data)
    return _boost(parameters, data, check, plan.quantile_trees)


def _boost(parameters: dict[str, Any], data: Any, check: Any, trees: int) -> lightgbm.Booster:
    stop = lightgbm.early_stopping(50, verbose=False)
    return lightgbm.train(parameters, data, trees, valid_sets=[check], callbacks=[stop])


def _best_addition(model: GbmModel, windows: Sequence[Window]) -> float:
    """The exponent of sums that judges best: by pinball loss of the sums over the validation windows."""
    losses = dict.fromkeys(_EXPONENTS, 0.0)
    for window in windows:
        made = model.forecast(window.inputs)
        observed = np.zeros(made.mean.shape)
        observed[:, 0] = window.inputs.running[:, _UNITS]
        quantiles, mean = made.quantiles - observed[:, :, None], made.mean - observed
        scale = np.maximum(np.nanmean(window.units, axis=1), 0.1)[:, None]
        for exponent in _EXPONENTS:
            sums = add_up(quantiles.astype(np.float64), mean, exponent)
            loss = pinball(window.cumulative_units, sums, QUANTILE_LEVELS).mean(-1) / scale
            losses[exponent] += float(np.nansum(loss))
    return min(losses, key=losses.__getitem__)
