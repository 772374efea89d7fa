"""What arrives in the whole shop, as a replay's clock would tell the lane that listens to its streams."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from feature_store.lane_totals import HOUR_MS
from feature_store.recording_files import Merged, Recording


class ShopArrivals:
    """Records of some topics in all partitions, up to ticks that go forward."""

    def __init__(self, recording: Recording, topics: Collection[str], to_ms: int | None) -> None:
        self._stretches: Iterator[Merged] = iter(recording.merged(sorted(topics), to_ms=to_ms)) if topics else iter(())
        self._rows: Merged | None = None
        self._start = 0
        self._by_hour: dict[int, dict[str, int]] = {}
        self._newest_ms: dict[str, int] = {}

    def advance(self, tick_ms: int) -> None:
        """To a tick: what fell due since the one before is named by it."""
        while self._rows is not None or self._next():
            assert self._rows is not None
            stop = int(np.searchsorted(self._rows.due_ms, tick_ms))
            counts = np.bincount(self._rows.topic[self._start : stop], minlength=len(self._rows.topics)).tolist()
            for topic, count in zip(self._rows.topics, counts, strict=True):
                if count:
                    own = self._by_hour.setdefault((tick_ms - 1) // HOUR_MS, {})
                    own[topic] = own.get(topic, 0) + count
                    self._newest_ms[topic] = tick_ms
            self._start = stop
            if stop < len(self._rows.due_ms):
                return
            self._rows = None

    def _next(self) -> bool:
        self._rows, self._start = next(self._stretches, None), 0
        return self._rows is not None

    def take(self) -> tuple[dict[int, dict[str, int]], dict[str, int]]:
        """Since it was last taken: counts by hour and topic, and by topic the last tick that named any."""
        taken = self._by_hour, self._newest_ms
        self._by_hour, self._newest_ms = {}, {}
        return taken
