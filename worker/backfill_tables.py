"""Tables of past events, as records that a lane takes: in one order, cut at the same moments, with offsets.

A table without Kafka's offsets is ordered by event time, and by row where that is the same; a row's place among those
of its partition is its offset, on a topic that only the features know. A table with Kafka's partitions and offsets has
the records of the live topic itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_store.events import EVENT_CLASSES
from worker.errors import TableError
from worker.records import Records
from worker.tables import read_file, utc_ms

SOURCES = ("orders", "clicks", "reviews")
_PLACES = ("partition", "offset")
_TEXTS = ("product_id", "location_id", "event_id", "order_id", "promotion_id", "currency")


class _Row(NamedTuple):
    """What a lane may ask of a record beside its key and value."""

    def timestamp(self) -> tuple[int, int]:
        return 0, -1

    def headers(self) -> list[tuple[str, bytes]] | None:
        return None


_ROW = _Row()


class TableFiles(NamedTuple):
    """Files of one source's table, and the column of each field that has another name there."""

    source: str
    paths: Sequence[Path]
    columns: Mapping[str, str] = {}


class PastEvents:
    """One source's table in memory, as columns. Rows at `before_ms` and later are left to the live topic."""

    def __init__(
        self, files: TableFiles, partition_of: Callable[[str], int], *, before_ms: int | None, live_topic: str
    ) -> None:
        self.source, self.before_ms, self.live_topic = files.source, before_ms, live_topic
        table = read_table(files, with_places=before_ms is None)
        times = _whole(table.column("event_time"), "event_time", files)
        self._columns = {name: table.column(name) for name in table.column_names if name not in _PLACES}
        self._times = times
        rows = np.arange(len(times))
        if before_ms is None:
            partitions = _whole(table.column("partition"), "partition", files)
            offsets = _whole(table.column("offset"), "offset", files)
            order = np.lexsort((rows, offsets, partitions))
            same = (np.diff(partitions[order]) == 0) & (np.diff(offsets[order]) == 0)
            order = order[np.r_[True, ~same]] if len(order) else order  # sinks may write a record twice
            self._offsets = offsets
        else:
            partitions = _partitions(table.column("product_id"), partition_of)
            order = np.lexsort((rows, times, partitions))
            order = order[times[order] < before_ms]
        self.left_out = len(times) - len(order)
        self.digest = _digest(files, before_ms)
        self.topic = live_topic if before_ms is None else f"backfill:{self.source}:{self.digest}"
        self._order_of = {p: order[partitions[order] == p] for p in np.unique(partitions[order]).tolist()}
        self.partitions = sorted(self._order_of)

    def __len__(self) -> int:
        return sum(map(len, self._order_of.values()))

    def due_ms(self, partition: int) -> NDArray[np.int64]:
        """When each of the partition's rows is due, in their order: ascending int64 (row,)."""
        order = self._order_of.get(partition, np.empty(0, np.intp))
        return np.maximum.accumulate(self._times[order]) if len(order) else np.empty(0, np.int64)

    def last_offset(self, partition: int, stop: int) -> int:
        """Offset of the row before `stop`."""
        return stop - 1 if self.before_ms is not None else int(self._offsets[self._order_of[partition][stop - 1]])

    def records(self, partition: int, first: int, stop: int) -> Records:
        """The partition's rows from `first` up to, not including, `stop`, in their order."""
        order = self._order_of[partition]
        chosen = order[first:stop]
        columns = {name: column.take(chosen).to_pylist() for name, column in self._columns.items()}
        columns["event_time"] = self._times[chosen].tolist()
        names = tuple(columns)
        values = [
            msgspec.json.encode({n: v for n, v in zip(names, row, strict=True) if v is not None})
            for row in zip(*columns.values(), strict=True)
        ]
        keys = [product.encode() if product is not None else None for product in columns["product_id"]]
        if self.before_ms is None:
            offsets: Sequence[int] = self._offsets[chosen].tolist()
            start = int(self._offsets[order[first - 1]]) + 1 if first else 0
        else:
            offsets, start = range(first, stop), first
        return Records(self.topic, start, 0, offsets, keys, values, [_ROW] * len(values))


def read_table(files: TableFiles, *, with_places: bool) -> Any:
    """The fields of the source's events that the files have, as a pyarrow.Table with the fields' own names; with
    Kafka's partition and offset where asked for.

    Raises:
        TableError: a file can't be read, or lacks a column; names the remedy.
    """
    fields = [field.name for field in msgspec.structs.fields(EVENT_CLASSES[files.source])]
    required = [field.name for field in msgspec.structs.fields(EVENT_CLASSES[files.source]) if field.required]
    if with_places:
        fields, required = [*fields, *_PLACES], [*required, *_PLACES]
    if unknown := sorted(set(files.columns) - {*fields, *_PLACES}):
        raise TableError(f"{files.source} have no field {unknown[0]!r}; they have {', '.join(fields)}")
    parts = []
    for path in files.paths:
        table = read_file(path, {files.columns.get(name, name) for name in _TEXTS})
        names = {name: files.columns.get(name, name) for name in fields}
        if lacking := [n for n in required if names[n] not in table.column_names]:
            raise TableError(
                f"{path} has no column {names[lacking[0]]!r}: say which holds {lacking[0]} with --column "
                f"{files.source}.{lacking[0]}=NAME; it has {', '.join(table.column_names)}"
            )
        present = {name: table.column(column) for name, column in names.items() if column in table.column_names}
        present = {n: column.cast(pa.string()) if n in _TEXTS else column for n, column in present.items()}
        present = {name: _plain(column) for name, column in present.items()}
        times = utc_ms(path, names["event_time"], present["event_time"], "UTC")
        parts.append(pa.table(present | {"event_time": pa.array(times)}))
    try:
        return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise TableError(f"{_named(files)} do not have the same columns: {error}") from error


def _plain(column: Any) -> Any:
    """Decimals as floats, dictionaries as their values: as messages have them."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column


def _whole(column: Any, name: str, files: TableFiles) -> NDArray[np.int64]:
    if column.null_count:
        raise TableError(f"{_named(files)}: {column.null_count} rows have no {name}: leave them out of the table")
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _named(files: TableFiles) -> str:
    return ", ".join(map(str, files.paths))


def _partitions(products: Any, partition_of: Callable[[str], int]) -> NDArray[np.int64]:
    """The partition of each row. One without a product is for any: it will be rejected."""
    encoded = products.fill_null("").dictionary_encode().unify_dictionaries().combine_chunks()
    of = np.array([partition_of(name) for name in encoded.dictionary.to_pylist()] or [0], dtype=np.int64)
    indices: NDArray[np.int64] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return of[indices]


def _digest(files: TableFiles, before_ms: int | None) -> str:
    """Tells rows, their order and their join: the same rows are gone on with, others are another table."""
    told = hashlib.sha256(msgspec.json.encode([files.source, sorted(files.columns.items()), before_ms]))
    for path in files.paths:
        with path.open("rb") as file:
            told.update(hashlib.file_digest(file, "sha256").digest())
    return told.hexdigest()[:16]


def slices(tables: Sequence[PastEvents], partition: int, slice_ms: int) -> Iterator[list[tuple[PastEvents, int, int]]]:
    """Cut a partition's rows of all tables at the same moments, so that no source runs ahead of the others by more
    than `slice_ms` of event time: (table, first row, stop) of those that have some in a slice."""
    due = {table: table.due_ms(partition) // slice_ms for table in tables}
    for number in sorted({int(n) for numbers in due.values() for n in np.unique(numbers)}):
        bounds = [(t, *np.searchsorted(due[t], [number, number + 1]).tolist()) for t in tables]
        yield [(table, first, stop) for table, first, stop in bounds if stop > first]
