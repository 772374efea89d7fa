"""Windows of one shop shown as if of another: what its record happens to tie together is not learnt as a rule.

A shop's record begins at one date, so an item's age and the time of the year go together in it, and its one or two
years have ups and downs that other shops' don't. A model that knows few shops learns such things by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_store.known_future import KNOWN_CHANNELS
from forecaster.contract import STATIC_CHANNELS
from forecaster.dataset import Window
from forecaster.sources import Source

_YEAR_DAY = KNOWN_CHANNELS.index("day_of_year")
_AGE = STATIC_CHANNELS.index("days_since_launch")
_YEAR = 366  # days of the year are 1 to this
_UNKNOWN_AGE, _OLDER = 0.1, 0.3  # shares of the windows
_OLDER_DAYS = 2_000


@dataclass(frozen=True)
class Elsewhere:
    """Another source's windows: of a tenth the item's age is unknown, three in ten items are older than the record
    says, by up to 2,000 days.

    Attributes:
        source: where they are drawn.
        moved: each window's days of the year move round by a random number of days, context and future alike.
    """

    source: Source
    moved: bool

    @property
    def freqs(self) -> tuple[str, ...]:
        """The source's."""
        return self.source.freqs

    def draw(self, freq: str, size: int, rng: np.random.Generator) -> Window | None:
        """See Source."""
        window = self.source.draw(freq, size, rng)
        if window is None:
            return None
        static = window.inputs.static.copy()
        kind = rng.random(size)
        older = (kind >= _UNKNOWN_AGE) & (kind < _UNKNOWN_AGE + _OLDER)
        static[older, _AGE] += rng.integers(0, _OLDER_DAYS, size)[older]
        static[kind < _UNKNOWN_AGE, _AGE] = np.nan
        inputs = window.inputs._replace(static=static)
        if self.moved:
            known = inputs.known.copy()
            by = rng.integers(0, _YEAR, (size, 1))
            known[:, :, _YEAR_DAY] = (known[:, :, _YEAR_DAY] - 1 + by) % _YEAR + 1
            inputs = inputs._replace(known=known)
        return window._replace(inputs=inputs)
