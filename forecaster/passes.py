"""Forward passes of one fixed number of rows.

A matrix product's last bits depend on its shape, so a row's forecast would depend on how many rows stand beside it.
Every pass here has ROWS_PER_PASS rows, the last one padded; serving and evaluation both go through this loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from forecaster.contract import NO_COVARIATES, OUTPUTS, ROWS_PER_PASS, Covariates
from forecaster.inputs import ModelInputs, ModelOutputs, check


def forecast(model: nn.Module, inputs: ModelInputs, covariates: Covariates = NO_COVARIATES) -> ModelOutputs:
    """Forecasts of any number of items of one freq, row for row those of each item alone. Runs where the model is.
    `covariates` are the model's own.

    Raises:
        ValueError: the inputs' shapes or freq are not what the model takes.
    """
    check(inputs, covariates)
    device = next(model.parameters()).device
    items, steps = len(inputs.context), inputs.known.shape[1] - inputs.context.shape[1]
    levels = OUTPUTS[0].dims[-1]
    out = ModelOutputs(
        np.empty((items, steps, levels), dtype=np.float32),
        np.empty((items, steps), dtype=np.float32),
        np.empty((items, steps, levels), dtype=np.float32),
    )
    with torch.inference_mode():
        for first in range(0, items, ROWS_PER_PASS):
            rows = slice(first, min(first + ROWS_PER_PASS, items))
            tensors = [torch.from_numpy(_padded(column[rows])).to(device) for column in inputs]
            made = model(*tensors)
            for target, values in zip(out, made, strict=True):
                target[rows] = values[: rows.stop - first].cpu().numpy()
    return out


def _padded(rows: NDArray[Any]) -> NDArray[Any]:
    """The rows, the last one repeated until there are ROWS_PER_PASS."""
    if len(rows) == ROWS_PER_PASS:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], ROWS_PER_PASS - len(rows), axis=0)])
