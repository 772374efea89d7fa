"""Where training windows come from: histories of events, and tables of series, behind one small interface."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from feature_store.known_future import KNOWN_CHANNELS
from forecaster.contract import NO_COVARIATES, PAST_CHANNELS, WINDOWS, Covariates
from forecaster.dataset import History, Sampling, Window, draw, stack
from forecaster.series import SeriesTable

# One cutoff of an event history costs about as much as its items together, so a draw has several items at each.
_ITEMS_AT_ONCE = 20
_TRIES = 20


class Source(Protocol):
    """Draws windows at random. The same generator state gives the same windows."""

    @property
    def freqs(self) -> tuple[str, ...]:
        """The frequencies it can draw."""

    def draw(self, freq: str, size: int, rng: np.random.Generator) -> Window | None:
        """A window of `size` rows of one of `freqs`, or None where no moment with enough known items was found.

        Steps that the source must not tell of are NaN in the targets.
        """


@dataclass(frozen=True)
class HistorySource:
    """Windows of a history of events, at any moment of [first_ms, last_ms); the worker's own functions make them."""

    history: History
    first_ms: int
    last_ms: int
    freqs: tuple[str, ...] = ("1d", "1h")

    def draw(self, freq: str, size: int, rng: np.random.Generator) -> Window | None:
        """See Source. Several cutoffs, each with about 20 items, fewer in a small shop."""
        # A third of a small shop's items are nearly always known.
        at_once = min(_ITEMS_AT_ONCE, max(len(self.history.item_ids) // 3, 1))
        windows = []
        for first in range(0, size, at_once):
            sampling = Sampling(self.first_ms, self.last_ms, min(at_once, size - first))
            found = (draw(self.history, freq, sampling, rng) for _ in range(_TRIES))
            window = next((window for window in found if window is not None), None)
            if window is None:
                return None
            windows.append(window)
        return stack(windows)


@dataclass(frozen=True)
class SeriesSource:
    """Windows of a table of series, cut off at the starts of the buckets [first_bucket, last_bucket].

    Attributes:
        table: where items have cells; their `end_bucket` bounds their cutoffs too.
        known_end: units of this bucket and later are not told; the last cutoff is at most this bucket less one.
        volume_power: items are drawn in proportion to this power of their mean units a bucket; 0 = all alike.
        recent_share: so many of the windows have one of the last `recent_buckets` cutoffs, since next month is more
            like last month than like the table's first.
    """

    table: SeriesTable
    first_bucket: int
    last_bucket: int
    known_end: int
    covariates: Covariates = NO_COVARIATES
    volume_power: float = 0.25
    recent_share: float = 0.5
    recent_buckets: int = 0  # 0 = four times as many as are forecast

    @property
    def freqs(self) -> tuple[str, ...]:
        """The table's one."""
        return (self.table.freq,)

    @cached_property
    def _cutoffs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last cutoff of every item, the last one excluded; nothing in between where it has none."""
        # Before the second bucket there is no past to learn from; after the last known one nothing to compare with.
        low = np.maximum(self.table.first_bucket + 1, self.first_bucket)
        high = np.minimum(np.minimum(self.table.end_bucket, self.known_end), self.last_bucket + 1)
        return low, high

    @cached_property
    def _cumulative_weights(self) -> NDArray[np.float64]:
        low, high = self._cutoffs
        weights = np.where(low < high, self._volumes() ** self.volume_power, 0.0)
        return np.cumsum(weights)

    def _volumes(self) -> NDArray[np.float64]:
        """Mean units a bucket before `known_end`: (item,), never 0 so that no item is left out."""
        table = self.table
        out = np.empty(len(table), dtype=np.float64)
        # Item by item: a temporary array as long as the table would be what memory runs out on.
        for i, (first, end) in enumerate(zip(table.offsets[:-1], table.offsets[1:], strict=True)):
            last = min(end, first + max(self.known_end - table.first_bucket[i], 0))
            known = table.units[first:last]
            counted = int(np.isfinite(known).sum())
            out[i] = np.nansum(known, dtype=np.float64) / counted if counted else 0.0
        return np.maximum(out, 1e-2)

    def draw(self, freq: str, size: int, rng: np.random.Generator) -> Window | None:
        """See Source."""
        cumulative = self._cumulative_weights
        if freq != self.table.freq or not len(cumulative) or cumulative[-1] <= 0:
            return None
        rows = np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right")
        rows = np.minimum(rows, len(cumulative) - 1).astype(np.int64)
        low, high = (bound[rows] for bound in self._cutoffs)
        recent = self.last_bucket + 1 - (self.recent_buckets or 4 * WINDOWS[freq].max_prediction_length)
        near = (rng.random(size) < self.recent_share) & (recent < high)
        low = np.where(near, np.maximum(low, recent), low)
        running = low + (rng.random(size) * (high - low)).astype(np.int64)
        steps = WINDOWS[freq].max_prediction_length
        window = self.table.windows(rows, running, steps, self.covariates)
        hidden = running[:, None] + np.arange(steps) >= self.known_end
        window.units[hidden] = np.nan
        window.cumulative_units[hidden] = np.nan
        return window


def widened(window: Window, covariates: Covariates) -> Window:
    """The window with all channels of a model's covariates: where its source has none, they are unknown throughout."""
    inputs = window.inputs
    past = len(PAST_CHANNELS) + len(covariates.past)
    known = len(KNOWN_CHANNELS) + len(covariates.known)
    wide = inputs._replace(
        context=_with_channels(inputs.context, past, np.nan),
        known=_with_channels(inputs.known, known, np.nan),
        running=_with_channels(inputs.running, past, 0.0),
    )
    return window._replace(inputs=wide)


def _with_channels(column: NDArray[np.float32], channels: int, value: float) -> NDArray[np.float32]:
    missing = (*column.shape[:-1], channels - column.shape[-1])
    return np.concatenate([column, np.full(missing, value, dtype=np.float32)], axis=-1) if missing[-1] else column
