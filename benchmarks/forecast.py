"""Forecasts a second that the served model makes, through Triton and the worker's own client; the baseline beside it.

Inputs are made once, outside of the timed part, by the function that the worker uses. The baseline is what the worker
sends while no model answers: numpy in one process, without any request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import click
import numpy as np

from benchmarks.report import show
from feature_store.calendar_time import ShopCalendar
from feature_store.features import FEATURE_INDEX, FEATURES, BucketRows
from feature_store.items import NO_PRODUCT_STATE, Item
from forecaster.baselines import empirical_forecast
from forecaster.contract import MODEL_NAME, WINDOWS
from forecaster.inputs import ModelInputs, Subject, build_inputs
from worker.forecast_client import ForecastClient
from worker.local_stack import LocalStack

_FREQ_MS = {"1h": 3_600_000, "1d": 86_400_000}
_FREQS = ("1d", "1h")
_SIZES = (1, 32, 128, 256)
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


def _baseline(inputs: ModelInputs, prediction_length: int, seconds: float) -> dict[str, float]:
    took: list[float] = []
    began = time.monotonic()
    while (asked := time.monotonic()) < began + seconds:
        empirical_forecast(inputs, prediction_length)
        took.append(time.monotonic() - asked)
    rate = len(took) * len(inputs.context) / (time.monotonic() - began)
    return {"forecasts_per_s": round(rate, 1), "request_ms_p50": round(1000 * float(np.median(took)), 1)}


async def _measure(triton_url: str, seconds: float) -> list[dict[str, Any]]:
    client = ForecastClient(triton_url, model_name=MODEL_NAME, timeout_s=30)
    await client.check_model()
    cases: list[dict[str, Any]] = []
    for freq in _FREQS:
        for size in _SIZES:
            inputs = make_inputs(freq, size)
            for in_flight in (1, 2):
                found = await time_model(client, inputs, in_flight, seconds)
                cases.append({"forecaster": f"model, {in_flight} in flight", "freq": freq, "items": size} | found)
            found = _baseline(inputs, WINDOWS[freq].max_prediction_length, seconds)
            cases.append({"forecaster": "empirical baseline", "freq": freq, "items": size} | found)
    await client.close()
    return cases


def measure(seconds: float) -> dict[str, Any]:
    """Every size, freq and number of requests in flight for `seconds` each."""
    with LocalStack(kafka=False, redis=False) as stack:
        return {"seconds": seconds, "cases": asyncio.run(_measure(stack.triton_url, seconds))}


@click.command()
@click.option("--seconds", default=3.0, show_default=True, help="How long each case is measured.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(seconds: float, as_json: bool) -> None:
    """Forecasts a second through Triton, and of the baseline."""
    figures = measure(seconds)
    rows = [_row(freq, name, figures["cases"]) for freq in _FREQS for name in _forecasters(figures["cases"])]
    header = ("forecaster", *(f"{size} a request" for size in _SIZES))
    show("Forecasts/s (median time of a request)", header, rows, figures, as_json)


def _forecasters(cases: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(case["forecaster"] for case in cases))


def _row(freq: str, name: str, cases: Sequence[dict[str, Any]]) -> list[str]:
    steps = WINDOWS[freq].max_prediction_length
    own = [case for case in cases if case["freq"] == freq and case["forecaster"] == name]
    cells = [f"{case['forecasts_per_s']:,.0f} ({case['request_ms_p50']:,.1f} ms)" for case in own]
    return [f"{freq} × {steps}, {name}", *cells]


if __name__ == "__main__":
    command()
