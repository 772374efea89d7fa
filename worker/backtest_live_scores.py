"""What a worker would have published of its accuracy: a backtest's forecasts, kept and scored as live ones are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from feature_store.accuracy_store import Rows
from feature_store.calendar_time import ShopCalendar
from feature_store.features import UNITS_PER_ONE, BucketRows
from feature_store.items import Item, ProductState
from feature_store.score_state import ItemScores, RowName
from forecaster.inputs import ModelOutputs, running_buckets
from worker.accuracy import lines_of, lines_table, told_of
from worker.accuracy_messages import add_to
from worker.backtest_collector import ForecastBatch
from worker.forecast_messages import LaneRead, rounded_outputs
from worker.scored_forecasts import scored_forecasts
from worker.scoring import ALL, ScoringRules
from worker.sold import rows_of, sold_in

_VERSION = "1"  # a variant has one model
_UNITS_PER_ONE = float(UNITS_PER_ONE[0])


class _Read(NamedTuple):
    """What was read of a lane's items, with what is remembered of them here."""

    partition: int
    cutoff_ms: int
    subjects: list[tuple[Item, ProductState]]
    revisions: list[int]
    rows: BucketRows
    scores: list[ItemScores | None]


class LiveScores:
    """An evaluator: what it finds are sums as in Redis, by frequency and row."""

    def __init__(self, rules: Mapping[str, ScoringRules], calendar: ShopCalendar) -> None:
        self._rules, self._calendar = rules, calendar
        self._states: dict[tuple[int, str], dict[str, ItemScores]] = {}  # by partition and frequency
        self._found: dict[str, Rows] = {}

    def take(self, batch: ForecastBatch) -> None:
        """Score one lane's forecasts of one moment after the other."""
        start = 0
        for prepared in batch.prepared if batch.freq in self._rules else ():
            stop = start + len(prepared.read.subjects)
            outputs = ModelOutputs._make(column[start:stop] for column in batch.outputs)
            self._score(batch.freq, prepared.lane.partition, prepared.read, outputs)
            start = stop

    def _score(self, freq: str, partition: int, read: LaneRead, outputs: ModelOutputs) -> None:
        states = self._states.setdefault((partition, freq), {})
        item_ids = [item.item_id for item, _ in read.subjects]
        scores = [states.get(item_id) for item_id in item_ids]
        own = _Read(partition, read.cutoff_ms, read.subjects, read.revisions, read.rows, scores)
        zones = [self._calendar.zone(item.location_id) for item, _ in read.subjects]
        running = running_buckets(freq, read.cutoff_ms, zones)
        observed = sold_in(rows_of(freq, read.rows), np.arange(len(zones)), running) / _UNITS_PER_ONE
        published = rounded_outputs(outputs, None, observed)
        scored = scored_forecasts(self._rules[freq], own, published, _VERSION, self._calendar)
        new = zip(item_ids, scored.states, strict=True)
        states.update({item_id: state for item_id, state in new if state is not None})
        rows = self._found.setdefault(freq, {})
        for name, by_step in scored.rows.items():
            add_to(rows.setdefault(name, {}), by_step)

    def result(self) -> dict[str, Rows]:
        """By frequency."""
        return self._found


def merged_scores(parts: Sequence[Mapping[str, Rows]]) -> dict[str, Rows]:
    """What several processes have found, as one."""
    out: dict[str, dict[RowName, dict[int, list[int]]]] = {}
    for part in parts:
        for freq, rows in part.items():
            total = out.setdefault(freq, {})
            for name, by_step in rows.items():
                add_to(total.setdefault(name, {}), by_step)
    return dict(sorted(out.items()))


def live_summary(rows: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """What backtest.json says of them: over all days that were scored, of all items and of each category."""
    return [told_of(line) for line in lines_of(rows, _days(rows))]


def live_tables(rows: Mapping[str, Rows]) -> list[Table]:
    """The same of all items, as `shelfcast accuracy` prints it."""
    lines = [line for line in lines_of(rows, _days(rows)) if line.segment == ALL]
    grouped = groupby(lines, lambda line: (line.freq, line.window))
    return [lines_table(freq, window, own) for (freq, window), own in grouped]


def _days(rows: Mapping[str, Rows]) -> int:
    days = [name.day for own in rows.values() for name in own]
    return max(days) - min(days) + 1 if days else 1
