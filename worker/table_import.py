"""Tables as recordings: each row an event, encoded, keyed and timed as a shop's live messages are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from feature_store.events import EVENT_CLASSES
from feature_store.recording_edit import new_recording
from feature_store.recording_files import Manifest, RecordColumns, TopicEntry
from worker.errors import TableError
from worker.tables import read_table, utc_ms

_ROWS_AT_ONCE = 200_000  # of all partitions, so that files follow one another in time
_CREATE_TIME = 1
_NO_TEXTS = ("quantity", "unit_price", "rating", "one_off", "on_hand", "on_order", "entries", "image_embedding")
_TIMES = ("event_time", "launch_time", "original_event_time")


class Target(NamedTuple):
    """Where events go. `topics`: name by source. `partition_of(product_id, partition_count)` partitions as shops do."""

    output: Path
    source: str
    created_ms: int
    topics: Mapping[str, str]
    partition_count: int
    partition_of: Callable[[str, int], int]


class Columns(NamedTuple):
    """How a table's rows become events of one source: the column of each field; values that hold for all rows; the
    time zone of times that tell none; whether rows that make no event are left out, not refused."""

    kind: str
    column_of: Mapping[str, str]
    constants: Mapping[str, str]
    time_zone: str
    skip_invalid: bool = False


def mapped_events(path: Path, wanted: Columns, on_skipped: Callable[[str], None]) -> Iterator[msgspec.Struct]:
    """A table's rows as events. Without a column for it an `event_id` is made of file name and row.

    Raises:
        TableError: a field or column does not exist, a needed one is not mapped, or a row makes no event.
    """
    cls = EVENT_CLASSES[wanted.kind]
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    given = {*wanted.column_of, *wanted.constants}
    for name in sorted(given - set(fields)):
        raise TableError(f"{wanted.kind} have no field {name}: their fields are {', '.join(fields)}")
    needed = [name for name, field in fields.items() if field.required and name not in given]
    if needed:
        raise TableError(f"{wanted.kind} need {', '.join(needed)}: name the column with --map {needed[0]}=COLUMN")
    texts = {column for name, column in wanted.column_of.items() if name not in _TIMES and name not in _NO_TEXTS}
    table = read_table(path, list(dict.fromkeys(wanted.column_of.values())), texts)
    names = list(wanted.column_of)
    columns = [_values(path, name, table[column], wanted) for name, column in wanted.column_of.items()]
    has_id = "event_id" in fields and "event_id" not in given
    for number, row in enumerate(zip(*columns, strict=True)):
        event = {**wanted.constants, **{name: v for name, v in zip(names, row, strict=True) if v is not None}}
        if has_id:
            event["event_id"] = f"{path.stem}-{number}"
        try:
            yield msgspec.convert(event, cls, strict=False)
        except msgspec.ValidationError as error:
            text = f"{path} row {number + 1}: {error}"
            if not wanted.skip_invalid:
                raise TableError(f"{text}. Mend it, or leave such rows out with --skip-invalid") from error
            on_skipped(text)


def _values(path: Path, name: str, column: Any, wanted: Columns) -> list[Any]:
    """A column as the field wants it; None = missing."""
    if name in _TIMES:
        if name == "event_time" or not column.null_count:
            return list(utc_ms(path, name, column, wanted.time_zone).tolist())
        known = column.is_valid().combine_chunks()
        times = iter(utc_ms(path, name, column.drop_null(), wanted.time_zone).tolist())
        return [next(times) if is_known else None for is_known in known.to_pylist()]
    if name not in _NO_TEXTS:
        return list(column.cast(pa.string()).to_pylist())
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    return [None if isinstance(v, float) and math.isnan(v) else v for v in column.to_pylist()]


def write_events(target: Target, events: Mapping[str, Iterable[msgspec.Struct]]) -> dict[str, int]:
    """Write events by source as a recording, and return how many there are by topic. They are sorted by event time,
    those of one time in the order given; key is the product, timestamp the event time. Held in memory meanwhile.

    Raises:
        RecordingError: the folder is not empty, or can't be written.
    """
    topics = {target.topics[source]: source for source in events}
    manifest = Manifest(
        source=target.source,
        created_ms=target.created_ms,
        topics={
            topic: TopicEntry(target.partition_count, start_offsets=dict.fromkeys(range(target.partition_count), 0))
            for topic in sorted(topics)
        },
        schema_versions=dict(sorted(topics.items())),
    )
    counts = {}
    with new_recording(target.output, manifest) as writer:
        for topic, source in topics.items():
            counts[topic] = 0
            for columns in _records(topic, events[source], target):
                writer.append(columns)
                counts[topic] += len(columns.offsets)
    return counts


def _records(topic: str, events: Iterable[Any], target: Target) -> Iterator[RecordColumns]:
    encoder = msgspec.json.Encoder()
    kept = [(event.event_time, event.product_id, encoder.encode(event)) for event in events]
    if not kept:
        return
    times_list, products, values = (list(column) for column in zip(*kept, strict=True))
    times = np.array(times_list, dtype=np.int64)
    partition_of = {product: target.partition_of(product, target.partition_count) for product in set(products)}
    partition = np.array([partition_of[product] for product in products], dtype=np.int64)
    key_of = {product: product.encode() for product in partition_of}
    by_time = np.argsort(times, kind="stable")
    ends = [0] * target.partition_count
    for first in range(0, len(by_time), _ROWS_AT_ONCE):
        some = by_time[first : first + _ROWS_AT_ONCE]
        for p in range(target.partition_count):
            rows = some[partition[some] == p]
            if not len(rows):
                continue
            offsets = np.arange(ends[p], ends[p] + len(rows), dtype=np.int64)
            ends[p] += len(rows)
            yield RecordColumns(
                topic,
                p,
                offsets,
                times[rows],
                np.full(len(rows), _CREATE_TIME, dtype=np.int8),
                [key_of[products[row]] for row in rows.tolist()],
                [values[row] for row in rows.tolist()],
                [None] * len(rows),
            )
