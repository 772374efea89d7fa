"""Distillation: a model learns from what trees say beside what happened, as in G. Hinton, O. Vinyals and J. Dean, 2015,
Distilling the knowledge in a neural network.

A teacher's say comes as units drawn from its quantiles, so that a model learns from it by the same losses as from
sales: the pinball loss of many draws is least at the quantiles that they were drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forecaster.batches import Weighted
from forecaster.contract import QUANTILE_LEVELS, Covariates
from forecaster.dataset import Window
from forecaster.demand_distribution import DemandDistribution
from forecaster.inputs import ModelInputs
from forecaster.models.gbm import GbmModel
from forecaster.predictor import load_model
from forecaster.sources import Source, widened


class TeacherError(ValueError):
    """What was named can't teach this model; says why and the remedy."""


@dataclass(frozen=True)
class Taught:
    """Another source's windows; of a `share` of them the units are drawn from what the teacher forecasts. What is
    unknown stays so."""

    source: Source
    teacher: GbmModel
    share: float

    @property
    def freqs(self) -> tuple[str, ...]:
        """The source's."""
        return self.source.freqs

    def draw(self, freq: str, size: int, rng: np.random.Generator) -> Window | None:
        """See Source."""
        window = self.source.draw(freq, size, rng)
        if window is None:
            return None
        rows = np.flatnonzero(rng.random(size) < self.share)
        if not len(rows):
            return window
        wide = widened(window, self.teacher.covariates)
        said = self.teacher.forecast(ModelInputs._make(column[rows] for column in wide.inputs))
        steps = window.units.shape[1]
        units, cumulative = window.units.copy(), window.cumulative_units.copy()
        units[rows] = _drawn(said.quantiles, rng.random((len(rows), steps)))
        # One level for all steps: each step's sum is judged by itself, so how sums hang together is of no matter.
        level = np.repeat(rng.random((len(rows), 1)), steps, axis=1)
        cumulative[rows] = _drawn(said.cumulative_quantiles, level)
        units[np.isnan(window.units)] = np.nan
        cumulative[np.isnan(window.cumulative_units)] = np.nan
        return window._replace(units=units, cumulative_units=cumulative)


def _drawn(quantiles: NDArray[np.float32], level: NDArray[np.float64]) -> NDArray[np.float32]:
    """Units (item, step) at levels (item, step) of quantiles (item, step, quantile), whole where all quantiles are."""
    flat = quantiles.reshape(-1, quantiles.shape[-1])
    units = DemandDistribution(flat, QUANTILE_LEVELS).value(level.reshape(-1)).reshape(level.shape)
    whole = (quantiles == quantiles.round()).all(axis=(1, 2))
    return np.where(whole[:, None], np.floor(units + 0.5), units).astype(np.float32)


def taught(sources: list[Weighted], folder: Path, share: float, covariates: Covariates) -> list[Weighted]:
    """The sources of frequencies that the trees of `folder` forecast with these in a share of their windows, the others
    as they are.

    Raises:
        TeacherError: the folder holds no trees, or trees of other covariates, or of none of the frequencies.
    """
    try:
        teacher = load_model(folder)
    except (OSError, ValueError) as error:
        raise TeacherError(f"{folder} holds no trees to learn from: {error}") from error
    if not isinstance(teacher, GbmModel):
        raise TeacherError(f"{folder} holds a model of another family: trees teach (shelfcast train --model gbm)")
    if teacher.covariates != covariates:
        raise TeacherError(
            f"the trees of {folder} were grown with other covariates than this model has: grow them from the same "
            "table, with the same --column"
        )
    if not any(set(weighted.source.freqs) <= set(teacher.freqs) for weighted in sources):
        raise TeacherError(f"the trees of {folder} forecast {' and '.join(teacher.freqs)}: name that by --freq")
    return [
        weighted._replace(source=Taught(weighted.source, teacher, share))
        if set(weighted.source.freqs) <= set(teacher.freqs)
        else weighted
        for weighted in sources
    ]
