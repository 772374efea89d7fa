"""Rolling-origin evaluation on days a model was not trained on, against the baselines, all through the served code
path."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from feature_store.calendar_time import ShopCalendar
from feature_store.features import FEATURE_INDEX
from forecaster import accuracy, online_retail
from forecaster.baselines import empirical_forecast, seasonal_naive_forecast
from forecaster.contract import MODEL_NAME, QUANTILE_LEVELS, WINDOWS
from forecaster.dataset import History, Window
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.models.patch_transformer import PatchTransformer, load
from forecaster.passes import forecast

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
_MEDIAN = QUANTILE_LEVELS.index(0.5)
_LOWER, _UPPER = QUANTILE_LEVELS.index(0.1), QUANTILE_LEVELS.index(0.9)
_UNITS = FEATURE_INDEX["units"]

Forecaster = Callable[[ModelInputs, int], ModelOutputs]


class Case(NamedTuple):
    """One row of cutoffs: a freq, how much past is known, and at which local hours forecasts are made."""

    freq: str
    past_days: int | None  # None = all there is; else a worker that began to listen so many days before
    hours: tuple[int, ...]
    every_days: int


class Score(NamedTuple):
    """Scores of one forecaster in one case, over the steps named."""

    freq: str
    past: str
    steps: str
    forecaster: str
    wql: float
    wape_median: float
    wape_mean: float
    bias_mean: float
    coverage_80: float
    targets: int


CASES: tuple[Case, ...] = (
    Case("1d", None, (0, 12), 4),
    Case("1d", 28, (0, 12), 4),
    Case("1d", 14, (0, 12), 4),
    Case("1d", 7, (0, 12), 4),
    Case("1h", None, (9, 13), 4),
    Case("1h", 14, (9, 13), 4),
    Case("1h", 7, (9, 13), 4),
)


def forecasters(model: PatchTransformer | None) -> dict[str, Forecaster]:
    """What is compared, by name; all take inputs and a prediction length."""
    found: dict[str, Forecaster] = {
        "seasonal naive": seasonal_naive_forecast,
        "empirical": empirical_forecast,
    }
    if model is not None:
        found["model"] = lambda inputs, steps: forecast(model, inputs)
    return found


def windows(history: History, case: Case, since_ms: int, items: int) -> Iterator[Window]:
    """Windows of a case: cutoffs from `since_ms` until the history's end, the busiest `items` of the eight weeks before
    `since_ms` that the worker knows by the cutoff."""
    zone_day = history.calendar.buckets("1d", np.array([since_ms, history.end_ms]), ("", ""))
    busiest = np.argsort(-history.order_lines(since_ms - 56 * _DAY_MS, since_ms), kind="stable")[:items]
    steps = WINDOWS[case.freq].max_prediction_length
    for day in range(int(zone_day[0]), int(zone_day[1]), case.every_days):
        date = dt.date(1970, 1, 1) + dt.timedelta(days=day)
        start_ms = 0 if case.past_days is None else online_retail.day_start_ms(date - dt.timedelta(days=case.past_days))
        for hour in case.hours:
            cutoff_ms = online_retail.day_start_ms(date) + hour * _HOUR_MS
            known = busiest[history.first_order_ms(busiest, start_ms) < cutoff_ms]
            if len(known) and cutoff_ms < history.end_ms - _DAY_MS:
                yield history.window(case.freq, cutoff_ms, known, steps, start_ms)


def score(case: Case, name: str, parts: Sequence[tuple[Window, ModelOutputs]], steps: tuple[str, slice]) -> Score:
    """Scores over all windows of a case. Later steps are pooled: total loss over total demand."""
    label, cut = steps
    target = np.concatenate([window.units[:, cut].ravel() for window, _ in parts])
    quantiles = np.concatenate([out.quantiles[:, cut].reshape(-1, len(QUANTILE_LEVELS)) for _, out in parts])
    mean = np.concatenate([out.mean[:, cut].ravel() for _, out in parts])
    past = "all" if case.past_days is None else f"{case.past_days} d"
    return Score(
        case.freq,
        past,
        label,
        name,
        accuracy.wql(target, quantiles, QUANTILE_LEVELS),
        accuracy.wape(target, quantiles[:, _MEDIAN]),
        accuracy.wape(target, mean),
        accuracy.bias(target, mean),
        accuracy.coverage(target, quantiles[:, _LOWER], quantiles[:, _UPPER]),
        int(np.isfinite(target).sum()),
    )


def evaluate(
    history: History, since_ms: int, compared: dict[str, Forecaster], items: int, cases: Sequence[Case] = CASES
) -> list[Score]:
    """Scores of every forecaster in every case: the first step apart from the later ones."""
    out = []
    for case in cases:
        cut = list(windows(history, case, since_ms, items))
        made = {name: [(w, ask(w.inputs, w.units.shape[1])) for w in cut] for name, ask in compared.items()}
        for steps in (("first", slice(0, 1)), ("later", slice(1, None))):
            out += [score(case, name, parts, steps) for name, parts in made.items()]
    return out


def render(scores: Sequence[Score]) -> Table:
    """Scores as a table, one line each."""
    table = Table(title="rolling-origin evaluation, lower WQL and WAPE are better, coverage of 80% is 0.80")
    for column in ("freq", "past", "steps", "forecaster", "WQL", "WAPE median", "WAPE mean", "bias", "coverage 80%"):
        table.add_column(column)
    for row, following in zip(scores, [*scores[1:], None], strict=True):
        last = following is None or (following.freq, following.past, following.steps) != (row.freq, row.past, row.steps)
        table.add_row(*row[:4], *(f"{value:.3f}" for value in row[4:9]), end_section=last)
    return table


@click.command("evaluate")
@click.option(
    "--online-retail",
    "path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Online Retail II as Parquet.",
)
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d"]),
    default="2011-02-28",
    show_default=True,
    help="First local date on which forecasts are made; take one the model has not seen.",
)
@click.option(
    "--model",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(__file__).resolve().parent.parent / "triton_models" / MODEL_NAME / "1",
    show_default=True,
    help="Folder with config.json and model.safetensors.",
)
@click.option("--items", default=500, show_default=True, help="How many items, the busiest before --since.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
def command(path: Path, since: dt.datetime, folder: Path, items: int, as_json: bool) -> None:
    """Score the model and the baselines on Online Retail II."""
    lines = online_retail.read(path)
    # The last day of the record is not whole.
    end = dt.date(1970, 1, 1) + dt.timedelta(days=int(lines.event_time_ms[-1] // _DAY_MS))
    calendar = ShopCalendar(online_retail.TIME_ZONE)
    history = History(lines.batch(), calendar, online_retail.day_start_ms(end))
    model = load(folder)
    scores = evaluate(history, online_retail.day_start_ms(since.date()), forecasters(model), items)
    if as_json:
        click.echo(json.dumps([row._asdict() for row in scores], indent=2))
    else:
        Console().print(render(scores))
