"""A torch model as a DemandModel: the weights of a folder, on a GPU if there is one."""

from __future__ import annotations

from pathlib import Path

import torch

from forecaster.contract import Covariates
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.models.patch_transformer import load
from forecaster.passes import forecast


class TorchModel:
    """See `predictor.DemandModel`."""

    def __init__(self, folder: Path, *, threads: int = 1, device: str = "") -> None:
        """
        Raises:
            OSError: the folder holds no model.
            ValueError: the model was trained on other features than this code computes.
        """
        torch.set_num_threads(threads)
        self._model = load(folder).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def freqs(self) -> tuple[str, ...]:
        """The frequencies that it was trained for."""
        return tuple(self._model.config.freqs)

    @property
    def covariates(self) -> Covariates:
        """Its channels beyond the worker's own."""
        covariates: Covariates = self._model.config.covariates
        return covariates

    def forecast(self, inputs: ModelInputs) -> ModelOutputs:
        """Forecasts of any number of items of one freq; see `passes.forecast`."""
        return forecast(self._model, inputs, self.covariates)
