"""Forward passes of one fixed number of rows.

A matrix product's last bits depend on its shape, so a row's forecast would depend on how many rows stand beside it.
Every pass here has ROWS_PER_PASS rows, the last one padded; serving and evaluation both go through this loop.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forecaster.contract import NO_COVARIATES, OUTPUTS, ROWS_PER_PASS, Covariates
from forecaster.inputs import ModelInputs, ModelOutputs, check

Network = Callable[..., tuple[Tensor, ...]]  # contract.INPUTS in, contract.OUTPUTS out


def forecast(model: nn.Module, inputs: ModelInputs, covariates: Covariates = NO_COVARIATES) -> ModelOutputs:
    """Forecasts of any number of items of one freq, row for row those of each item alone. Runs where the model is.
    `covariates` are the model's own.

    Raises:
        ValueError: the inputs' shapes or freq are not what the model takes.
    """
    return run(model, inputs, next(model.parameters()).device, covariates)


def run(
    network: Network,
    inputs: ModelInputs,
    device: torch.device,
    covariates: Covariates = NO_COVARIATES,
    executor: Executor | None = None,
) -> ModelOutputs:
    """As `forecast`, of anything that takes and gives the contract's tensors, on `device`. With an executor passes run
    side by side, which changes no number: each is one thread's.

    Raises:
        ValueError: the inputs' shapes or freq are not what the model takes.
    """
    check(inputs, covariates)
    items, steps = len(inputs.context), inputs.known.shape[1] - inputs.context.shape[1]
    levels = OUTPUTS[0].dims[-1]
    out = ModelOutputs(
        np.empty((items, steps, levels), dtype=np.float32),
        np.empty((items, steps), dtype=np.float32),
        np.empty((items, steps, levels), dtype=np.float32),
    )

    def one_pass(first: int) -> None:
        rows = slice(first, min(first + ROWS_PER_PASS, items))
        with torch.inference_mode():  # of the thread that it is entered in
            made = network(*(torch.from_numpy(_padded(column[rows])).to(device) for column in inputs))
            for target, values in zip(out, made, strict=True):
                target[rows] = values[: rows.stop - first].cpu().numpy()

    starts = range(0, items, ROWS_PER_PASS)
    if executor is None or len(starts) == 1:
        for first in starts:
            one_pass(first)
    else:
        for _ in executor.map(one_pass, starts):  # raises what a pass raised
            pass
    return out


def _padded(rows: NDArray[Any]) -> NDArray[Any]:
    """The rows, the last one repeated until there are ROWS_PER_PASS."""
    if len(rows) == ROWS_PER_PASS:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], ROWS_PER_PASS - len(rows), axis=0)])
