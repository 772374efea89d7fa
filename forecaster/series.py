"""SeriesTable: many series of one frequency as flat columns, and the windows that models are given of them.

For tables of bucket totals, where a shop has no event streams (or a benchmark has none). The tensors are those of
`inputs.build_inputs`: of the same events, counted into buckets, both give the same, with the cutoff at a bucket's
start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import local_clock
from feature_store.known_future import KNOWN_CHANNELS
from forecaster.contract import FREQ_CODES, NO_COVARIATES, PAST_CHANNELS, WINDOWS, Covariates
from forecaster.dataset import Window
from forecaster.inputs import ModelInputs

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
_Values = Callable[[str], Floats]

DAYS_PER_BUCKET = {"1h": 1 / 24, "1d": 1.0, "1w": 7.0}
_CLOCK = KNOWN_CHANNELS.index("hour_of_day")
# What a bucket of which nothing is said is like; prices have no such value.
_KNOWN_DEFAULTS = {"unit_price": np.nan, "promotion": 0.0, "open": 1.0, "event": 0.0}


@dataclass(frozen=True)
class SeriesTable:
    """Series of one frequency. The buckets of series i are the cells offsets[i] to offsets[i + 1], oldest first, none
    left out; those of the future, where covariates are known ahead, come last and have NaN units.

    Attributes:
        freq: a key of `contract.WINDOWS`.
        time_zone: whose dates the buckets are, an IANA name.
        item_ids: one for each series.
        first_bucket: int64 (item,): bucket number of each series' first cell, as `calendar_time` counts them.
        offsets: int64 (item + 1,).
        units: float32 (cell,); NaN = not known.
        columns: further channels by name, float32 (cell,), NaN = not known: those of PAST_CHANNELS and KNOWN_CHANNELS,
            `available_fraction`, and covariates.
        category_code, brand_code: int64 (item,), `inputs.hash_code` of the names; 0 = unknown.
        launch_bucket: int64 (item,): bucket in which the item was launched.
        week_begins_on: weekday (Monday 0) that names a `1w` bucket where the series came from, and in forecasts.
    """

    freq: str
    time_zone: str
    item_ids: tuple[str, ...]
    first_bucket: Integers
    offsets: Integers
    units: Floats
    columns: Mapping[str, Floats]
    category_code: Integers
    brand_code: Integers
    launch_bucket: Integers
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # title, description, …: one for each series
    week_begins_on: int = 0

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def end_bucket(self) -> Integers:
        """Bucket after each series' last cell with known units; its first bucket where there is none: int64 (item,)."""
        cells = np.where(np.isfinite(self.units), np.arange(len(self.units)), -1)
        last = np.maximum.reduceat(np.append(cells, -1), self.offsets[:-1])
        last = np.where(np.diff(self.offsets) > 0, last, -1)
        return np.where(last >= 0, self.first_bucket + last - self.offsets[:-1] + 1, self.first_bucket)

    @cached_property
    def _clock(self) -> tuple[int, Floats]:
        """Clock channels of every bucket that a window can touch, and the first of those buckets."""
        window = WINDOWS[self.freq]
        first = int(self.first_bucket.min()) - window.context_length
        end = int((self.first_bucket + np.diff(self.offsets)).max()) + window.max_prediction_length + 1
        return first, local_clock(self.freq, np.arange(first, end), self.time_zone)

    def windows(
        self, rows: Integers, running: Integers, prediction_length: int, covariates: Covariates = NO_COVARIATES
    ) -> Window:
        """Inputs and targets of the series `rows`, each cut off at the start of its bucket `running`.

        Channels that the table lacks are NaN throughout ("not recorded"). Units of `running` and later do not touch
        the inputs.

        Args:
            rows: int64 (item,); running: int64 (item,).
            prediction_length: number of steps, `running` first.
            covariates: the model's own; each is a column, or NaN throughout.
        """
        length = WINDOWS[self.freq].context_length
        time = running[:, None] + np.arange(-length, prediction_length)
        at = time - self.first_bucket[rows, None]
        inside = (at >= 0) & (at < np.diff(self.offsets)[rows, None])
        cells = np.where(inside, self.offsets[rows, None] + at, -1)

        def values(name: str) -> Floats:
            return np.where(inside, self.columns[name].take(cells, mode="wrap"), np.float32(np.nan))

        units = np.where(inside, self.units.take(cells, mode="wrap"), np.float32(np.nan))
        known = self._known(values, time, covariates)
        context = self._context(values, units[:, :length], known[:, :length, 0], covariates)
        available = values("available_fraction")[:, :length] if "available_fraction" in self.columns else None
        if available is None:
            available = known[:, :length, KNOWN_CHANNELS.index("open")].copy()
        available[np.isnan(units[:, :length])] = np.nan
        days = (running - self.launch_bucket[rows]) * DAYS_PER_BUCKET[self.freq]
        inputs = ModelInputs(
            context=context,
            available_fraction=available,
            known=known,
            running=np.zeros((len(rows), context.shape[2]), dtype=np.float32),
            elapsed_fraction=np.zeros((len(rows), 1), dtype=np.float32),
            static=np.stack([days, self.category_code[rows], self.brand_code[rows]], axis=1).astype(np.float32),
            freq=np.full((len(rows), 1), FREQ_CODES[self.freq], dtype=np.int32),
        )
        target = units[:, length:]
        return Window(inputs, target.copy(), np.cumsum(target, axis=1))

    def _known(self, values: _Values, time: Integers, covariates: Covariates) -> Floats:
        first, clock = self._clock
        known = np.empty((*time.shape, len(KNOWN_CHANNELS) + len(covariates.known)), dtype=np.float32)
        for channel, (name, default) in enumerate(_KNOWN_DEFAULTS.items()):
            known[:, :, channel] = default
            if name in self.columns:
                told = values(name)
                known[:, :, channel] = np.where(np.isfinite(told), told, np.float32(default))
        known[:, :, _CLOCK : len(KNOWN_CHANNELS)] = clock.take(time - first, axis=0, mode="clip")
        for channel, name in enumerate(covariates.known, start=len(KNOWN_CHANNELS)):
            known[:, :, channel] = values(name) if name in self.columns else np.nan
        return known

    def _context(self, values: _Values, units: Floats, price: Floats, covariates: Covariates) -> Floats:
        names = (*PAST_CHANNELS, *covariates.past)
        length = units.shape[1]
        context = np.full((*units.shape, len(names)), np.nan, dtype=np.float32)
        for channel, name in enumerate(names):
            if name == "units":
                context[:, :, channel] = units
            elif name in self.columns:
                context[:, :, channel] = values(name)[:, :length]
            elif name == "revenue" and "unit_price" in self.columns:
                context[:, :, channel] = units * price
        return context
