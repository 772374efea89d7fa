"""Evaluators of a backtest: how accurate forecasts were, and a few items to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.features import FEATURE_INDEX
from forecaster.accuracy import pinball, seasonal_error
from forecaster.contract import QUANTILE_LEVELS
from forecaster.score_sums import ScoreSums
from worker.backtest_actuals import Actuals
from worker.backtest_collector import ForecastBatch

_UNITS = FEATURE_INDEX["units"]
_SEASON = {"1d": 7, "1w": 1}  # most hours of most items sell nothing: errors scaled by that mean little
_LOW, _MIDDLE, _HIGH = (QUANTILE_LEVELS.index(level) for level in (0.1, 0.5, 0.9))
KINDS = ("touched", "refreshed")


class AccuracySums:
    """Sums of accuracy by (freq, kind): forecasts of touched items, and those made since a bucket had closed."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], ScoreSums] = {}

    def take(self, batch: ForecastBatch) -> None:
        """Count a batch."""
        season = _SEASON.get(batch.freq)
        scale = seasonal_error(batch.inputs.context[:, :, _UNITS], season) if season else None
        for kind, rows in ((KINDS[0], batch.touched), (KINDS[1], ~batch.touched)):
            if rows.any():
                sums = self._sums.setdefault((batch.freq, kind), ScoreSums(batch.actual.shape[1]))
                if rows.all():
                    sums.add(batch.actual, batch.outputs, scale)
                else:
                    outputs = type(batch.outputs)(*(column[rows] for column in batch.outputs))
                    sums.add(batch.actual[rows], outputs, None if scale is None else scale[rows])

    def result(self) -> dict[tuple[str, str], ScoreSums]:
        """By (freq, kind)."""
        return self._sums


def merged_sums(parts: Sequence[Mapping[tuple[str, str], ScoreSums]]) -> dict[tuple[str, str], ScoreSums]:
    """What several processes have summed, as one; beside the kinds stands `all`."""
    out: dict[tuple[str, str], ScoreSums] = {}
    for part in parts:
        for (freq, kind), sums in part.items():
            for name in (kind, "all"):
                out.setdefault((freq, name), ScoreSums(sums.steps)).merge(sums)
    return dict(sorted(out.items()))


class Band(NamedTuple):
    """One forecast of an item: units by step from bucket `running` on."""

    cutoff_ms: int
    running: int
    low: NDArray[np.float32]  # of the 80 % interval
    middle: NDArray[np.float32]
    high: NDArray[np.float32]


class Sample(NamedTuple):
    """An item to look at. `units` are what was sold in buckets `first` and after."""

    item_id: str
    time_zone: str
    freq: str
    wql: float
    first: int
    units: NDArray[np.float64]
    bands: list[Band]


class _Kept:
    """Forecasts of one item, and how good they were."""

    def __init__(self, time_zone: str) -> None:
        self.time_zone = time_zone
        self.bands: list[Band] = []
        self.loss = self.actual = 0.0


class SampleItems:
    """Keeps the forecasts of a few items that sell well enough for a picture, to show some good and some bad ones."""

    ITEMS = 24  # in each process
    BANDS = 3
    HISTORY = 42  # buckets before the first forecast that is shown

    def __init__(self, freq: str, actuals: Actuals, calendar: ShopCalendar) -> None:
        self._freq, self._actuals, self._calendar = freq, actuals, calendar
        ranked = sorted(actuals.totals(freq).items(), key=lambda pair: (-pair[1], pair[0]))
        ranked = [pair for pair in ranked if pair[1] > 0]
        ranked = ranked[: max(len(ranked) // 4, self.ITEMS)]  # the others sell too seldom to see anything
        chosen = np.unique(np.linspace(0, len(ranked) - 1, self.ITEMS).astype(int)).tolist() if ranked else []
        self._kept: dict[str, _Kept | None] = {ranked[n][0]: None for n in chosen}

    def take(self, batch: ForecastBatch) -> None:
        """Keep what is forecast of the chosen items."""
        if batch.freq != self._freq:
            return
        for row, item in enumerate(batch.items):
            if item.item_id in self._kept:
                kept = self._kept[item.item_id] or _Kept(self._calendar.zone(item.location_id))
                self._kept[item.item_id] = kept
                self._keep(kept, batch, row)

    def _keep(self, kept: _Kept, batch: ForecastBatch, row: int) -> None:
        quantiles, actual = batch.outputs.quantiles[row], batch.actual[row]
        kept.loss += float(np.nansum(pinball(actual, quantiles, QUANTILE_LEVELS).mean(axis=-1)))
        kept.actual += float(np.nansum(actual))
        columns = (quantiles[:, level].copy() for level in (_LOW, _MIDDLE, _HIGH))
        kept.bands.append(Band(int(batch.cutoff_ms[row]), int(batch.running[row]), *columns))

    def result(self) -> list[Sample]:
        """The items of which something was forecast, and sold."""
        return [self._sample(item_id, kept) for item_id, kept in self._kept.items() if kept and kept.actual > 0]

    def _sample(self, item_id: str, kept: _Kept) -> Sample:
        shown = [kept.bands[n] for n in np.unique(np.linspace(0, len(kept.bands) - 1, self.BANDS + 2).astype(int))]
        shown = shown[1:-1] or shown  # the first sees little of the past, the last little of the future
        first = shown[0].running - self.HISTORY
        buckets = shown[-1].running + len(shown[-1].middle) - first
        units = self._actuals.history(self._freq, item_id, first, buckets)
        return Sample(item_id, kept.time_zone, self._freq, kept.loss / kept.actual, first, units, shown)


def telling_samples(samples: Sequence[Sample]) -> list[tuple[str, Sample]]:
    """A good, a median and a bad item by their weighted quantile loss."""
    ranked = sorted(samples, key=lambda sample: (sample.wql, sample.item_id))
    places = {"good": 0.1, "median": 0.5, "bad": 0.9}
    named = {round(share * (len(ranked) - 1)): name for name, share in places.items()} if ranked else {}
    return [(name, ranked[place]) for place, name in sorted(named.items())]
