"""By how much quantiles of counts miss what they promise, in every rolling four weeks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecaster.accuracy import pinball
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import ModelOutputs

Floats = NDArray[np.float64]
LEVELS: Floats = np.array(QUANTILE_LEVELS)
STEPS = 28
WINDOW = 28  # days of the rolling window, which moves by a week
_FEWEST_DAYS = 14  # on which steps ended, for a window to be judged; less is shown as nothing
KINDS = ("day 1", "days 2-7", "days 8-28", "sum of 7", "sum of 28")
_BANDS = {"day 1": slice(0, 1), "days 2-7": slice(1, 7), "days 8-28": slice(7, 28)}
_SUMS = {"sum of 7": 7, "sum of 28": 28}
_VOLUMES = {"all items": (0.0, np.inf), "under 1 a day": (0.0, 1.0), "1 to 10": (1.0, 10.0), "over 10": (10.0, np.inf)}


class _Day(NamedTuple):
    """Of the steps that ended on one day: how many, how many actuals below each quantile and not above it, pinball
    loss and units."""

    steps: float
    below: Floats
    not_above: Floats
    loss: float
    units: float


class Judge:
    """Gathers what is needed of forecasts, by the day on which their steps end. `volume` float64 (item,): units a day
    that items sell."""

    def __init__(self, volume: Floats) -> None:
        self._chosen = {
            name: np.flatnonzero((volume >= low) & (volume < high)) for name, (low, high) in _VOLUMES.items()
        }
        self._days: dict[tuple[str, str, str], dict[int, list[_Day]]] = {}

    def add(self, day: int, actual: NDArray[np.float32], said: Mapping[str, ModelOutputs]) -> None:
        """Forecasts made as a day begins. Days on which nobody bought anything are left out: the shop was shut.

        Args:
            day: of the first step.
            actual: float32 (item, step), NaN where it is not known.
            said: by name.
        """
        opened = np.nansum(actual, axis=0) > 0
        for who, outputs in said.items():
            for volume, rows in self._chosen.items():
                for kind, steps in _BANDS.items():
                    for step in range(steps.start, steps.stop):
                        if opened[step]:
                            found = _day(actual[rows, step], outputs.quantiles[rows, step])
                            self._keep((volume, kind, who), day + step, found)
                for kind, count in _SUMS.items():
                    total = actual[rows, :count].astype(np.float64).sum(axis=1)
                    found = _day(total, outputs.cumulative_quantiles[rows, count - 1])
                    self._keep((volume, kind, who), day + count - 1, found)

    def _keep(self, key: tuple[str, str, str], day: int, found: _Day) -> None:
        if found.steps:
            self._days.setdefault(key, {}).setdefault(day, []).append(found)

    def days(self, volume: str, kind: str, who: str) -> dict[int, _Day]:
        """By day on which steps ended."""
        out = {}
        for day, parts in sorted(self._days.get((volume, kind, who), {}).items()):
            out[day] = _Day(*(sum(column) for column in zip(*parts, strict=True)))
        return out


def _day(actual: NDArray[np.floating[Any]], quantiles: NDArray[np.float32]) -> _Day:
    known = np.isfinite(actual)
    y, q = actual[known].astype(np.float64), quantiles[known].astype(np.float64)
    loss = pinball(y, q, QUANTILE_LEVELS).sum() / len(LEVELS)
    counts = (y[:, None] < q).sum(axis=0).astype(np.float64), (y[:, None] <= q).sum(axis=0).astype(np.float64)
    return _Day(float(len(y)), *counts, float(loss), float(np.abs(y).sum()))


def judged(judge: Judge, days: range | None) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """By volume, kind of step and who: the worst miss of any level in any rolling four weeks of `days`, or over all
    there is (None), with its standard error, and WQL over all."""
    return {
        volume: {
            kind: {who: _judged(judge.days(volume, kind, who), days) for who in ("raw", "adjusted")} for kind in KINDS
        }
        for volume in _VOLUMES
    }


def _judged(found: Mapping[int, _Day], days: range | None) -> dict[str, float | None]:
    windows: Sequence[list[_Day]] = [list(found.values())]
    if days is not None:
        starts = range(days[0], max(days[-1] - WINDOW + 2, days[0] + 1), 7)
        windows = [[one for day, one in found.items() if start <= day < start + WINDOW] for start in starts]
    # Steps far ahead end on few days of the first windows: a share over so few of them tells of those days.
    misses = [miss(window) for window in windows if len(window) >= _FEWEST_DAYS]
    worst, error = max(misses, default=(float("nan"), float("nan")))
    units = sum(one.units for one in found.values())
    loss = sum(one.loss for one in found.values())
    return {
        "worst": _known(worst),
        "worst_error": _known(error),
        "wql": round(loss / units, 4) if units else 0.0,
        "steps": sum(one.steps for one in found.values()),
    }


def _known(number: float) -> float | None:
    return round(number, 4) if np.isfinite(number) else None


def miss(window: Sequence[_Day]) -> tuple[float, float]:
    """By how much the worst level misses its promise, 0 at best, and the standard error of that share. Items of one day
    have their ups and downs in common: the error is that of a ratio of sums over days (Cochran 1977, "Sampling
    techniques", section 6.3)."""
    counts = np.array([one.steps for one in window])
    worst, error = 0.0, 0.0
    for sign, sums in ((1, np.array([one.below for one in window])), (-1, np.array([one.not_above for one in window]))):
        share = sums.sum(axis=0) / counts.sum()
        by_level = sign * (share - LEVELS)
        level = int(np.argmax(by_level))
        if by_level[level] > worst:
            rest = sums[:, level] - share[level] * counts
            worst = float(by_level[level])
            error = float(np.sqrt((rest**2).sum() * len(window) / max(len(window) - 1, 1)) / counts.sum())
    return worst, error
