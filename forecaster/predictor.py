"""A model of this process behind one function: what `shelfcast backtest` loads by name, so that no worker loads
torch."""

from __future__ import annotations

from pathlib import Path

import torch

from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.models.patch_transformer import load
from forecaster.passes import forecast


class Predictor:
    """The weights of a folder with config.json and model.safetensors, on a GPU if there is one.

    `threads`: of one forward pass; several processes that share the cores want 1 each.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """
        Raises:
            OSError: the folder holds no model.
            ValueError: the model was trained on other features than this code computes.
        """
        torch.set_num_threads(threads)
        self._model = load(folder).to("cuda" if torch.cuda.is_available() else "cpu")

    def forecast(self, inputs: ModelInputs) -> ModelOutputs:
        """Forecasts of any number of items of one freq; see `passes.forecast`."""
        return forecast(self._model, inputs)
