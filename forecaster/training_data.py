"""What a model is trained on and judged by: sources of windows, and others held out, of the shops that a user names."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feature_store.calendar_time import ShopCalendar, bucket_of, bucket_start_ms
from feature_store.recording_files import Recording, RecordingError
from forecaster import online_retail, synthetic
from forecaster.augmentation import Elsewhere
from forecaster.batches import SourceError, Weighted
from forecaster.contract import NO_COVARIATES, WINDOWS, Covariates
from forecaster.dataset import History
from forecaster.recorded import last_time_ms, recorded_events, split_by_zone
from forecaster.recorded_series import counted_series
from forecaster.series import SeriesTable
from forecaster.sources import HistorySource, SeriesSource
from forecaster.synthetic_series import generate_series

_DAY_MS = 86_400_000
_HELD_OUT_DAYS = 28
# Buckets of a table that judge training: as many as are forecast, but four weeks of hours, that all weekdays are among
# them, and no more than a quarter of weeks, since who has weeks has few.
HELD_OUT_BUCKETS = {"1h": 672, "1d": 28, "1w": 13}
# The first days of a record hold too little past to learn from.
_BURN_IN_DAYS = 5
_LEAST_DAYS = 4 * _BURN_IN_DAYS  # of a recording before its held-out weeks
_SHOP_ITEMS, _SHOP_DAYS = 150, 420  # of an invented shop
_OF_EVENTS = ("1h", "1d")  # frequencies that are learnt from events, with cutoffs at any moment of a bucket
# Items and, at most, days of an invented shop's table: many small shops, since it is shops that differ most. Records
# of weeks are of one year to four: whoever has weeks has few.
_TABLE_SIZES = {"1h": (100, 120), "1d": (250, 900), "1w": (100, 1_500)}
_TWO_YEARS, _REHEARSED_ITEMS = 2 * 52, 200
_TABLES_PER_ITEM = {"1h": 0.08, "1d": 0.08, "1w": 0.25}


class TrainingData(NamedTuple):
    """Sources to learn from, and those that training is judged by: the same shops, later."""

    sources: list[Weighted]
    held_out: list[Weighted]

    def __add__(self, other: object) -> TrainingData:
        """Both together."""
        if not isinstance(other, TrainingData):
            return NotImplemented
        return TrainingData(self.sources + other.sources, self.held_out + other.held_out)


NO_DATA = TrainingData([], [])


def retail_data(path: Path, until: dt.date, seed: int, freqs: Sequence[str]) -> TrainingData:
    """Online Retail II up to the local date `until` (inclusive), as it is and with invented clicks; its last four weeks
    are held out."""
    until_ms = online_retail.day_start_ms(until + dt.timedelta(days=1))
    end_ms = online_retail.day_start_ms(until + dt.timedelta(days=1 - _HELD_OUT_DAYS))
    lines = online_retail.read(path).between(0, until_ms)
    calendar, closed = ShopCalendar(online_retail.TIME_ZONE), online_retail.closures()
    training = lines.between(0, end_ms).batch()
    clicked = synthetic.invent_clicks(training, seed)
    name = path.name
    sources, held_out = [], []
    for freq in freqs:
        if freq == "1h":  # of hours too few are sold for a table to say more than the events do
            continue
        table = counted_series(lines.batch(), freq, online_retail.TIME_ZONE, end_ms=until_ms)
        plain = dataclasses.replace(table, columns={})  # what most tables hold: sales, and nothing else
        of_tables = [table_data(t, name=f"{name} as a table") for t in (table, plain)]
        sources += [weighted._replace(share=0.1) for data in of_tables for weighted in data.sources]
        held_out += of_tables[0].held_out
    from_events = [freq for freq in freqs if freq in _OF_EVENTS]
    if not from_events:
        return TrainingData(_elsewhere(sources, moved=True), held_out)
    sources += [
        _learnt(History(training, calendar, end_ms, global_entries=closed), from_events, 0.2, name),
        # The shop's holidays unannounced: a live shop may not send a calendar.
        _learnt(History(training, calendar, end_ms), from_events, 0.15, f"{name} without a calendar"),
        _learnt(
            History(clicked, calendar, end_ms, global_entries=closed), from_events, 0.1, f"{name} with invented clicks"
        ),
    ]
    held_out.append(_held_out(History(lines.batch(), calendar, until_ms), from_events, name))
    return TrainingData(_elsewhere(sources, moved=True), held_out)


def synthetic_data(items: int, seed: int, freqs: Sequence[str], share: float = 0.25) -> TrainingData:
    """Invented shops, none held out: as events with `items` items together, and as tables with many times as many."""
    sources = []
    from_events = [freq for freq in freqs if freq in _OF_EVENTS]
    if from_events:
        shops = max(1, round(items / _SHOP_ITEMS))
        made = [_invented(items // shops, _SHOP_DAYS, seed + shop) for shop in range(shops)]
        sources += [_learnt(h, from_events, share / shops, f"invented shop {i}") for i, h in enumerate(made)]
    for freq in freqs:
        tables = max(1, round(_TABLES_PER_ITEM[freq] * items))
        for shop in range(tables):
            size, days = _TABLE_SIZES[freq]
            if freq == "1w":
                days -= int(np.random.default_rng(seed + shop).integers(0, 3 * days // 4))
            table = generate_series(size, days, seed + shop, freq)
            data = table_data(table, held_out=0, name=f"invented {freq} table {shop}")
            sources += [weighted._replace(share=2.4 * share / tables) for weighted in data.sources]
    return TrainingData(_elsewhere(sources, moved=False), [])


def rehearsal(table: SeriesTable, seed: int, end_bucket: int | None = None) -> TrainingData:
    """Invented shops for who tunes weights to a table of weeks up to `end_bucket` that is too short to show what became
    of a last year: from it alone, weights would unlearn to look back. None where the table is longer, or of other
    buckets."""
    if table.freq != "1w" or not len(table):
        return NO_DATA
    known_end = int(table.end_bucket.max())
    weeks = (known_end if end_bucket is None else min(known_end, end_bucket)) - int(table.first_bucket.min())
    return NO_DATA if weeks >= _TWO_YEARS else synthetic_data(_REHEARSED_ITEMS, seed, ("1w",))


def synthetic_held_out(seed: int, freqs: Sequence[str]) -> TrainingData:
    """An invented shop to judge by, where there is nothing better."""
    return TrainingData([], [_held_out(_invented(100, 300, seed + 1000), freqs, "an invented shop")])


def recorded_data(
    recording: Recording, calendar: ShopCalendar, freqs: Sequence[str], currency: str = ""
) -> TrainingData:
    """A recording, one source for each time zone; its last four weeks are held out, unless it is too short to be parted
    in two.

    Raises:
        RecordingError: it holds no orders, is too short, or is damaged.
    """
    parts = split_by_zone(recorded_events(recording, currency), calendar)
    lines = sum(len(events) for _, events in parts)
    sources, held_out = [], []
    for zone, events in parts:
        own, name = ShopCalendar(zone), f"{recording.path.name} in {zone}"
        last_day = bucket_of("1d", np.array([last_time_ms(events)]), zone)
        days = np.concatenate([last_day + 1, last_day + 1 - _HELD_OUT_DAYS])
        until_ms, split_ms = bucket_start_ms("1d", days, zone).tolist()
        first_ms = int(events.event_time_ms.min())
        if until_ms - first_ms < _LEAST_DAYS * _DAY_MS:
            raise RecordingError(f"{recording.path} is too short to learn from: {_LEAST_DAYS} days are the least")
        share = len(events) / lines
        if split_ms - first_ms >= _LEAST_DAYS * _DAY_MS:
            past = events.take(events.event_time_ms < split_ms)
            sources.append(_learnt(History(past, own, split_ms), freqs, share, name))
            held_out.append(_held_out(History(events, own, until_ms), freqs, name))
        else:
            sources.append(_learnt(History(events, own, until_ms), freqs, share, name))
    return TrainingData(sources, held_out)


def table_data(
    table: SeriesTable,
    covariates: Covariates = NO_COVARIATES,
    *,
    held_out: int | None = None,
    end_bucket: int | None = None,
    name: str = "the table",
) -> TrainingData:
    """A table of series up to `end_bucket` (exclusive; default: as far as units are known), its last `held_out` buckets
    held out (0 = none, default HELD_OUT_BUCKETS).

    Raises:
        SourceError: nothing is left to learn from.
    """
    freq = table.freq
    held = HELD_OUT_BUCKETS[freq] if held_out is None else held_out
    known_end = int(table.end_bucket.max(initial=0))
    end = known_end if end_bucket is None else min(known_end, end_bucket)
    first = int(table.first_bucket.min(initial=end)) + 1
    split = end - held
    if split <= first:
        raise SourceError(
            f"{name} has {max(end - first + 1, 0)} {freq} buckets, of which {held} are held out: too few are left to "
            "learn from; hold out fewer with --held-out, or give a longer table"
        )
    source = SeriesSource(table, first, split - 1, split, covariates)
    learnt = [Weighted(source, 1.0, name)]
    if not held:
        return TrainingData(learnt, [])
    # The last cutoff that still has a whole forecast's units to be compared with, where one has.
    last = max(end - WINDOWS[freq].max_prediction_length, split)
    judged = SeriesSource(table, split, last, end, covariates, volume_power=0.0, recent_share=0.0)
    return TrainingData(learnt, [Weighted(judged, 1.0, name)])


def _elsewhere(sources: Sequence[Weighted], *, moved: bool) -> list[Weighted]:
    return [weighted._replace(source=Elsewhere(weighted.source, moved)) for weighted in sources]


def _invented(items: int, days: int, seed: int) -> History:
    shop = synthetic.generate(items, days, seed)
    return History(shop.batch, ShopCalendar(shop.time_zone), shop.end_ms, shop.products, shop.global_entries)


def _learnt(history: History, freqs: Sequence[str], share: float, name: str) -> Weighted:
    source = HistorySource(history, history.start_ms + _BURN_IN_DAYS * _DAY_MS, history.end_ms, tuple(freqs))
    return Weighted(source, share, name)


def _held_out(history: History, freqs: Sequence[str], name: str) -> Weighted:
    """Cutoffs in the history's last weeks."""
    end_ms = history.end_ms
    source = HistorySource(history, end_ms - _HELD_OUT_DAYS * _DAY_MS, end_ms - _DAY_MS, tuple(freqs))
    return Weighted(source, 1.0, name)
