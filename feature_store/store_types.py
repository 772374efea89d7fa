"""What a FeatureStore takes and gives. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.alert_state import AlertLevels, ItemAlerts, Untold
from feature_store.calibration_state import ItemCalibration, SegmentLevels
from feature_store.features import BucketRows, Deltas
from feature_store.items import Item, ProductState
from feature_store.layout import EventIds, ForecastSummary
from feature_store.score_state import ItemScores, RowName, SumsByStep


class Heads(NamedTuple):
    """Of the last forecast sent: its revision, and the bucket that was running then."""

    revision: int
    running_bucket: int


@dataclass
class Claim:
    """A partition held: the token that proves it, and all that a lane keeps in memory of Redis.

    `generations` are those whose ids of events stand, by source. `before` is the event time, by source, up to which
    events were counted from a table. `untold` are alerts, by name, that a former owner may not have sent. `is_copied`:
    a snapshot is being made, as the last write was told. The store keeps `generations`, `untold` and `is_copied` up to
    date, all else is the lane's to keep.
    """

    partition: int
    owner: str
    incarnation: str
    positions: dict[str, int]
    newest: dict[str, int]
    items: dict[str, Item] = field(default_factory=dict)
    products: dict[str, ProductState] = field(default_factory=dict)
    dirty: dict[str, dict[str, int]] = field(default_factory=dict)
    heads: dict[str, dict[str, Heads]] = field(default_factory=dict)
    generations: dict[str, set[int]] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    untold: dict[str, Untold] = field(default_factory=dict)
    is_copied: bool = False


class Batch(NamedTuple):
    """One atomic step of a lane.

    positions: by topic (position before, position after); -1 = none yet.
    series: distinct series_ids, indexed by `sums`.
    oldest_kept: by stored frequency, for each of the series the oldest bucket that is kept: int64 (series,). Chunks
        whose every bucket is older go when the series gets a new one.
    event_ids: ids of the batch's events, to know by whether one was counted before.
    oldest_generation: by source; ids of earlier generations go.
    """

    positions: Mapping[str, tuple[int, int]]
    newest: Mapping[str, int]
    items: Mapping[str, Item] = MappingProxyType({})
    products: Mapping[str, ProductState] = MappingProxyType({})
    dirty: Sequence[str] = ()
    series: Sequence[str] = ()
    sums: Sequence[Deltas] = ()
    oldest_kept: Mapping[str, NDArray[np.int64]] = MappingProxyType({})
    event_ids: Sequence[EventIds] = ()
    oldest_generation: Mapping[str, int] = MappingProxyType({})


class SeriesRead(NamedTuple):
    """Stored buckets of the series asked for, with what they hold."""

    positions: dict[str, int]
    newest: dict[str, int]
    marks: list[int | None]
    rows: BucketRows  # `item` is the index of the series asked for; rows of a bucket may repeat and add up
    calibrations: list[ItemCalibration | None]  # of each item asked for, where they were asked for
    segments: dict[str, SegmentLevels]  # by time zone, the same
    scores: list[ItemScores | None]  # of each item asked for, where they were asked for
    alerts: list[ItemAlerts | None]  # the same
    alert_levels: dict[str, AlertLevels]  # by name, where alerts were asked for


class Remembered(NamedTuple):
    """Which states are read along with items."""

    calibration: bool = False
    scores: bool = False
    alerts: bool = False


NOTHING_REMEMBERED = Remembered()


class BackfillTable(NamedTuple):
    """A table of one source's past events; `digest` tells its rows, their order and how it joins the live topic."""

    source: str
    digest: str
    live_topic: str
    before_ms: int | None  # live events of before this time are in the table; None = it tells by offsets


class Done(NamedTuple):
    """A forecast acknowledged by the broker. No summary: the item was withdrawn. Nothing of calibration, scores
    or alerts: it stays as it is."""

    item_id: str
    mark: int | None
    summary: ForecastSummary | None
    calibration: ItemCalibration | None = None
    scores: ItemScores | None = None
    alerts: ItemAlerts | None = None


class Additions(NamedTuple):
    """What forecasts add to the sums of their partition and frequency: learnt by time zone, scored by row,
    levels by name. untold: alerts to be sent once all this stands, by name."""

    learnt: Mapping[str, SegmentLevels] = MappingProxyType({})
    scored: Mapping[RowName, SumsByStep] = MappingProxyType({})
    levels: Mapping[str, AlertLevels] = MappingProxyType({})
    untold: Mapping[str, Untold] = MappingProxyType({})


NO_ADDITIONS = Additions()


class Found(NamedTuple):
    """What stands under an item: the partition's meta, and by frequency its sums (bucket, values) and last forecast."""

    meta: dict[str, str]
    item: Item | None  # None: a series that has had no orders, only clicks or reviews
    sums: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    forecasts: dict[str, ForecastSummary | None]
