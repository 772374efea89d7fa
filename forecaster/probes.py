"""Inputs of the contract that stand for no shop: to warm a model, and to hold two ways of serving one against each
other."""

from __future__ import annotations

from typing import Any

import numpy as np

from feature_store.known_future import KNOWN_CHANNELS, Span, known_channels
from forecaster.contract import (
    FREQ_CODES,
    INPUTS,
    NO_COVARIATES,
    PAST_CHANNELS,
    STATIC_CHANNELS,
    WINDOWS,
    Covariates,
    input_tensors,
)
from forecaster.inputs import ModelInputs

_ZONE = "Europe/London"
_BUCKET = {"1h": 480_000, "1d": 20_000, "1w": 2_800}  # of the year 2024


def blank_inputs(freq: str, covariates: Covariates = NO_COVARIATES) -> ModelInputs:
    """One row of `freq` with an empty past, a bland calendar, and as many steps as a model can be asked for."""
    window = WINDOWS[freq]
    sizes = {
        "context": (window.context_length,),
        "available_fraction": (window.context_length,),
        "known": (window.context_length + window.max_prediction_length,),
    }
    arrays: list[Any] = []
    for tensor in input_tensors(covariates):
        shape = (1, *sizes.get(tensor.name, ()), *(size for size in tensor.dims if size != -1))
        arrays.append(np.zeros(shape, dtype=np.int32 if tensor.triton_type == "TYPE_INT32" else np.float32))
    inputs = ModelInputs(*arrays)
    inputs.context.fill(np.nan)
    inputs.freq.fill(FREQ_CODES[freq])
    return inputs


def random_inputs(
    freq: str, items: int, seed: int, steps: int | None = None, covariates: Covariates = NO_COVARIATES
) -> ModelInputs:
    """Demand from dead to wild, pasts from none to full, any elapsed fraction, with and without an announced price,
    covariates of any value and unknown ones."""
    rng = np.random.default_rng(seed)
    window = WINDOWS[freq]
    length, steps = window.context_length, steps or window.max_prediction_length
    rate = np.exp(rng.normal(0, 3, size=(items, 1, 1)))
    context = rng.poisson(rate, size=(items, length, len(PAST_CHANNELS))).astype(np.float32)
    context *= rng.random((items, length, 1)) < rng.random((items, 1, 1))
    unseen = np.where(rng.random(items) < 0.3, length, rng.integers(0, length, items))
    context[np.arange(length) < unseen[:, None]] = np.nan
    known = known_channels(freq, [Span(_BUCKET[freq], _ZONE)] * items, length + steps, [[]] * items)
    known[: items // 2, :, KNOWN_CHANNELS.index("unit_price")] = 3.5
    available = known[:, :length, KNOWN_CHANNELS.index("open")].copy()
    available[np.isnan(context[:, :, 0])] = np.nan
    static = np.full((items, len(STATIC_CHANNELS)), 7, dtype=np.float32)
    static[::3, 0] = np.nan
    inputs = ModelInputs(
        context,
        available,
        known,
        rng.poisson(rate[:, 0], size=(items, len(PAST_CHANNELS))).astype(np.float32),
        rng.random((items, 1)).astype(np.float32),
        static,
        np.full((items, 1), FREQ_CODES[freq], dtype=np.int32),
    )
    return inputs if covariates == NO_COVARIATES else _with_covariates(inputs, covariates, rng)


def _with_covariates(inputs: ModelInputs, covariates: Covariates, rng: np.random.Generator) -> ModelInputs:
    widened = inputs._asdict()
    for own, tensor in zip(INPUTS, input_tensors(covariates), strict=True):
        more = tensor.dims[-1] - own.dims[-1]
        if more:
            values = rng.normal(0, 10, size=(*widened[own.name].shape[:-1], more)).astype(np.float32)
            values[rng.random(values.shape) < 0.2] = np.nan
            widened[own.name] = np.concatenate([widened[own.name], values], axis=-1)
    return ModelInputs(**widened)
