"""Training batches as a pure function of (seed, step): what was drawn before, by whom and how fast, changes nothing, so
that a run that goes on from a checkpoint sees what it would have seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecaster.contract import NO_COVARIATES, Covariates
from forecaster.dataset import Window, stack
from forecaster.sources import Source, widened

# Of the windows of a model of several frequencies. Days are what most forecasts are asked for.
FREQ_SHARES = {"1h": 0.3, "1d": 0.5, "1w": 0.3}
_PARTS = 8  # of a batch, each of one source
_TRIES = 100


class SourceError(ValueError):
    """Nothing can be drawn from the sources as asked for; says what and the remedy."""


class Weighted(NamedTuple):
    """A source, and its share of the windows of each of its frequencies, relative to the others'."""

    source: Source
    share: float
    name: str = ""  # for people


@dataclass(frozen=True)
class Batches:
    """Batches of `size` windows, all of one freq, of several sources by their shares.

    Attributes:
        freqs: the frequencies, drawn by FREQ_SHARES.
        covariates: the model's; windows of sources without them get them as unknown channels.
    """

    sources: Sequence[Weighted]
    freqs: Sequence[str]
    size: int = 160
    seed: int = 0
    covariates: Covariates = NO_COVARIATES

    def __post_init__(self) -> None:
        """Raises SourceError where a freq has no source."""
        for freq in self.freqs:
            if not self._of(freq):
                raise SourceError(f"there is nothing to learn {freq} forecasts from: leave {freq} out of --freq")

    def draw(self, step: int, rank: int = 0, freq: str | None = None) -> Window:
        """The batch of a step, for the process `rank` of those that train together; all have the same freq.

        Raises:
            SourceError: too few items are known at any moment that was tried.
        """
        shared = np.random.default_rng([self.seed, step])
        shares = np.array([FREQ_SHARES[name] for name in self.freqs])
        freq = freq or self.freqs[int(shared.choice(len(shares), p=shares / shares.sum()))]
        rng = np.random.default_rng([self.seed, step, rank + 1])
        choices = self._of(freq)
        shares = np.array([choice.share for choice in choices])
        windows: list[Window] = []
        for index, rows in enumerate(self._rows_by_source(shares / shares.sum(), rng)):
            if rows:
                windows.append(self._draw(choices, index, freq, rows, rng))
        return stack(windows)

    def fingerprint(self) -> str:
        """Hash of the first batch: other data, or the same data cut otherwise, has another."""
        window = self.draw(0)
        digest = hashlib.sha256()
        for column in (*window.inputs, window.units, window.cumulative_units):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:16]

    def _of(self, freq: str) -> list[Weighted]:
        return [weighted for weighted in self.sources if freq in weighted.source.freqs and weighted.share > 0]

    def _rows_by_source(self, shares: NDArray[np.float64], rng: np.random.Generator) -> list[int]:
        parts = min(_PARTS, self.size)
        of_part = rng.choice(len(shares), size=parts, p=shares)
        rows = np.full(parts, self.size // parts) + (np.arange(parts) < self.size % parts)
        return [int(n) for n in np.bincount(of_part, weights=rows, minlength=len(shares))]

    def _draw(self, choices: Sequence[Weighted], index: int, freq: str, rows: int, rng: np.random.Generator) -> Window:
        """Of the chosen source, or of another where it has nothing at the moments that were tried."""
        for attempt in range(_TRIES):
            choice = choices[(index + attempt) % len(choices)]
            window = choice.source.draw(freq, rows, rng)
            if window is not None:
                return widened(window, self.covariates)
        raise SourceError(
            f"no {freq} window of {rows} items was found in {', '.join(c.name or 'a source' for c in choices)}: "
            "too few items are known at any one time; give more data"
        )


def fixed_windows(held_out: Batches, count: int) -> Mapping[str, list[Window]]:
    """`count` batches of each freq, always the same: what training is judged by."""
    return {freq: [held_out.draw(step, freq=freq) for step in range(1, count + 1)] for freq in held_out.freqs}
