"""The order in which a recording is replayed, as a streaming merge: memory holds about one row group a partition.

Within a topic's partition records keep the order of their offsets and never overtake: a record is due at the running
maximum of its partition's timestamps. Across partitions they go by (due time, topic, partition, offset).

A partition that has more to read can still bring records due at its last one's time or later. The least (due time,
topic, partition) over such partitions is the horizon: all that is in memory up to it can go out, and then nothing of
the horizon's own partition is left, so its next rows can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.recording_columns import Headers, RecordColumns, due_times_ms, joined

_ROWS_AT_ONCE = 16_384  # read before anything goes out, so that small row groups make no tiny stretches
_LEAST_MS = -(2**63)


class Merged(NamedTuple):
    """A stretch of a recording in replay order; columns have one entry a record.

    `topics` are all topics of the merge in the order of their names, `topic` int16 indexes them. `due_ms` never
    decreases, also from one stretch to the next.
    """

    topics: tuple[str, ...]
    topic: NDArray[np.int16]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    due_ms: NDArray[np.int64]
    timestamps_ms: NDArray[np.int64]
    timestamp_types: NDArray[np.int8]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers | None]

    def part(self, first: int, stop: int) -> Merged:
        """Records `first` up to, not including, `stop`."""
        return Merged._make([self.topics, *(column[first:stop] for column in self[1:])])


class Part(NamedTuple):
    """A row group, before it is read. `max_timestamp_ms` is its records' greatest timestamp."""

    max_timestamp_ms: int
    read: Callable[[], RecordColumns]


@dataclass
class _Partition:
    """What is read of a partition and not gone out yet, from `row` on, and what is left to read."""

    topic: int
    partition: int
    parts: Iterator[Part]
    due_before_ms: int = _LEAST_MS  # of the last record read or skipped
    columns: RecordColumns | None = None
    due_ms: NDArray[np.int64] | None = None
    row: int = 0
    is_read: bool = False

    @property
    def place(self) -> tuple[int, int, int]:
        """Before this nothing unread of this partition can come."""
        return self.due_before_ms, self.topic, self.partition


def merge(
    topics: Sequence[str], partitions: Sequence[tuple[str, int, Iterator[Part]]], from_ms: int | None, to_ms: int | None
) -> Iterator[Merged]:
    """Stretches of the records due from `from_ms` on, before `to_ms`; None = unbounded. `partitions` gives each
    partition's parts in offset order; `topics` are in the order of their names."""
    number = {topic: n for n, topic in enumerate(topics)}
    open_ = [_Partition(number[topic], partition, parts) for topic, partition, parts in partitions]
    open_.sort(key=lambda one: (one.topic, one.partition))
    since, until = _LEAST_MS if from_ms is None else from_ms, None if to_ms is None else to_ms
    while open_:
        rows = 0
        while rows < _ROWS_AT_ONCE and (unread := [one for one in open_ if not one.is_read]):
            rows += _read_on(min(unread, key=lambda one: one.place), since, until)
        unread = [one for one in open_ if not one.is_read]
        horizon = min(one.place for one in unread) if unread else None
        stretch = _take(tuple(topics), open_, horizon)
        if stretch is not None:
            yield stretch
        open_ = [one for one in open_ if not one.is_read or one.columns is not None]


def _read_on(one: _Partition, from_ms: int, to_ms: int | None) -> int:
    """Read the next row group of a partition that has rows to send; returns how many."""
    for part in one.parts:
        if max(one.due_before_ms, part.max_timestamp_ms) < from_ms:
            one.due_before_ms = max(one.due_before_ms, part.max_timestamp_ms)
            continue
        columns = part.read()
        due_ms = due_times_ms(columns.timestamps_ms, one.due_before_ms)
        first = int(np.searchsorted(due_ms, from_ms))
        stop = len(due_ms) if to_ms is None else int(np.searchsorted(due_ms, to_ms))
        one.is_read = stop < len(due_ms)
        one.due_before_ms = int(due_ms[-1])
        if first < stop:
            _hold(one, columns.part(first, stop), due_ms[first:stop])
        if first < stop or one.is_read:
            return stop - first
    one.is_read = True
    return 0


def _hold(one: _Partition, columns: RecordColumns, due_ms: NDArray[np.int64]) -> None:
    """Add rows to those not gone out yet."""
    if one.columns is None or one.due_ms is None:
        one.columns, one.due_ms, one.row = columns, due_ms, 0
        return
    held = one.columns.part(one.row, len(one.due_ms))
    one.due_ms, one.row = np.concatenate([one.due_ms[one.row :], due_ms]), 0
    one.columns = joined([held, columns])


def _take(
    topics: tuple[str, ...], partitions: Sequence[_Partition], horizon: tuple[int, int, int] | None
) -> Merged | None:
    """What is in memory up to the horizon (None = all), in order; None when that is nothing."""
    pieces: list[RecordColumns] = []
    dues: list[NDArray[np.int64]] = []
    numbers: list[int] = []
    for one in partitions:
        if one.columns is None or one.due_ms is None:
            continue
        stop = len(one.due_ms)
        if horizon is not None:
            side = "right" if (one.topic, one.partition) <= horizon[1:] else "left"
            stop = int(np.searchsorted(one.due_ms, horizon[0], side=side))  # type: ignore[call-overload]
        if stop > one.row:
            pieces.append(one.columns.part(one.row, stop))
            dues.append(one.due_ms[one.row : stop])
            numbers.append(one.topic)
            one.row = stop
        if one.row == len(one.due_ms):
            one.columns = one.due_ms = None
    return _in_order(topics, pieces, dues, numbers) if pieces else None


def _in_order(
    topics: tuple[str, ...], pieces: Sequence[RecordColumns], dues: Sequence[NDArray[np.int64]], numbers: Sequence[int]
) -> Merged:
    """One stretch of pieces that are in the order of (topic, partition), each in the order of its offsets."""
    due_ms = np.concatenate(dues)
    order = np.argsort(due_ms, kind="stable")
    rows = order.tolist()
    counts = [len(due) for due in dues]
    keys = list(chain.from_iterable(piece.keys for piece in pieces))
    values = list(chain.from_iterable(piece.values for piece in pieces))
    headers = list(chain.from_iterable(piece.headers for piece in pieces))
    return Merged(
        topics,
        np.repeat(np.array(numbers, dtype=np.int16), counts)[order],
        np.repeat(np.array([piece.partition for piece in pieces], dtype=np.int32), counts)[order],
        np.concatenate([piece.offsets for piece in pieces])[order],
        due_ms[order],
        np.concatenate([piece.timestamps_ms for piece in pieces])[order],
        np.concatenate([piece.timestamp_types for piece in pieces])[order],
        [keys[row] for row in rows],
        [values[row] for row in rows],
        [headers[row] for row in rows],
    )
