"""A snapshot as files: Parquet tables with the names that things have in messages, and a manifest. No Redis here.

    manifest.json                     written last; see Manifest
    partition-00000/sums.parquet      series_id, product_id, location_id, freq, bucket, one int64 column a feature, in
                                      units_per_one-ths: one row a series, frequency and bucket, sorted so
    …/items.parquet                   item_id, product_id, location_id, first_event_ms, last_event_ms
    …/products.parquet                product_id, state: JSON of items.ProductState
    …/dirty.parquet                   freq, item_id, mark
    …/forecasts.parquet               freq, item_id, the fields of layout.ForecastSummary
    …/calibration.parquet             freq, item_id, state: JSON of calibration_state.ItemCalibration
    …/segments.parquet                freq, time_zone, state: JSON of calibration_state.SegmentLevels
    …/scores.parquet                  freq, item_id, state: JSON of score_state.ItemScores
    …/challenges.parquet              freq, item_id, state: JSON of score_state.ItemChallenge
    …/alerts.parquet                  freq, item_id, state: JSON of alert_state.ItemAlerts
    …/alert_levels.parquet            freq, name, state: JSON of alert_state.AlertLevels
    …/accuracy.parquet                freq, row, sums: see score_state
    …/accuracy_sent.parquet           freq, window, sent: what of them was published
    …/event_ids.parquet               source, generation, event_id
    calendar_global.parquet           key, value, timestamp_ms: the last record of each key

Nothing in it depends on the layout in Redis, so another version of shelfcast can read it. A folder is complete or has
another name: it is filled as NAME.partial and renamed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from feature_store.features import FEATURES, BucketRows
from feature_store.items import Item, ProductState
from feature_store.layout import LAYOUT_VERSION, unpack_summary
from feature_store.partition_fields import PartitionFields
from feature_store.snapshot_tables import (
    ACCURACY_COLUMNS,
    ALERT_LEVEL_COLUMNS,
    CALENDAR_COLUMNS,
    CALIBRATION_COLUMNS,
    COLUMNS,
    DIRTY_COLUMNS,
    FORECAST_COLUMNS,
    ID_COLUMNS,
    ITEM_COLUMNS,
    PRODUCT_COLUMNS,
    SCORE_COLUMNS,
    SEGMENT_COLUMNS,
    SENT_COLUMNS,
    row_tables,
    schema_of,
    sums_tables,
    texts,
)
from feature_store.store_errors import StoreError

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"


class SnapshotError(StoreError):
    """A folder is no whole snapshot, or can't be used here; the message names the remedy."""


class FileEntry(msgspec.Struct, frozen=True):
    """A file of the snapshot; `path` is relative to its folder."""

    path: str
    sha256: str
    rows: int


class PartitionEntry(msgspec.Struct, frozen=True):
    """A partition as it stood at `taken_ms`. `files` by table."""

    taken_ms: int
    fields: PartitionFields
    files: dict[str, FileEntry]


class Manifest(msgspec.Struct, frozen=True):
    """What a snapshot is of. `meaning`: the settings without which its numbers mean something else."""

    format_version: int
    layout_version: int
    namespace: str
    created_ms: int
    partition_count: int
    forecast_freqs: list[str]
    features: list[str]
    meaning: dict[str, Any]
    chosen: bool  # only some partitions were asked for; of the others nothing is known
    partitions: dict[int, PartitionEntry]
    calendar_global: FileEntry | None = None


class CalendarRecord(NamedTuple):
    """A record of the whole shop's calendar topic."""

    key: bytes
    value: bytes
    timestamp_ms: int


class Copied(NamedTuple):
    """A partition to be written: see partition_copy.PartitionCopy."""

    partition: int
    taken_ms: int
    fields: PartitionFields
    items: Mapping[str, Item]
    products: Mapping[str, ProductState]
    dirty: Mapping[str, Mapping[str, int]]
    forecasts: Mapping[str, Mapping[str, bytes]]
    calibration: Mapping[str, Mapping[str, bytes]]
    segments: Mapping[str, Mapping[str, bytes]]
    scores: Mapping[str, Mapping[str, bytes]]
    challenges: Mapping[str, Mapping[str, bytes]]
    alerts: Mapping[str, Mapping[str, bytes]]
    alert_levels: Mapping[str, Mapping[str, bytes]]
    accuracy: Mapping[str, Mapping[str, bytes]]
    accuracy_sent: Mapping[str, Mapping[str, bytes]]
    ids: Mapping[tuple[str, int], set[bytes]]
    sums: Mapping[str, Sequence[bytes]]


class About(NamedTuple):
    """What the manifest says of the whole; see Manifest."""

    namespace: str
    partition_count: int
    forecast_freqs: Sequence[str]
    meaning: Mapping[str, Any]
    chosen: bool


class SnapshotWriter:
    """Fills a folder. `close` gives it its name; until then, or when it is left out, there is no snapshot."""

    def __init__(self, folder: Path) -> None:
        if folder.exists():
            raise SnapshotError(f"{folder} exists: choose another folder, or remove it first")
        self._folder = folder
        self._partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)  # of a snapshot that was killed
        self._partial.mkdir(parents=True)
        self._partitions: dict[int, PartitionEntry] = {}
        self._calendar: FileEntry | None = None

    def add_partition(self, copied: Copied) -> None:
        """Write one partition's tables."""
        tables = {
            "sums": sums_tables(copied.sums),
            "items": row_tables(ITEM_COLUMNS, (msgspec.structs.astuple(item) for item in copied.items.values())),
            "products": row_tables(
                PRODUCT_COLUMNS,
                ((name, msgspec.json.encode(state).decode()) for name, state in copied.products.items()),
            ),
            "dirty": row_tables(
                DIRTY_COLUMNS,
                ((freq, item_id, mark) for freq, marks in copied.dirty.items() for item_id, mark in marks.items()),
            ),
            "forecasts": row_tables(
                FORECAST_COLUMNS,
                (
                    (freq, item_id, *msgspec.structs.astuple(unpack_summary(raw)))
                    for freq, forecasts in copied.forecasts.items()
                    for item_id, raw in forecasts.items()
                ),
            ),
            "calibration": row_tables(CALIBRATION_COLUMNS, texts(copied.calibration)),
            "segments": row_tables(SEGMENT_COLUMNS, texts(copied.segments)),
            "scores": row_tables(SCORE_COLUMNS, texts(copied.scores)),
            "challenges": row_tables(SCORE_COLUMNS, texts(copied.challenges)),
            "alerts": row_tables(CALIBRATION_COLUMNS, texts(copied.alerts)),
            "alert_levels": row_tables(ALERT_LEVEL_COLUMNS, texts(copied.alert_levels)),
            "accuracy": row_tables(ACCURACY_COLUMNS, texts(copied.accuracy)),
            "accuracy_sent": row_tables(SENT_COLUMNS, texts(copied.accuracy_sent)),
            "event_ids": row_tables(
                ID_COLUMNS,
                ((source, g, one.decode()) for (source, g), ids in copied.ids.items() for one in sorted(ids)),
            ),
        }
        name = f"partition-{copied.partition:05d}"
        (self._partial / name).mkdir()
        files = {
            table: self._write(f"{name}/{table}.parquet", columns, tables[table]) for table, columns in COLUMNS.items()
        }
        self._partitions[copied.partition] = PartitionEntry(copied.taken_ms, copied.fields, files)

    def add_calendar(self, records: Sequence[CalendarRecord]) -> None:
        """Write the whole shop's calendar."""
        self._calendar = self._write("calendar_global.parquet", CALENDAR_COLUMNS, row_tables(CALENDAR_COLUMNS, records))

    def close(self, about: About) -> Manifest:
        """Write the manifest and give the folder its name."""
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            layout_version=LAYOUT_VERSION,
            namespace=about.namespace,
            created_ms=time.time_ns() // 1_000_000,
            partition_count=about.partition_count,
            forecast_freqs=list(about.forecast_freqs),
            features=[feature.name for feature in FEATURES],
            meaning=dict(about.meaning),
            chosen=about.chosen,
            partitions=self._partitions,
            calendar_global=self._calendar,
        )
        with (self._partial / _MANIFEST).open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
            file.flush()
            os.fsync(file.fileno())
        self._partial.rename(self._folder)
        return manifest

    def _write(self, path: str, columns: Mapping[str, str], tables: Iterator[Any]) -> FileEntry:
        import pyarrow.parquet as pq  # noqa: PLC0415 - a worker needs none

        target, rows = self._partial / path, 0
        with target.open("wb") as file:
            with pq.ParquetWriter(file, schema_of(columns), compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=max(table.num_rows, 1))
                    rows += table.num_rows
            file.flush()
            os.fsync(file.fileno())
        return FileEntry(path, _sha256(target), rows)


class Snapshot:
    """A snapshot read from its folder; tables are read part by part."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> Snapshot:
        """Raises SnapshotError, which names the remedy."""
        path = folder / _MANIFEST
        try:
            raw = path.read_bytes()
        except OSError as error:
            partial = folder.with_name(f"{folder.name}.partial")
            hint = f" {partial} was left by one that was killed." if partial.exists() else ""
            raise SnapshotError(f"{folder} is no snapshot: {path} can't be read ({error.strerror}).{hint}") from error
        try:
            version = msgspec.json.decode(raw)["format_version"]
            if version > FORMAT_VERSION:
                raise SnapshotError(
                    f"{folder} has format {version}, this version reads up to {FORMAT_VERSION}: use a newer shelfcast"
                )
            return cls(folder, msgspec.json.decode(raw, type=Manifest))
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise SnapshotError(f"{path} is damaged ({error}): take the snapshot from a backup") from error

    @property
    def digest(self) -> str:
        """Names this very snapshot: everything in it is named in the manifest by its sha256."""
        return _sha256(self.folder / _MANIFEST)[:16]

    def verify(self) -> None:
        """Compare every file with the manifest. Raises SnapshotError."""
        entries = [entry for partition in self.manifest.partitions.values() for entry in partition.files.values()]
        for entry in [*entries, *([self.manifest.calendar_global] if self.manifest.calendar_global else [])]:
            path = self.folder / entry.path
            if not path.is_file() or _sha256(path) != entry.sha256:
                raise SnapshotError(f"{path} is missing or not what the manifest says: take the snapshot from a backup")

    def calendar(self) -> list[CalendarRecord]:
        """The whole shop's calendar; the last record of each key."""
        if self.manifest.calendar_global is None:
            return []
        return [
            CalendarRecord(*row)
            for batch in self._batches(self.manifest.calendar_global)
            for row in zip(*_columns(batch, ("key", "value", "timestamp_ms")), strict=True)
        ]

    def rows(self, partition: int, table: str) -> Iterator[list[tuple[Any, ...]]]:
        """Rows of one of the tables but `sums`, as this version's columns; some at a time. None of a table that the
        version did not know by which the snapshot was taken."""
        entry = self.manifest.partitions[partition].files.get(table)
        for batch in self._batches(entry) if entry is not None else ():
            yield list(zip(*_columns(batch, tuple(COLUMNS[table])), strict=True))

    def sums(self, partition: int) -> Iterator[tuple[str, list[str], list[str], BucketRows]]:
        """(freq, series_ids, their product_ids, rows): whole rows of some series at a time, `rows.item` is the index
        into them."""
        for batch in self._batches(self.manifest.partitions[partition].files["sums"]):
            freqs, series, products, buckets = _columns(batch, ("freq", "series_id", "product_id", "bucket"))
            numbers = np.zeros((batch.num_rows, len(FEATURES)), dtype=np.int64)
            for i, feature in enumerate(FEATURES):
                if feature.name in batch.schema.names:
                    numbers[:, i] = batch.column(feature.name).to_numpy(zero_copy_only=False)
            bucket = np.array(buckets, dtype=np.int64)
            for freq in dict.fromkeys(freqs):
                own = np.array([one == freq for one in freqs], dtype=np.bool_)
                named = {s: p for s, p, mine in zip(series, products, own.tolist(), strict=True) if mine}
                index = {name: i for i, name in enumerate(named)}
                item = np.array([index[s] for s, mine in zip(series, own.tolist(), strict=True) if mine], np.int64)
                yield freq, list(named), list(named.values()), BucketRows(item, bucket[own], numbers[own])

    def _batches(self, entry: FileEntry) -> Iterator[Any]:
        import pyarrow.parquet as pq  # noqa: PLC0415 - a worker needs none

        with pq.ParquetFile(self.folder / entry.path) as file:
            for number in range(file.num_row_groups):
                yield file.read_row_group(number)


def _columns(batch: Any, names: Sequence[str]) -> list[list[Any]]:
    return [batch.column(name).to_pylist() for name in names]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
