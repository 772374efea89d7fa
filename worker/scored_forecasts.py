"""Scores of a lane's forecasts: from what was read and is published, to what is remembered and told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.features import BucketRows
from feature_store.items import Item, ProductState
from feature_store.score_state import ItemScores, RowName
from forecaster.inputs import ModelInputs, running_buckets
from worker.accuracy_messages import Origin, Segment, Window, accuracy_message
from worker.input_sums import Bucket, input_sums
from worker.scoring import ITEM_WINDOW_DAYS, Scored, Scoring, ScoringRules, Subjects, Told, day_of, item_sums
from worker.sold import rows_of, sold_in

_ITEM = "item"
_THOUSANDTHS = 1000


class ScoredRead(Protocol):
    """What scoring asks of what a lane has read."""

    @property
    def partition(self) -> int: ...
    @property
    def cutoff_ms(self) -> int: ...
    @property
    def subjects(self) -> list[tuple[Item, ProductState]]: ...
    @property
    def revisions(self) -> list[int]: ...
    @property
    def rows(self) -> BucketRows: ...
    @property
    def scores(self) -> list[ItemScores | None]: ...


class Published(Protocol):
    """Forecasts in units, in the order of what was read."""

    @property
    def quantiles(self) -> NDArray[np.float64] | NDArray[np.float32]:
        """(item, step, quantile)."""

    @property
    def mean(self) -> NDArray[np.float64] | NDArray[np.float32]:
        """(item, step)."""


def told_of(published: Published, steps: tuple[int, ...]) -> Told:
    """What they say of some steps, 1 = the running bucket."""
    places = [step - 1 for step in steps]
    quantiles, mean = published.quantiles[:, places], published.mean[:, places]
    return Told(*(np.rint(array.astype(np.float64) * _THOUSANDTHS).astype(np.int64) for array in (quantiles, mean)))


def scored_forecasts(
    rules: ScoringRules, read: ScoredRead, published: Published, version: str, calendar: ShopCalendar
) -> Scored:
    """Score the items' earlier forecasts with what has been read, and keep these of model version `version`."""
    zones = [calendar.zone(item.location_id) for item, _ in read.subjects]
    # What was remembered of an item that has been withdrawn meanwhile is of another life.
    states = [state if before else None for state, before in zip(read.scores, read.revisions, strict=True)]
    labels = [(version, product.category) for _, product in read.subjects]
    scoring = Scoring(rules, Subjects(running_buckets(rules.freq, read.cutoff_ms, zones), labels, states))
    owed = np.array(scoring.owed, dtype=np.int64).reshape(-1, 2)
    sold = sold_in(rows_of(rules.freq, read.rows), owed[:, 0], owed[:, 1])
    return scoring.score(told_of(published, rules.steps), sold)


def input_rows(
    freq: str, read: ScoredRead, inputs: ModelInputs, calendar: ShopCalendar
) -> dict[RowName, dict[int, list[int]]]:
    """Sums of the inputs of items that are forecast for the first time in their bucket."""
    zones = [calendar.zone(item.location_id) for item, _ in read.subjects]
    running = running_buckets(freq, read.cutoff_ms, zones)
    last = [s.bucket if s and before else -1 for s, before in zip(read.scores, read.revisions, strict=True)]
    closed = np.array([day_of(freq, bucket) for bucket in (running - 1).tolist()], dtype=np.int64)
    return input_sums(Bucket(freq, closed), inputs, running > np.array(last, dtype=np.int64))


def not_scored(items: int) -> Scored:
    """Of a frequency that is not scored."""
    return Scored([None] * items, {}, {})


def item_accuracy(freq: str, read: ScoredRead, scored: Scored, model_name: str) -> Iterator[tuple[str, bytes]]:
    """Messages (key, value) of items whose own sums have changed."""
    origin = Origin(read.partition, freq, model_name, read.cutoff_ms)
    for i, windows in scored.windows.items():
        state, (item, _) = scored.states[i], read.subjects[i]
        if state is None:
            continue
        sums = item_sums(state)
        for version, first_day in windows:
            own = {s.step: s.sums for s in sums if (s.model_version, s.first_day) == (version, first_day)}
            segment = Segment(_ITEM, item.item_id, item.product_id, item.location_id)
            window = Window(first_day, ITEM_WINDOW_DAYS)
            yield accuracy_message(origin, segment, version, window, state.revision, own)
