"""RecordColumns: records of one topic's partition as columns, and the Parquet columns that keep them byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Headers = list[tuple[str, bytes | None]]

_HEADER = pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.binary())])
RECORD_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("timestamp_type", pa.int8(), nullable=False),  # 0 not available, 1 create time, 2 log append time
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field("headers", pa.list_(pa.field("element", _HEADER))),  # null = no headers
    ]
)


class RecordColumns(NamedTuple):
    """Records of one topic and partition in offset order; columns have one entry a record.

    `timestamp_types`: 0 not available (its timestamp is -1), 1 create time, 2 log append time. None among the keys and
    values is Kafka's null; None among the headers means that the record has none.
    """

    topic: str
    partition: int
    offsets: NDArray[np.int64]
    timestamps_ms: NDArray[np.int64]
    timestamp_types: NDArray[np.int8]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers | None]

    def part(self, first: int, stop: int) -> RecordColumns:
        """The records of rows first to stop, stop excluded."""
        return RecordColumns(
            self.topic,
            self.partition,
            self.offsets[first:stop],
            self.timestamps_ms[first:stop],
            self.timestamp_types[first:stop],
            self.keys[first:stop],
            self.values[first:stop],
            self.headers[first:stop],
        )

    def take(self, rows: Sequence[int]) -> RecordColumns:
        """The records of some rows, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        return RecordColumns(
            self.topic,
            self.partition,
            self.offsets[index],
            self.timestamps_ms[index],
            self.timestamp_types[index],
            [self.keys[row] for row in rows],
            [self.values[row] for row in rows],
            [self.headers[row] for row in rows],
        )


def joined(pieces: Sequence[RecordColumns]) -> RecordColumns:
    """Records of one partition, one piece after the other."""
    return RecordColumns(
        pieces[0].topic,
        pieces[0].partition,
        np.concatenate([piece.offsets for piece in pieces]),
        np.concatenate([piece.timestamps_ms for piece in pieces]),
        np.concatenate([piece.timestamp_types for piece in pieces]),
        list(chain.from_iterable(piece.keys for piece in pieces)),
        list(chain.from_iterable(piece.values for piece in pieces)),
        list(chain.from_iterable(piece.headers for piece in pieces)),
    )


def due_times_ms(timestamps_ms: NDArray[np.int64], due_before_ms: int) -> NDArray[np.int64]:
    """When each record of a partition is due in a replay: the running maximum of timestamps, since records of a
    partition never overtake each other. `due_before_ms` is the due time of the record before the first."""
    return np.asarray(np.maximum(np.maximum.accumulate(timestamps_ms), due_before_ms), dtype=np.int64)


def to_table(columns: RecordColumns) -> Any:
    """pyarrow.Table of RECORD_SCHEMA.

    Raises:
        pyarrow.ArrowInvalid: the columns differ in length.
    """
    rows = len(columns.offsets)
    arrays = [
        pa.array(np.full(rows, columns.partition, dtype=np.int32)),
        pa.array(columns.offsets),
        pa.array(columns.timestamps_ms),
        pa.array(columns.timestamp_types),
        pa.array(columns.keys, type=pa.binary()),
        pa.array(columns.values, type=pa.binary()),
        _header_array(columns.headers),
    ]
    return pa.Table.from_arrays(arrays, schema=RECORD_SCHEMA)


def _header_array(headers: list[Headers | None]) -> Any:
    kind = RECORD_SCHEMA.field("headers").type
    if not any(one is not None for one in headers):
        return pa.nulls(len(headers), kind)
    return pa.array(headers, type=kind)


def from_table(topic: str, table: Any) -> RecordColumns:
    """The columns of a table of RECORD_SCHEMA whose rows, at least one, are all of one partition."""
    table = table.combine_chunks()
    return RecordColumns(
        topic,
        table["partition"][0].as_py(),
        _numbers(table["offset"]),
        _numbers(table["timestamp_ms"]),
        _numbers(table["timestamp_type"]),
        table["key"].to_pylist(),
        table["value"].to_pylist(),
        _header_lists(table["headers"].combine_chunks()),
    )


def _numbers(column: Any) -> NDArray[Any]:
    # from_dlpack and not to_numpy: it needs no numpy inside pyarrow, whose newer versions refuse numpy 1.
    return np.array(np.from_dlpack(column.combine_chunks()))


def _header_lists(array: Any) -> list[Headers | None]:
    if array.null_count == len(array):
        return [None] * len(array)
    names, values = array.values.field(0).to_pylist(), array.values.field(1).to_pylist()
    pairs = list(zip(names, values, strict=True))
    ends = array.offsets.to_pylist()
    valid = array.is_valid().to_pylist()
    return [pairs[a:b] if is_valid else None for (a, b), is_valid in zip(pairwise(ends), valid, strict=True)]
