"""One interface for every family of models: a folder with a config.json becomes something that forecasts.

`shelfcast backtest` loads this module by name, so that no worker loads torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from forecaster.contract import Covariates
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.serving import Serving


class DemandModel(Protocol):
    """A model that forecasts by the contract. A row's forecast does not depend on the rows beside it."""

    @property
    def freqs(self) -> tuple[str, ...]:
        """The frequencies that it was trained for."""

    @property
    def covariates(self) -> Covariates:
        """Its channels beyond the worker's own."""

    def forecast(self, inputs: ModelInputs) -> ModelOutputs:
        """Forecasts of any number of items of one freq.

        Raises:
            ValueError: the inputs' shapes or freq are not what the model takes.
        """


def load_model(folder: Path, *, threads: int = 1, gpu: int = 0, serving: Serving | None = None) -> DemandModel:
    """The model of a folder, whatever its family, on a GPU if there is one and the family can use it.

    `threads`: of one forecast; several processes that share the cores want 1 each. `gpu`: which, where there are any.
    `serving`: instead of what the folder's config.json says, for families that heed it.

    Raises:
        OSError: the folder holds no model.
        ValueError: the model is of no known family, damaged, or was trained on other features than this code computes.
        ModuleNotFoundError: the family's library is not installed.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = config.get("model_type")
    # Imported here: who serves one family need not have the libraries of the others.
    if family == "shelfcast_patch_transformer":
        from forecaster.models.torch_model import TorchModel  # noqa: PLC0415

        return TorchModel(folder, threads=threads, gpu=gpu, serving=serving)
    if family == "shelfcast_gbm":
        from forecaster.models.gbm import load  # noqa: PLC0415

        return load(folder, threads=threads)
    raise ValueError(f"{folder}/config.json names model_type {family!r}: it is no model of shelfcast")
