"""A torch model as a DemandModel: the weights of a folder, on a GPU if there is one, served as its config says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from forecaster.contract import Covariates
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.models.graphs import Graphs
from forecaster.models.patch_transformer import load
from forecaster.passes import run
from forecaster.serving import Serving, serving_of


class TorchModel:
    """See `predictor.DemandModel`."""

    def __init__(self, folder: Path, *, threads: int = 1, gpu: int = 0, serving: Serving | None = None) -> None:
        """
        Args:
            folder: with config.json and model.safetensors.
            threads: passes that run at once on a CPU; the numbers do not depend on it.
            gpu: which one, where there are any.
            serving: instead of the config's.

        Raises:
            OSError: the folder holds no model.
            ValueError: the model was trained on other features than this code computes, or its config asks for a way
                of serving that there is not.
        """
        serving = serving or serving_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        # One thread a pass: a second one speeds 32 rows up by next to nothing, another pass keeps it busy.
        torch.set_num_threads(1)
        self._device = torch.device("cuda", gpu) if torch.cuda.is_available() else torch.device("cpu")
        model = load(folder).to(self._device)
        self._config = model.config
        self._network = Graphs(model, serving)
        at_once = threads if self._device.type == "cpu" else 1
        self._executor = ThreadPoolExecutor(at_once, "forward-pass") if at_once > 1 else None

    @property
    def freqs(self) -> tuple[str, ...]:
        """The frequencies that it was trained for."""
        return tuple(self._config.freqs)

    @property
    def covariates(self) -> Covariates:
        """Its channels beyond the worker's own."""
        covariates: Covariates = self._config.covariates
        return covariates

    def forecast(self, inputs: ModelInputs) -> ModelOutputs:
        """Forecasts of any number of items of one freq; see `passes.run`."""
        return run(self._network, inputs, self._device, self.covariates, self._executor)
