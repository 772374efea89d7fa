"""The contract between the worker and any served model: tensors, axis order, lengths, levels, and one hash over them.

Axis order is (item, time, channel) in and (item, step, quantile) out. Time is oldest first. NaN means "not observed".
`context` holds closed buckets only; the bucket that `cutoff` falls into (the *running* bucket) is the first step of the
forecast, and what has been observed of it so far comes beside it in `running` and `elapsed_fraction`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from feature_store.features import FEATURES
from feature_store.known_future import KNOWN_CHANNELS

QUANTILE_LEVELS: tuple[float, ...] = (
    0.005, 0.025, 0.05, 0.1, 0.165, 0.2, 0.25, 0.3, 0.4, 0.5,
    0.6, 0.7, 0.75, 0.8, 0.835, 0.9, 0.95, 0.975, 0.995,
)  # fmt: skip

FREQ_CODES: dict[str, int] = {"5m": 0, "1h": 1, "1d": 2, "1w": 3}

MODEL_NAME = "demand_forecaster"


class Window(NamedTuple):
    """How much past a model of one frequency is given, and the most future it can be asked for, in buckets."""

    context_length: int
    max_prediction_length: int


WINDOWS: dict[str, Window] = {
    "1h": Window(336, 48),  # two weeks: the shortest past that shows a week twice
    "1d": Window(392, 28),  # a year and a month: what came before the same days of last year tells how to read them
    "1w": Window(104, 52),  # two years, to see each season twice; ahead to the same week of the next year
}

PAST_CHANNELS: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
# days_since_launch: from launch_time, else from the item's first event, to cutoff. Codes: 1..1023 by hash, 0 unknown.
STATIC_CHANNELS: tuple[str, ...] = ("days_since_launch", "category_code", "brand_code")


class Covariates(NamedTuple):
    """Channels of a model beyond the worker's own, by name: they follow the others in `context` and in `known`.

    A model that has any is for tables and not for live forecasts, since no worker computes them.
    """

    past: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


NO_COVARIATES = Covariates()

# Every forward pass has this many rows, the last one padded, so that a forecast does not depend on its batch. Half of
# 64 costs a tenth of the throughput on a CPU core and saves a lone order half of its wait.
ROWS_PER_PASS = 32
MAX_BATCH_SIZE = 512
MAX_QUEUE_DELAY_US = 2_000
INSTANCES = 2  # by device: one computes while the other reads and answers; on a CPU each has a core of its own


class Tensor(NamedTuple):
    """A tensor of a request or response, without its leading item axis. -1 is a length that varies by frequency."""

    name: str
    triton_type: str
    dims: tuple[int, ...]
    meaning: str


INPUTS: tuple[Tensor, ...] = (
    Tensor("context", "TYPE_FP32", (-1, len(PAST_CHANNELS)), "closed buckets, in units; NaN = not observed"),
    Tensor(
        "available_fraction",
        "TYPE_FP32",
        (-1,),
        "part of each context bucket in which the item could be bought",
    ),
    Tensor("known", "TYPE_FP32", (-1, len(KNOWN_CHANNELS)), "known ahead: context then prediction buckets"),
    Tensor("running", "TYPE_FP32", (len(PAST_CHANNELS),), "sums observed so far in the running bucket"),
    Tensor("elapsed_fraction", "TYPE_FP32", (1,), "part of the running bucket that is over at cutoff, 0 to 1"),
    Tensor("static", "TYPE_FP32", (len(STATIC_CHANNELS),), "item attributes; NaN = unknown"),
    Tensor("freq", "TYPE_INT32", (1,), "code of the frequency, FREQ_CODES"),
)
OUTPUTS: tuple[Tensor, ...] = (
    Tensor(
        "quantiles",
        "TYPE_FP32",
        (-1, len(QUANTILE_LEVELS)),
        "of each bucket's final total of units; ascending",
    ),
    Tensor("mean", "TYPE_FP32", (-1,), "of each bucket's final total of units"),
    Tensor(
        "cumulative_quantiles",
        "TYPE_FP32",
        (-1, len(QUANTILE_LEVELS)),
        "of units from cutoff to each step's end",
    ),
)


def input_tensors(covariates: Covariates = NO_COVARIATES) -> tuple[Tensor, ...]:
    """INPUTS of a model that has further covariates."""
    more = {"context": len(covariates.past), "known": len(covariates.known), "running": len(covariates.past)}
    return tuple(t._replace(dims=(*t.dims[:-1], t.dims[-1] + more.get(t.name, 0))) for t in INPUTS)


def features_hash(covariates: Covariates = NO_COVARIATES) -> str:
    """Hash of everything a model's numbers depend on. A worker refuses a model that was trained on another."""
    meaning: dict[str, Any] = {
        "features": [list(feature) for feature in FEATURES],
        "known": KNOWN_CHANNELS,
        "static": STATIC_CHANNELS,
        "freq_codes": FREQ_CODES,
        "context_lengths": {freq: window.context_length for freq, window in WINDOWS.items()},
        "quantile_levels": QUANTILE_LEVELS,
        "tensors": [[t.name, t.triton_type, t.dims] for t in INPUTS + OUTPUTS],
    }
    if covariates != NO_COVARIATES:
        meaning["covariates"] = covariates
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


def _render_tensors(field: str, tensors: tuple[Tensor, ...]) -> str:
    entries = ",\n".join(
        f'  {{ name: "{t.name}", data_type: {t.triton_type}, dims: [ {", ".join(map(str, t.dims))} ] }}'
        for t in tensors
    )
    return f"{field} [\n{entries}\n]\n"


def render_config_pbtxt(covariates: Covariates = NO_COVARIATES) -> str:
    """Triton's config.pbtxt of the model. Queued requests of equal lengths become one batch, up to MAX_BATCH_SIZE."""
    return (
        f'name: "{MODEL_NAME}"\n'
        'backend: "python"\n'
        f"max_batch_size: {MAX_BATCH_SIZE}\n"
        + _render_tensors("input", input_tensors(covariates))
        + _render_tensors("output", OUTPUTS)
        + f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US} }}\n"
        + f"instance_group [ {{ count: {INSTANCES} }} ]\n"
        # All versions stay loaded, so that a new one can be checked and warmed before the worker is told to use it.
        + "version_policy: { all { } }\n"
        + f'parameters: {{ key: "features_hash", value: {{ string_value: "{features_hash(covariates)}" }} }}\n'
    )
