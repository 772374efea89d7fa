"""A rolling-origin backtest over a table of series: everyone forecasts from the same origins, one code scores them.

Who is slow forecasts for a seeded sample of the series only. So there are two tables: everyone on the sample, and who
is fast on all series too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecaster.accuracy import pinball
from forecaster.contract import QUANTILE_LEVELS
from forecaster.rolling_origins import Contestants, Floats, Forecasts, Integers, Origin, seasonal_scale, targets
from forecaster.score_sums import MEDIAN, ScoreSums
from forecaster.score_table import sums_of
from forecaster.series import SeriesTable


class Plan(NamedTuple):
    """What is asked of everyone.

    Attributes:
        origins: of `rolling_origins.origins_of`.
        prediction_length: steps from each.
        season: lag of the naive forecast that scales MASE and SQL, in buckets.
        sample: int64 (item,), ascending: the series on which everyone is scored.
    """

    origins: Sequence[Origin]
    prediction_length: int
    season: int
    sample: Integers


class Group(NamedTuple):
    """Contestants that forecast together, and whether for all series or for the sample alone."""

    contestants: Contestants
    everywhere: bool


@dataclass
class Result:
    """Of one contestant.

    Attributes:
        on_all: sums over all series; None where only the sample was forecast.
        on_sample: sums over the sample.
        series_error: float64 (sample, 2): each series' sum of scaled absolute errors of the median, and their count.
        series_loss: float64 (sample, 2): each series' sum of mean quantile losses, and its units.
        signed: mean less actual over each series' scale, on the sample: float32 (target,) an origin.
        seconds: that forecasting took, training at each origin included.
    """

    on_all: ScoreSums | None
    on_sample: ScoreSums
    series_error: NDArray[np.float64]
    series_loss: NDArray[np.float64]
    signed: list[Floats] = field(default_factory=list)
    seconds: float = 0.0


class Told(NamedTuple):
    """What the leading contestant said at one origin of the sample's series: `rows` of the table, and its forecasts."""

    running: int
    rows: Integers
    forecasts: Forecasts


class Evaluation(NamedTuple):
    """A finished backtest: results by name in the order of the groups; `lead` is the first name, whose forecasts are
    kept; `fallbacks` as `rolling_origins.Contestants` has them."""

    plan: Plan
    series: int
    results: Mapping[str, Result]
    lead: str
    told: Sequence[Told]
    fallbacks: Mapping[str, int]


def draw_sample(table: SeriesTable, origins: Sequence[Origin], size: int, seed: int) -> Integers:
    """Up to `size` of the series that any origin has, by a seeded draw: int64 (item,), ascending."""
    candidates: Integers = np.unique(np.concatenate([origin.rows for origin in origins]))
    if len(candidates) <= size:
        return candidates
    drawn: Integers = np.sort(np.random.default_rng(seed).choice(candidates, size, replace=False))
    return drawn


def evaluate(
    table: SeriesTable, plan: Plan, groups: Sequence[Group], progress: Callable[[str], None] = lambda text: None
) -> Evaluation:
    """Let everyone forecast from every origin, and score them.

    Args:
        table: the series.
        plan: what is asked.
        groups: who takes part; of the first one's first name the forecasts are kept.
        progress: is told what comes next.
    """
    names = [name for group in groups for name in group.contestants.names]
    lead, told = names[0], list[Told]()
    whole = len(plan.sample) == len(np.unique(np.concatenate([origin.rows for origin in plan.origins])))
    results: dict[str, Result] = {}
    for group in groups:
        for name in group.contestants.names:
            results[name] = _empty(plan, on_all=group.everywhere and not whole)
    for number, origin in enumerate(plan.origins, start=1):
        for group in groups:
            everywhere = group.everywhere and not whole
            rows = origin.rows if everywhere else np.intersect1d(origin.rows, plan.sample)
            if not len(rows):  # of the sample none had begun by then
                continue
            progress(f"origin {number} of {len(plan.origins)}: {', '.join(group.contestants.names)}")
            began = time.perf_counter()
            made = group.contestants.forecast(table, rows, origin.running, plan.prediction_length)
            seconds = (time.perf_counter() - began) / len(made)
            question = _Question(table, plan, rows, origin.running)
            for name, forecasts in made.items():
                results[name].seconds += seconds
                _score(question, forecasts, results[name])
            if lead in made:
                kept = np.isin(rows, plan.sample)
                told.append(Told(origin.running, rows[kept], _rows_of(made[lead], kept)))
    fallbacks = {name: count for group in groups for name, count in group.contestants.fallbacks.items()}
    return Evaluation(plan, len(table), results, lead, told, fallbacks)


class _Question:
    """What happened after an origin, to the series that were forecast."""

    def __init__(self, table: SeriesTable, plan: Plan, rows: Integers, running: int) -> None:
        self.target = targets(table, rows, running, plan.prediction_length)
        self.scale = seasonal_scale(table, rows, running, plan.season)
        self.in_sample = np.isin(rows, plan.sample)
        self.place = np.searchsorted(plan.sample, rows[self.in_sample])


def _empty(plan: Plan, *, on_all: bool) -> Result:
    steps, series = plan.prediction_length, len(plan.sample)
    zeros = np.zeros((series, 2))
    return Result(ScoreSums(steps) if on_all else None, ScoreSums(steps), zeros, zeros.copy())


def _score(question: _Question, forecasts: Forecasts, result: Result) -> None:
    if result.on_all is not None:
        result.on_all.merge(sums_of(question.target, forecasts, question.scale))
    kept = question.in_sample
    target, scale, chosen = question.target[kept].astype(np.float64), question.scale[kept], _rows_of(forecasts, kept)
    result.on_sample.merge(sums_of(question.target[kept], chosen, scale))
    usable = np.where(scale > 0, scale, np.nan)[:, None]
    scaled = np.abs(target - chosen.quantiles[:, :, MEDIAN]) / usable
    loss = pinball(target, chosen.quantiles, QUANTILE_LEVELS).mean(axis=-1)
    result.series_error[question.place] += np.stack([np.nansum(scaled, axis=1), np.isfinite(scaled).sum(axis=1)], 1)
    result.series_loss[question.place] += np.stack([np.nansum(loss, axis=1), np.nansum(target, axis=1)], 1)
    signed = ((chosen.mean - target) / usable).ravel()
    result.signed.append(signed[np.isfinite(signed)].astype(np.float32))


def _rows_of(forecasts: Forecasts, kept: NDArray[np.bool_]) -> Forecasts:
    return Forecasts(forecasts.quantiles[kept], forecasts.mean[kept])
