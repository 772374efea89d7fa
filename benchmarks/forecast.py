"""Forecasts a second of the served model: in torch, beside the architecture of Chronos-Bolt tiny in turns with it at
the same context and horizon; and through Triton and the worker's own client.

Inputs are made once, outside of the timed part, by the function that the worker uses. Both models have the same number
of threads: ours in passes of a fixed number of rows side by side, the peer within one batch or in one batch a thread,
whichever is faster.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.chronos_bolt import ChronosBoltTiny
from benchmarks.report import show
from feature_store.calendar_time import ShopCalendar
from feature_store.features import FEATURE_INDEX, FEATURES, BucketRows
from feature_store.items import NO_PRODUCT_STATE, Item
from forecaster.contract import MAX_BATCH_SIZE, MODEL_NAME, WINDOWS
from forecaster.inputs import ModelInputs, Subject, build_inputs
from forecaster.predictor import load_model
from worker.forecast_client import ForecastClient
from worker.local_stack import LocalStack

_SHIPPED = Path(__file__).parents[1] / "triton_models" / MODEL_NAME / "1"
_FREQ_MS = {"1h": 3_600_000, "1d": 86_400_000}
_SIZES = (1, 32, 256, 1024)
_IN_FLIGHT = 2  # requests to Triton, as many as the worker's client allows
_ROUNDS = 3
_CUTOFF_MS = 1_763_733_600_000  # a Friday, 14:00 UTC
_MEAN_UNITS = 2.0  # a bucket


def make_inputs(freq: str, items: int) -> ModelInputs:
    """Items with a full context of Poisson sales; the same for the same arguments."""
    length, prediction_length = WINDOWS[freq]
    first_ms = _CUTOFF_MS - (length + 1) * _FREQ_MS[freq]
    subjects = [Subject(Item(f"p{n}", f"p{n}", "", first_ms, _CUTOFF_MS), NO_PRODUCT_STATE) for n in range(items)]
    running = _CUTOFF_MS // _FREQ_MS[freq]
    units = np.random.default_rng(1).poisson(_MEAN_UNITS, size=(items, length + 1))
    values = np.zeros((units.size, len(FEATURES)), dtype=np.int64)
    values[:, FEATURE_INDEX["units"]] = 1000 * units.ravel()
    values[:, FEATURE_INDEX["order_lines"]] = units.ravel() > 0
    rows = BucketRows(
        np.repeat(np.arange(items), length + 1),
        np.tile(np.arange(running - length, running + 1), items),
        values,
    )
    return build_inputs(freq, _CUTOFF_MS, subjects, rows, ShopCalendar("UTC"), [], prediction_length)


async def time_model(client: ForecastClient, inputs: ModelInputs, in_flight: int, seconds: float) -> dict[str, float]:
    """Forecasts a second of requests with `inputs`, `in_flight` of them at any time, and the median time of one."""
    for _ in repeat(None, 3):  # the first passes of a size are slower
        await client.forecast(inputs)
    took: list[float] = []
    began = time.monotonic()

    async def ask() -> None:
        while (asked := time.monotonic()) < began + seconds:
            await client.forecast(inputs)
            took.append(time.monotonic() - asked)

    await asyncio.gather(*(ask() for _ in range(in_flight)))
    rate = len(took) * len(inputs.context) / (time.monotonic() - began)
    return {"forecasts_per_s": round(rate, 1), "request_ms_p50": round(1000 * float(np.median(took)), 1)}


async def _through_triton(triton_url: str, freq: str, seconds: float) -> dict[str, float]:
    client = ForecastClient(triton_url, model_name=MODEL_NAME, timeout_s=30)
    await client.check_model()
    rates = {}
    for size in _SIZES:
        inputs = make_inputs(freq, min(size, MAX_BATCH_SIZE))
        rates[str(size)] = (await time_model(client, inputs, _IN_FLIGHT, seconds))["forecasts_per_s"]
    await client.close()
    return rates


def _in_torch(weights: Path, freq: str, threads: int, seconds: float) -> dict[str, dict[str, float]]:
    """Medians of rounds in which the two take turns; of the peer's two ways the faster."""
    ours, peer = load_model(weights, threads=threads), ChronosBoltTiny(*WINDOWS[freq], threads)
    rates: dict[str, dict[str, float]] = {"shelfcast": {}, "chronos_bolt_tiny": {}}
    for size in _SIZES:
        inputs = make_inputs(freq, size)
        units = np.ascontiguousarray(inputs.context[:, :, FEATURE_INDEX["units"]])
        ways: list[tuple[str, Callable[[Any], Any], Any]] = [
            ("shelfcast", ours.forecast, inputs),
            ("chronos_bolt_tiny", peer.forecast, units),
            ("chronos_bolt_tiny", peer.forecast_in_parts, units),
        ]
        found: list[list[float]] = [[] for _ in ways]
        for _ in range(_ROUNDS):
            for (_, call, given), of_rounds in zip(ways, found, strict=True):
                torch.set_num_threads(1)  # of a pass of ours; the peer sets its own
                of_rounds.append(size * _calls_a_second(call, given, seconds))
        for (name, *_), of_rounds in zip(ways, found, strict=True):
            rates[name][str(size)] = round(max(statistics.median(of_rounds), rates[name].get(str(size), 0)), 1)
    return rates


def _calls_a_second(call: Callable[[Any], Any], given: Any, seconds: float) -> float:
    call(given)  # the first one of a size is slower
    calls, began = 0, time.monotonic()
    while time.monotonic() < began + seconds:
        call(given)
        calls += 1
    return calls / (time.monotonic() - began)


def measure(weights: Path, freq: str, threads: int, seconds: float) -> dict[str, Any]:
    """Every size for `seconds`, in torch and through Triton."""
    rates = _in_torch(weights, freq, threads, seconds)
    with LocalStack(kafka=False, redis=False) as stack:
        triton = asyncio.run(_through_triton(stack.triton_url, freq, seconds))
    ratio = {s: round(rate / rates["chronos_bolt_tiny"][s], 2) for s, rate in rates["shelfcast"].items()}
    return {
        "torch": rates,
        "triton": triton,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} CPU cores",
        "times_chronos_bolt_tiny": ratio,
        "freq": freq,
        "context_length": WINDOWS[freq].context_length,
        "prediction_length": WINDOWS[freq].max_prediction_length,
    }


@click.command()
@click.option("--freq", type=click.Choice(list(_FREQ_MS)), default="1d", show_default=True, help="Frequency.")
@click.option(
    "--weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=_SHIPPED,
    help="Folder of the model that torch runs; default: the shipped one. Triton serves the shipped one.",
)
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default="the cores", help="Of both models.")
@click.option("--seconds", default=2.0, show_default=True, help="How long each size is measured, in each round.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(freq: str, weights: Path, threads: int, seconds: float, as_json: bool) -> None:
    """Forecasts a second in torch, beside Chronos-Bolt tiny's architecture, and through Triton."""
    figures = measure(weights, freq, threads, seconds)
    rows = [[f"{name}, torch", *_cells(rates)] for name, rates in figures["torch"].items()]
    rows.append(["times as many", *(f"{ratio:.1f}" for ratio in figures["times_chronos_bolt_tiny"].values())])
    rows.append([f"shelfcast, Triton, {_IN_FLIGHT} requests in flight", *_cells(figures["triton"])])
    window = WINDOWS[freq]
    title = f"Forecasts/s of {window.max_prediction_length} steps from {window.context_length}, {figures['device']}"
    show(title, (freq, *(f"{size} items" for size in _SIZES)), rows, figures, as_json)


def _cells(rates: Mapping[str, float]) -> list[str]:
    return [f"{rate:,.0f}" for rate in rates.values()]


if __name__ == "__main__":
    command()
