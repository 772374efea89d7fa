"""Contestants that forecast by the contract: models of a folder, and the baseline that workers fall back on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from forecaster.baselines import empirical_forecast
from forecaster.contract import NO_COVARIATES, Covariates
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.predictor import DemandModel
from forecaster.rolling_origins import Forecasts, Integers
from forecaster.series import SeriesTable

# Some thousand windows at once: their inputs take about as many times 20 kB.
_ROWS = 4_096


class ByContract:
    """A contestant that is given the contract's inputs."""

    def __init__(
        self,
        name: str,
        forecast: Callable[[ModelInputs, int], ModelOutputs],
        covariates: Covariates = NO_COVARIATES,
    ) -> None:
        self.names = (name,)
        self.fallbacks: Mapping[str, int] = {}
        self._forecast = forecast
        self._covariates = covariates

    def forecast(
        self, table: SeriesTable, rows: Integers, running: int, prediction_length: int
    ) -> Mapping[str, Forecasts]:
        """See `rolling_origins.Contestants`."""
        parts = []
        for first in range(0, len(rows), _ROWS):
            chosen = rows[first : first + _ROWS]
            window = table.windows(chosen, np.full(len(chosen), running), prediction_length, self._covariates)
            parts.append(self._forecast(window.inputs, prediction_length))
        quantiles = np.concatenate([part.quantiles for part in parts])
        return {self.names[0]: Forecasts(quantiles, np.concatenate([part.mean for part in parts]))}


def of_model(name: str, model: DemandModel) -> ByContract:
    """A model of any family."""
    return ByContract(name, lambda inputs, _: model.forecast(inputs), model.covariates)


def empirical() -> ByContract:
    """What workers send while no model answers."""
    return ByContract("empirical", empirical_forecast)
