"""Snapshots: partitions of a store saved as files, and brought back.

Restored into as many partitions as it was taken from, a snapshot keeps its positions: a worker goes on where the
snapshot was taken. Into another number of partitions, products are dealt out anew, and positions mean nothing any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from feature_store.decoding import decode_global_calendar
from feature_store.events import CalendarEntry
from feature_store.features import BucketRows
from feature_store.items import Item
from feature_store.layout import ForecastSummary, unpack_product
from feature_store.partition_fields import PartitionFields, fields_of, joined, meta_of
from feature_store.partition_restore import PartitionRestore
from feature_store.snapshot_files import Copied, Snapshot, SnapshotError, SnapshotWriter
from feature_store.snapshot_tables import product_of
from feature_store.store import FeatureStore

# Settings that say what the numbers of a snapshot mean: restored under others they would be wrong.
MEANING = ("time_zone", "location_time_zones", "currency")
DEDUP_WINDOWS = "dedup_window_ms"


class Saved(NamedTuple):
    """A partition that was saved."""

    partition: int
    series: int
    items: int
    positions: Mapping[str, int]
    held_s: float  # for how long its writers were held back


class Restored(NamedTuple):
    """What a restore has done."""

    partitions: list[int]
    before: list[int]  # of these partitions: restored from this very snapshot before, and left as they are
    positions_kept: bool
    ids_left_out: list[str]  # sources whose ids of events are of another window


class RestoreRules(NamedTuple):
    """How to restore.

    partition_of: the partition of a product, for a snapshot of another number of partitions.
    keep_positions: go on where the snapshot was taken.
    before: by source, the event time in ms below which live events are in the snapshot already; for positions that are
        not kept.
    meaning: the settings to restore under, by the names in MEANING and DEDUP_WINDOWS; what is absent is not compared.
    """

    partition_of: Callable[[str], int]
    keep_positions: bool = True
    before: Mapping[str, int] = {}
    meaning: Mapping[str, Any] = {}
    replace: bool = False


async def save_partition(store: FeatureStore, writer: SnapshotWriter, partition: int) -> Saved | None:
    """Save a partition as it stands at one moment, while its lane goes on; None when nothing stands there."""
    copy = await store.copy_partition(partition)
    if copy is None:
        return None
    fields = fields_of(copy.meta)
    writer.add_partition(
        Copied(
            partition=partition,
            taken_ms=time.time_ns() // 1_000_000,
            fields=fields,
            items=copy.items,
            products=copy.products,
            dirty=copy.dirty,
            forecasts=copy.forecasts,
            calibration=copy.calibration,
            segments=copy.segments,
            scores=copy.scores,
            challenges=copy.challenges,
            alerts=copy.alerts,
            alert_levels=copy.alert_levels,
            accuracy=copy.accuracy,
            accuracy_sent=copy.accuracy_sent,
            ids=copy.ids,
            sums=copy.sums,
        )
    )
    return Saved(partition, len(copy.sums), len(copy.items), fields.positions, copy.held_s)


async def load_snapshot(
    store: FeatureStore, folder: Path, rules: RestoreRules, partitions: Sequence[int] | None = None
) -> Restored:
    """Restore a snapshot, or some of its partitions, into the store's namespace. Run again after a kill it goes on;
    partitions that it has brought back before are left as they are, unless they are to be replaced.

    Raises:
        SnapshotError: the folder is no whole snapshot, or means something else under these settings.
        StoreRefusedError: a partition holds features.
    """
    snapshot = Snapshot.open(folder)
    snapshot.verify()
    ids_left_out = _compare_meaning(snapshot.manifest.meaning, rules.meaning, folder)
    taken = sorted(snapshot.manifest.partitions)
    targets = {p: [p] for p in (taken if partitions is None else partitions)}
    if absent := sorted(set(targets) - set(taken)):
        raise SnapshotError(f"{folder} has no partition {absent[0]}: it holds {', '.join(map(str, taken))}")
    same = snapshot.manifest.partition_count == store.partition_count
    if not same:
        if partitions is not None or snapshot.manifest.chosen:
            raise SnapshotError(
                f"{folder} is of {snapshot.manifest.partition_count} partitions, here are {store.partition_count}: all "
                "of it has to be restored at once"
            )
        targets = dict.fromkeys(range(store.partition_count), taken)
    keep = rules.keep_positions and same
    name = f"{snapshot.digest}{'' if keep else ' without positions'}"
    restores = {p: store.restore_partition(p, name=name, replace=rules.replace) for p in targets}
    begun = {p: restore for p, restore in restores.items() if await restore.begin()}
    for source in taken:
        own = {p: restore for p, restore in begun.items() if source in targets[p]}
        if own:
            dealt, home = (None, source) if same else (rules.partition_of, source % store.partition_count)
            await _Part(snapshot, source, own, dealt, ids_left_out, home).add()
    for p, restore in begun.items():
        entries = [snapshot.manifest.partitions[source].fields for source in targets[p]]
        fields = _fields(entries, keep, rules.before, ids_left_out)
        await restore.commit(store.partition_count, meta_of(fields))
    return Restored(sorted(begun), sorted(set(restores) - set(begun)), keep, ids_left_out)


def calendar_entries(folder: Path) -> tuple[CalendarEntry, ...]:
    """The whole shop's calendar as a snapshot has it, in the order in which a worker has it."""
    lists = {record.key: decode_global_calendar(record.value).entries for record in Snapshot.open(folder).calendar()}
    return tuple(entry for key in sorted(lists) for entry in lists[key])


def _compare_meaning(stored: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> list[str]:
    """Sources whose ids are of another window. Raises SnapshotError when the sums mean something else."""
    for name in MEANING:
        if name in here and name in stored and here[name] != stored[name]:
            raise SnapshotError(
                f"{folder} was taken under {name} = {stored[name]!r}, here it is {here[name]!r}: its days and sums "
                f"would be wrong. Set {name} as it was, or read the topics from the start"
            )
    windows = stored.get(DEDUP_WINDOWS, {})
    return sorted(s for s, window in here.get(DEDUP_WINDOWS, {}).items() if windows.get(s, window) != window)


def _fields(
    entries: Sequence[PartitionFields], keep: bool, before: Mapping[str, int], ids_left_out: Sequence[str]
) -> PartitionFields:
    fields = entries[0] if len(entries) == 1 else joined(entries)
    kept = {source: ids for source, ids in fields.generations.items() if source not in ids_left_out}
    fields = msgspec.structs.replace(fields, generations=kept, sequence=max(fields.sequence, 1))
    if keep:
        return fields
    latest = {source: max(ms, fields.before.get(source, 0)) for source, ms in before.items()}
    newest = dict(fields.newest)
    if newest:  # a replay that begins here has come as far as that
        newest["clock"] = max(newest.values())
    return msgspec.structs.replace(fields, positions={}, before={**fields.before, **latest}, newest=newest)


class _Part:
    """One partition of a snapshot on its way into partitions of a store."""

    def __init__(
        self,
        snapshot: Snapshot,
        partition: int,
        restores: Mapping[int, PartitionRestore],
        partition_of: Callable[[str], int] | None,
        ids_left_out: Sequence[str],
        home: int,
    ) -> None:
        self._home = home  # where that goes which is of no product
        self._snapshot, self._partition, self._restores = snapshot, partition, restores
        self._partition_of, self._ids_left_out = partition_of, ids_left_out
        self._targets: dict[str, int] = {}  # by product

    def _target(self, product_id: str) -> int:
        if self._partition_of is None:
            return self._partition
        if product_id not in self._targets:
            self._targets[product_id] = self._partition_of(product_id)
        return self._targets[product_id]

    async def add(self) -> None:
        """All tables."""
        await self._add_sums()
        for items in self._rows("items"):
            for target, some in self._dealt(items, lambda item: self._target(item[1])):
                await self._restores[target].add_items(Item(*item) for item in some)
        for products in self._rows("products"):
            for target, some in self._dealt(products, lambda row: self._target(row[0])):
                states = {product_id: unpack_product(state.encode()) for product_id, state in some}
                await self._restores[target].add_products(states)
        await self._add_forecasts()
        await self._add_calibration()
        await self._add_scores()
        await self._add_alerts()
        await self._add_ids()

    async def _add_sums(self) -> None:
        for freq, series, products, rows in self._snapshot.sums(self._partition):
            for target, restore in self._restores.items():
                own = np.array([self._target(product) == target for product in products], dtype=np.bool_)
                if own.any():
                    await restore.add_sums(freq, [s for s, o in zip(series, own, strict=True) if o], _of(rows, own))

    async def _add_ids(self) -> None:
        """An id does not say whose it is: each partition that may be sent the event again has to know it."""
        for ids in self._rows("event_ids"):
            by_generation: dict[tuple[str, int], list[str]] = {}
            for source, generation, event_id in ids:
                by_generation.setdefault((source, generation), []).append(event_id)
            for (source, generation), some_ids in by_generation.items():
                for restore in self._restores.values() if source not in self._ids_left_out else ():
                    await restore.add_ids(source, generation, some_ids)

    async def _add_forecasts(self) -> None:
        for marks in self._rows("dirty"):
            for target, some in self._dealt(marks, lambda row: self._target(product_of(row[1]))):
                for freq in dict.fromkeys(row[0] for row in some):
                    await self._restores[target].add_dirty(freq, {row[1]: row[2] for row in some if row[0] == freq})
        for forecasts in self._rows("forecasts"):
            for target, some in self._dealt(forecasts, lambda row: self._target(product_of(row[1]))):
                for freq in dict.fromkeys(row[0] for row in some):
                    own = {row[1]: ForecastSummary(*row[2:]) for row in some if row[0] == freq}
                    await self._restores[target].add_forecasts(freq, own)

    async def _add_calibration(self) -> None:
        await self._add_states("calibration", PartitionRestore.add_calibration)
        if self._partition_of is None:  # else other items make up the segments: they learn anew
            for freq, zone, levels in (row for rows in self._rows("segments") for row in rows):
                await self._restores[self._partition].add_segments(freq, {zone: levels})

    async def _add_alerts(self) -> None:
        await self._add_states("alerts", PartitionRestore.add_alerts)
        if self._partition_of is None:  # else other items share the levels: they begin anew
            for freq, name, levels in (row for rows in self._rows("alert_levels") for row in rows):
                await self._restores[self._partition].add_alert_levels(freq, {name: levels})

    async def _add_scores(self) -> None:
        """Of a partition whose items are dealt out anew the sums go to one of those: what counts is their total over
        all partitions, which corrections keep. What was published is of messages that are another topic's then."""
        await self._add_states("scores", PartitionRestore.add_scores)
        await self._add_states("challenges", PartitionRestore.add_challenges)
        restore = self._restores.get(self._home)
        if restore is None:
            return
        for freq, row, sums in (entry for rows in self._rows("accuracy") for entry in rows):
            await restore.add_accuracy(freq, row, sums)
        if self._partition_of is None:
            for freq, window, sent in (entry for rows in self._rows("accuracy_sent") for entry in rows):
                await restore.add_accuracy_sent(freq, {window: sent})

    async def _add_states(self, table: str, add: Callable[[PartitionRestore, str, dict[str, str]], Any]) -> None:
        for states in self._rows(table):
            for target, some in self._dealt(states, lambda row: self._target(product_of(row[1]))):
                for freq in dict.fromkeys(row[0] for row in some):
                    await add(self._restores[target], freq, {row[1]: row[2] for row in some if row[0] == freq})

    def _rows(self, table: str) -> Iterator[list[tuple[Any, ...]]]:
        return self._snapshot.rows(self._partition, table)

    def _dealt(
        self, rows: Sequence[tuple[Any, ...]], target_of: Callable[[tuple[Any, ...]], int]
    ) -> list[tuple[int, list[tuple[Any, ...]]]]:
        """Rows by the partition that they go to."""
        out: dict[int, list[tuple[Any, ...]]] = {}
        for row in rows:
            out.setdefault(target_of(row), []).append(row)
        return list(out.items())


def _of(rows: BucketRows, own: np.ndarray[Any, np.dtype[np.bool_]]) -> BucketRows:
    """Rows of some of the series, numbered anew."""
    number = np.cumsum(own) - 1
    kept = own[rows.item]
    return BucketRows(number[rows.item[kept]].astype(np.int64), rows.bucket[kept], rows.values[kept])
