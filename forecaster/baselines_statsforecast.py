"""Baselines of statsforecast, each series by itself, with quantiles from the library's prediction intervals.

Our levels are the ends of nine central intervals and the median, so each is asked for as it is and nothing is
interpolated. Naive, seasonal naive, AutoETS and Theta have intervals of their own, which are symmetric; those of the
Croston family are conformal: the spread of the method's own errors in up to CONFORMAL_WINDOWS windows of the past, step
by step. The median is the method's point. Demand is not negative: what is below 0 becomes 0, which makes the baselines
better than published tables have them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from statsforecast import models as library
from statsforecast.utils import ConformalIntervals

from forecaster.contract import QUANTILE_LEVELS
from forecaster.rolling_origins import Floats, Forecasts, Integers, filled_past
from forecaster.series import SeriesTable

CONFORMAL_WINDOWS = 10
_SERIES_A_TASK = 50
# Of 19 ascending levels the i-th and the i-th from the end bound one interval; its share in per cent.
_INTERVALS = [round(100 * (1 - 2 * level)) for level in QUANTILE_LEVELS[: len(QUANTILE_LEVELS) // 2]]


class Season(NamedTuple):
    """Buckets after which demand repeats itself: as far as AutoETS and Theta can follow, and for the naive."""

    smooth: int
    naive: int


# An hour's like is the same hour of the week, but ETS takes no season above 24. Years of weeks are too few to smooth.
_SEASONS = {"1h": Season(24, 168), "1d": Season(7, 7), "1w": Season(1, 52)}

_Build = Callable[[Season, ConformalIntervals | None], Any]
_BUILD: dict[str, _Build] = {
    "naive": lambda season, conformal: library.Naive(),
    "seasonal_naive": lambda season, conformal: library.SeasonalNaive(season_length=season.naive),
    "auto_ets": lambda season, conformal: library.AutoETS(season_length=season.smooth),
    "theta": lambda season, conformal: library.AutoTheta(season_length=season.smooth),
    "croston": lambda season, conformal: library.CrostonOptimized(prediction_intervals=conformal),
    "croston_sba": lambda season, conformal: library.CrostonSBA(prediction_intervals=conformal),
    "adida": lambda season, conformal: library.ADIDA(prediction_intervals=conformal),
    "imapa": lambda season, conformal: library.IMAPA(prediction_intervals=conformal),
    "tsb": lambda season, conformal: library.TSB(alpha_d=0.2, alpha_p=0.2, prediction_intervals=conformal),
}
# Those that take under five milliseconds a series, and those that take a hundred.
FAST = ("naive", "seasonal_naive", "croston", "croston_sba", "adida", "imapa", "tsb")
SLOW = ("auto_ets", "theta")
_OWN_INTERVALS = ("naive", "seasonal_naive", *SLOW)


class _Task(NamedTuple):
    """Series for one process, and what to do with them."""

    names: tuple[str, ...]
    season: Season
    prediction_length: int
    pasts: list[Floats]
    non_negative: bool


class StatsForecast:
    """Some of the library's methods, side by side in several processes.

    Where a method fails on a series, or says something that is not a number or beyond all bounds (a thousand times what
    was ever sold), its forecast is the naive one, as in the library's own `fallback_model`; `fallbacks` counts these.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        longest_past: int = 1_095,
        processes: int | None = None,
        non_negative: bool = True,
    ) -> None:
        """
        Args:
            names: of FAST and SLOW.
            longest_past: buckets of each series that the methods are given, the last ones.
            processes: that share the work; None = one a core.
            non_negative: whether values below 0 are made 0; False = as the library says, for comparison with published
                tables.
        """
        self.names = tuple(names)
        self.fallbacks: dict[str, int] = {}
        self._longest = longest_past
        self._non_negative = non_negative
        self._processes = processes or os.cpu_count() or 1

    def forecast(
        self, table: SeriesTable, rows: Integers, running: int, prediction_length: int
    ) -> Mapping[str, Forecasts]:
        """See `rolling_origins.Contestants`."""
        season = _SEASONS[table.freq]
        pasts = [filled_past(table, row, running, season.naive, self._longest) for row in rows.tolist()]
        tasks = [
            _Task(self.names, season, prediction_length, pasts[first : first + _SERIES_A_TASK], self._non_negative)
            for first in range(0, len(pasts), _SERIES_A_TASK)
        ]
        done = self._run(tasks)
        for _, fallbacks in done:
            for name, count in zip(self.names, fallbacks, strict=True):
                if count:
                    self.fallbacks[name] = self.fallbacks.get(name, 0) + count
        values = np.concatenate([part for part, _ in done], axis=1)
        return {name: Forecasts(values[n, :, :, 1:], values[n, :, :, 0]) for n, name in enumerate(self.names)}

    def _run(self, tasks: list[_Task]) -> list[tuple[Floats, list[int]]]:
        if self._processes == 1 or len(tasks) == 1:
            return [_work(task) for task in tasks]
        # Spawned, not forked: this process may hold threads of torch.
        with ProcessPoolExecutor(self._processes, mp_context=get_context("spawn")) as pool:
            return list(pool.map(_work, tasks))


def _work(task: _Task) -> tuple[Floats, list[int]]:
    """Forecasts of a task's series, float32 (method, item, step, 1 + quantile) with the mean first, and how many of
    each method are fallbacks."""
    out = np.empty(
        (len(task.names), len(task.pasts), task.prediction_length, 1 + len(QUANTILE_LEVELS)), dtype=np.float32
    )
    fallbacks = [0] * len(task.names)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for n, name in enumerate(task.names):
            for i, past in enumerate(task.pasts):
                made = _one(name, past, task.season, task.prediction_length)
                if made is None:
                    fallbacks[n] += 1
                    made = _naive(past, task.prediction_length)
                out[n, i] = np.maximum(made, 0.0) if task.non_negative else made
    return out, fallbacks


def _one(name: str, past: Floats, season: Season, steps: int) -> NDArray[np.float64] | None:
    """One method on one series: float64 (step, 1 + quantile), or None where it has no sensible answer."""
    windows = min(CONFORMAL_WINDOWS, (len(past) - 1) // steps)
    conformal = ConformalIntervals(h=steps, n_windows=windows) if windows >= 2 else None
    if len(past) < 2 or (name == "seasonal_naive" and len(past) <= season.naive):
        return None
    method = _BUILD[name](season, conformal)
    # Without enough past to learn intervals from, every quantile is the point.
    with_intervals = name in _OWN_INTERVALS or conformal is not None
    try:
        said = method.forecast(y=past, h=steps, level=sorted(_INTERVALS) if with_intervals else None)
    # Methods raise what they like of a series that they can't fit; the library's own fallback catches all too.
    except Exception:
        return None
    point = np.asarray(said["mean"], dtype=np.float64)
    lower = [said[f"lo-{share}"] if with_intervals else point for share in _INTERVALS]
    upper = [said[f"hi-{share}"] if with_intervals else point for share in reversed(_INTERVALS)]
    found: NDArray[np.float64] = np.stack([point, *lower, point, *upper], axis=1).astype(np.float64)
    if not np.isfinite(found).all() or np.abs(found).max() > 1_000 * (1 + past.max()):
        return None
    found[:, 1:].sort(axis=1)
    return found


def _naive(past: Floats, steps: int) -> NDArray[np.float64]:
    last = float(past[-1]) if len(past) else 0.0
    return np.full((steps, 1 + len(QUANTILE_LEVELS)), last)
