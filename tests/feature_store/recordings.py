"""Records as a test thinks of them, and small recordings made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from feature_store.recording_files import (
    Headers,
    Manifest,
    Merged,
    RecordColumns,
    Recording,
    RecordingWriter,
    TopicEntry,
)

COUNTS = {"clicks": 3, "orders": 2}


class Row(NamedTuple):
    """A record, as a test thinks of it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Headers | None


def begun(**changes: Any) -> Manifest:
    topics = {topic: TopicEntry(count) for topic, count in COUNTS.items()}
    return msgspec.structs.replace(Manifest("kafka:9092", 1_700_000_000_000, topics), **changes)


def columns_of(rows: list[Row]) -> RecordColumns:
    return RecordColumns(
        rows[0].topic,
        rows[0].partition,
        np.array([row.offset for row in rows], dtype=np.int64),
        np.array([row.timestamp_ms for row in rows], dtype=np.int64),
        np.array([row.timestamp_type for row in rows], dtype=np.int8),
        [row.key for row in rows],
        [row.value for row in rows],
        [row.headers for row in rows],
    )


def small_recording(path: Path) -> Recording:
    manifest = begun()
    manifest.topics["orders"].start_offsets[1] = 0
    with RecordingWriter(path, manifest) as writer:
        for n in (0, 10):
            writer.append(columns_of([Row("orders", 1, i, i, 1, b"k", b"v", None) for i in range(n, n + 10)]))
            writer.roll()
    return Recording.open(path)


def rows_of(columns: RecordColumns) -> list[Row]:
    numbers = (columns.offsets.tolist(), columns.timestamps_ms.tolist(), columns.timestamp_types.tolist())
    texts = (columns.keys, columns.values, columns.headers)
    return [Row(columns.topic, columns.partition, *row) for row in zip(*numbers, *texts, strict=True)]


def merged_rows(stretches: Iterator[Merged]) -> list[tuple[int, Row]]:
    """Due time and record."""
    out = []
    for s in stretches:
        numbers = (s.topic, s.partition, s.offset, s.timestamps_ms, s.timestamp_types)
        for due_ms, topic, *rest in zip(
            s.due_ms.tolist(), *(n.tolist() for n in numbers), s.keys, s.values, s.headers, strict=True
        ):
            out.append((due_ms, Row(s.topics[topic], *rest)))
    return out


def stored(path: Path) -> list[Row]:
    recording = Recording.open(path)
    assert recording.verify() == []
    return sorted(
        (row for topic in recording.topics for columns in recording.columns(topic) for row in rows_of(columns)),
        key=lambda row: row[:3],
    )
