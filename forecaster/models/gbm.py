"""Boosted trees (LightGBM) as a DemandModel: direct quantiles and means of each step, one row for each (item, step).

A peer of the patch transformer and a teacher for it: slower to serve, quick to train, strong where calendar and prices
matter. What trees cannot promise is arranged afterwards: quantiles are sorted, at least 0, and of the first step at
least what the running bucket has sold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray

from feature_store.features import FEATURE_INDEX
from forecaster import contract
from forecaster.contract import FREQ_CODES, QUANTILE_LEVELS, Covariates
from forecaster.inputs import ModelInputs, ModelOutputs, check
from forecaster.models.gbm_features import build_rows

MODEL_TYPE = "shelfcast_gbm"
_UNITS = FEATURE_INDEX["units"]
_ITEMS_AT_ONCE = 512  # rows of features are 28 to 52 times as many
_NAMES = {code: freq for freq, code in FREQ_CODES.items()}


@dataclass(frozen=True)
class GbmConfig:
    """What config.json holds beside the trees.

    Attributes:
        freqs: frequencies that there are trees for.
        levels: quantile levels that there are trees for; the others are interpolated between them.
        past_covariates, known_covariates: channels beyond the worker's own.
        addition: by freq, the exponent a of how sums over steps spread: their deviation is (sum of d^(1/a))^a of the
            steps' deviations d. 0.5 = independent steps, 1 = steps that move together.
        features_hash: as `contract.features_hash`.
    """

    freqs: tuple[str, ...]
    levels: tuple[float, ...]
    past_covariates: tuple[str, ...]
    known_covariates: tuple[str, ...]
    addition: Mapping[str, float]
    features_hash: str

    @property
    def covariates(self) -> Covariates:
        """Channels beyond the worker's own."""
        return Covariates(tuple(self.past_covariates), tuple(self.known_covariates))


class Trees:
    """Boosters of one freq: of the mean, and of each trained level, all in levels of the item."""

    def __init__(self, mean: lightgbm.Booster, quantiles: Sequence[lightgbm.Booster]) -> None:
        self.mean = mean
        self.quantiles = list(quantiles)


class GbmModel:
    """See `predictor.DemandModel`."""

    def __init__(self, config: GbmConfig, trees: Mapping[str, Trees], *, threads: int = 1) -> None:
        """Raises ValueError where the trees were trained on other features than this code computes."""
        expected = contract.features_hash(config.covariates)
        if config.features_hash != expected:
            raise ValueError(
                f"these trees were trained on features {config.features_hash}, this code computes {expected}: train "
                "them anew, or use the release that made them"
            )
        self.config = config
        self._trees = dict(trees)
        self._threads = threads

    @property
    def freqs(self) -> tuple[str, ...]:
        """The frequencies that it was trained for."""
        return tuple(self.config.freqs)

    @property
    def covariates(self) -> Covariates:
        """Its channels beyond the worker's own."""
        return self.config.covariates

    def forecast(self, inputs: ModelInputs) -> ModelOutputs:
        """Forecasts of any number of items of one freq.

        Raises:
            ValueError: the inputs' shapes or freq are not what the model takes.
        """
        check(inputs, self.covariates)
        freq = _NAMES[int(inputs.freq[0, 0])]
        if freq not in self._trees:
            raise ValueError(f"this model forecasts {list(self.freqs)}, not {freq}")
        parts = []
        for first in range(0, len(inputs.freq), _ITEMS_AT_ONCE):
            some = ModelInputs._make(column[first : first + _ITEMS_AT_ONCE] for column in inputs)
            parts.append(self._forecast(some, self._trees[freq], self.config.addition[freq]))
        return ModelOutputs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _forecast(self, inputs: ModelInputs, trees: Trees, addition: float) -> ModelOutputs:
        rows = build_rows(inputs, self.covariates)
        shape = (len(inputs.freq), -1)
        level = rows.level[:, None].astype(np.float64)
        mean = np.maximum(_predict(trees.mean, rows.values, self._threads).reshape(shape), 0) * level
        by_level = [_predict(booster, rows.values, self._threads).reshape(shape) for booster in trees.quantiles]
        quantiles = np.maximum(_all_levels(np.stack(by_level, axis=-1), self.config.levels), 0) * level[:, :, None]
        return arrange(inputs, quantiles, mean, addition)

    def save(self, folder: Path) -> None:
        """Write config.json and one text file for each booster; read by `load`."""
        folder.mkdir(parents=True, exist_ok=True)
        for freq, trees in self._trees.items():
            for name, booster in _files(freq, self.config.levels, trees):
                booster.save_model(str(folder / name))
        config = {"model_type": MODEL_TYPE, **asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _files(freq: str, levels: Sequence[float], trees: Trees) -> list[tuple[str, lightgbm.Booster]]:
    named = [(_quantile_file(freq, level), b) for level, b in zip(levels, trees.quantiles, strict=True)]
    return [(f"{freq}_mean.txt", trees.mean), *named]


def _quantile_file(freq: str, level: float) -> str:
    return f"{freq}_q{level:g}.txt"


def load(folder: Path, *, threads: int = 1) -> GbmModel:
    """The model of a folder that `GbmModel.save` wrote.

    Raises:
        OSError: a file is missing.
        ValueError: trained on other features than this code computes, or damaged.
    """
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = GbmConfig(
        freqs=tuple(stored["freqs"]),
        levels=tuple(stored["levels"]),
        past_covariates=tuple(stored["past_covariates"]),
        known_covariates=tuple(stored["known_covariates"]),
        addition=stored["addition"],
        features_hash=stored["features_hash"],
    )

    def booster(name: str) -> lightgbm.Booster:
        text = (folder / name).read_text(encoding="utf-8")
        try:
            return lightgbm.Booster(model_str=text)
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"{folder / name} is damaged: {error}") from error

    trees = {
        freq: Trees(booster(f"{freq}_mean.txt"), [booster(_quantile_file(freq, level)) for level in config.levels])
        for freq in config.freqs
    }
    return GbmModel(config, trees, threads=threads)


def _predict(booster: lightgbm.Booster, values: NDArray[np.float32], threads: int) -> NDArray[np.float64]:
    return np.asarray(booster.predict(values, num_threads=threads), dtype=np.float64)


def _all_levels(values: NDArray[np.float64], levels: Sequence[float]) -> NDArray[np.float64]:
    """All of QUANTILE_LEVELS from values at some, ascending: linear in the level between them."""
    values = np.sort(values, axis=-1)
    at = np.interp(QUANTILE_LEVELS, levels, np.arange(len(levels)))
    low = np.minimum(at.astype(np.int64), len(levels) - 2)
    share = at - low
    return np.asarray(values[..., low] * (1 - share) + values[..., low + 1] * share)


def arrange(
    inputs: ModelInputs, quantiles: NDArray[np.float64], mean: NDArray[np.float64], addition: float
) -> ModelOutputs:
    """Outputs of the contract from ascending quantiles (item, step, quantile) and means (item, step) of what is sold
    after the cutoff. Of items that have sold whole units only, quantiles are whole: 0.4 pieces are not what one item in
    ten sells, but no piece is."""
    elapsed = np.clip(np.nan_to_num(inputs.elapsed_fraction[:, 0]), 0, 1)
    share = np.clip(4 * (1 - elapsed), 0, 1)  # nothing is to come at the bucket's end
    quantiles, mean = quantiles.copy(), mean.copy()
    quantiles[:, 0] *= share[:, None]
    mean[:, 0] *= share
    cumulative = add_up(quantiles, mean, addition).astype(np.float32)
    observed = np.nan_to_num(inputs.running[:, _UNITS])
    final = quantiles.astype(np.float32)
    whole = _sells_whole_units(inputs)[:, None, None]
    final, cumulative = (np.where(whole, np.floor(values + 0.5), values) for values in (final, cumulative))
    final[:, 0] += observed[:, None]
    total = mean.astype(np.float32)
    total[:, 0] += observed
    return ModelOutputs(final, total, cumulative)


def _sells_whole_units(inputs: ModelInputs) -> NDArray[np.bool_]:
    """Whether all that is known of an item was sold in whole units: (item,)."""
    units = np.nan_to_num(np.concatenate([inputs.context[:, :, _UNITS], inputs.running[:, _UNITS, None]], axis=1))
    return np.asarray((units == np.round(units)).all(axis=1))


def add_up(quantiles: NDArray[np.float64], mean: NDArray[np.float64], addition: float) -> NDArray[np.float64]:
    """Quantiles of sums from the first step on (item, step, quantile): means add, deviations from them add as
    (sum of d^(1/addition))^addition. At least 0, never falling over steps, ascending over levels."""
    deviation = quantiles - mean[:, :, None]
    powers = np.cumsum(np.sign(deviation) * np.abs(deviation) ** (1 / addition), axis=1)
    total = np.cumsum(mean, axis=1)[:, :, None] + np.sign(powers) * np.abs(powers) ** addition
    total[:, 0] = quantiles[:, 0]
    return np.maximum.accumulate(np.maximum(total, 0.0), axis=1)
