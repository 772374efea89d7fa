"""Records as a test thinks of them, and small recordings made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from feature_store.recording_files import Headers, Manifest, RecordColumns, Recording, RecordingWriter, TopicEntry

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
