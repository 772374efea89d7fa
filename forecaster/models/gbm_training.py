"""Trains the boosted trees: of windows, which are drawn like those of any other model.

Means by Tweedie's deviance, weighted so that it is the deviance in units (a deviance of power p of y/s is that of y
times s^(p-2)): large items count as much as they sell, and sums over items come out unbiased. Quantiles by pinball
loss, each item weighing 1 / (its error by the seasonal naive), which is what SQL measures.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
# LightGBM does not say that datasets may be made side by side, and once found labels in one that nobody had put there.
_MAKING = threading.Lock()
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
    addition: float = 0.7  # how sums over steps spread, see GbmConfig
    levels: tuple[float, ...] = (
        0.005, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.995,
    )  # fmt: skip
    threads: int = 0  # boosters grown at once; 0 = one a core
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
    """Trees of every freq in `windows`. `validation` says when to stop adding trees, and how sums spread; without it,
    as many are grown as `plan` has, and sums spread as `plan` says.

    Windows of one freq have one number of steps.
    """
    trees, addition = {}, {}
    for freq, some in windows.items():
        learnt = _sample(freq, some, covariates)
        judged = _sample(freq, validation[freq], covariates) if freq in validation else None
        # Side by side with one thread each: LightGBM's own threads wait for each other at every split.
        with ThreadPoolExecutor(plan.threads or os.cpu_count()) as pool:
            mean = pool.submit(_grow_mean, learnt, judged, plan)
            quantiles = [pool.submit(_grow_quantile, learnt, judged, level, plan) for level in plan.levels]
            trees[freq] = Trees(mean.result(), [quantile.result() for quantile in quantiles])
        addition[freq] = plan.addition
    config = GbmConfig(
        freqs=tuple(windows),
        levels=plan.levels,
        past_covariates=covariates.past,
        known_covariates=covariates.known,
        addition=addition,
        features_hash=contract.features_hash(covariates),
    )
    model = GbmModel(config, trees)
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
        "num_threads": 1,
        "seed": plan.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


def _grow_mean(learnt: _Sample, judged: _Sample | None, plan: GbmPlan) -> lightgbm.Booster:
    power = plan.tweedie_power
    parameters = _common(plan) | {"objective": "tweedie", "tweedie_variance_power": power, "metric": "tweedie"}
    data, check = _datasets(learnt, judged, np.flatnonzero(np.isfinite(learnt.target)), parameters, 2 - power)
    return _boost(parameters, data, check, plan.mean_trees)


def _grow_quantile(learnt: _Sample, judged: _Sample | None, level: float, plan: GbmPlan) -> lightgbm.Booster:
    parameters = _common(plan) | {"objective": "quantile", "alpha": level, "metric": "quantile"}
    known = np.flatnonzero(np.isfinite(learnt.target))
    if len(known) > plan.quantile_rows:
        known = np.sort(np.random.default_rng(plan.seed).choice(known, plan.quantile_rows, replace=False))
    data, check = _datasets(learnt, judged, known, parameters, None)
    return _boost(parameters, data, check, plan.quantile_trees)


def _datasets(
    learnt: _Sample, judged: _Sample | None, known: NDArray[np.intp], parameters: dict[str, Any], volume: float | None
) -> tuple[Any, Any]:
    """LightGBM's data of the rows `known`, and of all that judges, if any; rows weigh level^volume, or as quantiles
    do."""

    def weight(sample: _Sample, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        return sample.weight[rows] if volume is None else sample.level[rows] ** np.float32(volume)

    def dataset(sample: _Sample, rows: NDArray[np.intp], reference: Any = None) -> Any:
        return lightgbm.Dataset(
            sample.rows.values[rows],
            sample.target[rows],
            weight=weight(sample, rows),
            reference=reference,
            feature_name=sample.rows.names,
            categorical_feature=sample.rows.categorical,
            params=parameters,
        )

    data = dataset(learnt, known)
    check = None if judged is None else dataset(judged, np.flatnonzero(np.isfinite(judged.target)), data)
    with _MAKING:
        data.construct()
        if check is not None:
            check.construct()
    return data, check


def _boost(parameters: dict[str, Any], data: Any, check: Any, trees: int) -> lightgbm.Booster:
    if check is None:
        return lightgbm.train(parameters, data, trees)
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
