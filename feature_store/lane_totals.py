"""Totals of a lane: how many events of each source it has counted in each hour, all products together.

They stand as the sums of two series of their own, so all that holds for sums holds for them: written in one step with
positions, exact whatever is killed, kept as long as other hours are, and in snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from feature_store.chunks import SOURCE_LETTERS, ChunkTexts, chunk_fields, unpack_chunks
from feature_store.features import FEATURE_INDEX, FEATURES, SOURCE_FEATURES, SOURCES, Deltas
from feature_store.plan import Plan

# No item is called so: an @ within a product or a location is encoded in an item_id, and no product has an empty name.
LANE_SERIES = "@@lane"
SHOP_SERIES = "@@shop"  # of all partitions: a replay's clock tells it, and only the first lane keeps it
FIRST_LANE = 0
FREQ = "1h"
HOUR_MS = 3_600_000
# What counts events, of all that is summed: other sums of a whole lane could pass what is exact.
_COUNTING = [FEATURE_INDEX[name] for name in ("order_lines", "views", "add_to_carts", "review_count")]
_IS_COUNTING = np.isin(np.arange(len(FEATURES)), _COUNTING)


def with_totals(plan: Plan) -> Plan:
    """The plan of a batch, with what it adds to the totals of its lane."""
    totals = []
    for deltas in plan.sums:
        if deltas.freq == FREQ:
            hours, where = np.unique(deltas.bucket, return_inverse=True)
            values = np.zeros((len(hours), deltas.values.shape[1]), dtype=np.int64)
            np.add.at(values, where, deltas.values * _IS_COUNTING[SOURCE_FEATURES[deltas.source]])
            counted = values.any(axis=1)
            series = np.full(int(counted.sum()), len(plan.series), dtype=np.int64)
            totals.append(Deltas(deltas.source, FREQ, series, hours[counted], values[counted]))
    kept = [deltas for deltas in totals if len(deltas.series)]
    if not kept:
        return plan
    oldest = {freq: np.append(buckets, buckets.min()) for freq, buckets in plan.oldest_kept.items()}
    return plan._replace(series=[*plan.series, LANE_SERIES], sums=[*plan.sums, *kept], oldest_kept=oldest)


def arrivals(by_hour: Mapping[int, Mapping[str, int]]) -> list[Deltas]:
    """Events of the whole shop, by hour and source, as sums of series 0."""
    out = []
    for source in SOURCES:
        counts = {hour: own[source] for hour, own in sorted(by_hour.items()) if own.get(source)}
        if counts:
            columns = SOURCE_FEATURES[source]
            values = np.zeros((len(counts), columns.stop - columns.start), dtype=np.int64)
            values[:, int(np.flatnonzero(_IS_COUNTING[columns])[0])] = list(counts.values())
            hours = np.array(list(counts), dtype=np.int64)
            out.append(Deltas(source, FREQ, np.zeros(len(hours), dtype=np.int64), hours, values))
    return out


def hour_fields(first_hour: int, last_hour: int) -> list[str]:
    """Where totals of these hours stand, both included."""
    return chunk_fields(FREQ, first_hour, last_hour)[2]


def hourly_counts(
    fields: Sequence[str], texts: Sequence[bytes | None], first_hour: int, last_hour: int
) -> dict[str, NDArray[np.int64]]:
    """Events by source: int64 (hour,), from what stands under `hour_fields`."""
    by_source = {}
    for source in SOURCES:
        found = [
            (int(field[2:]), text)
            for field, text in zip(fields, texts, strict=True)
            if text is not None and field[1] == SOURCE_LETTERS[source]
        ]
        by_source[source] = ChunkTexts(
            np.zeros(len(found), dtype=np.int64), np.array([n for n, _ in found], dtype=np.int64), [t for _, t in found]
        )
    rows = unpack_chunks(FREQ, by_source)
    inside = (rows.bucket >= first_hour) & (rows.bucket <= last_hour)
    out = {}
    for source in SOURCES:
        counts = np.zeros(last_hour - first_hour + 1, dtype=np.int64)
        columns = [column for column in _COUNTING if FEATURES[column].source == source]
        np.add.at(counts, rows.bucket[inside] - first_hour, rows.values[inside][:, columns].sum(axis=1))
        out[source] = counts
    return out
