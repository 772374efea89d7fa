"""What arrives in the whole shop, as a replay's clock would tell the lane that listens to its streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np

from feature_store.lane_totals import HOUR_MS
from feature_store.recording_files import Merged


class ShopArrivals:
    """Counts records of some topics in all partitions, tick by tick."""

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = frozenset(topics)
        self._since_tick: Counter[str] = Counter()
        self._by_hour: dict[int, Counter[str]] = {}
        self._newest_ms: dict[str, int] = {}

    def add(self, rows: Merged) -> None:
        """Records that the next tick names."""
        counts = np.bincount(rows.topic, minlength=len(rows.topics)).tolist()
        self._since_tick.update({t: n for t, n in zip(rows.topics, counts, strict=True) if n and t in self._topics})

    def tick(self, tick_ms: int) -> None:
        """The clock ticks."""
        if self._since_tick:
            self._by_hour.setdefault((tick_ms - 1) // HOUR_MS, Counter()).update(self._since_tick)
            self._newest_ms.update(dict.fromkeys(self._since_tick, tick_ms))
            self._since_tick.clear()

    def newest_ms(self) -> dict[str, int]:
        """By topic the last tick that named any."""
        return self._newest_ms

    def take(self) -> dict[int, Counter[str]]:
        """By hour and topic how many came since they were last taken."""
        taken, self._by_hour = self._by_hour, {}
        return taken
