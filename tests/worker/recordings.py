"""Small recordings for tests, written as they would be recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from feature_store.recording_files import Manifest, RecordColumns, RecordingWriter, TopicEntry
from worker.transport import murmur2_partition


class Recorded(NamedTuple):
    """One record; None as the value is a tombstone, bytes are written as they are."""

    topic: str
    key: str
    value: Mapping[str, Any] | bytes | None
    timestamp_ms: int


def write_recording(path: Path, records: Sequence[Recorded], partitions: Mapping[str, int]) -> None:
    """Records in the order in which they were produced, on topics with that many partitions."""
    manifest = Manifest(
        source="test", created_ms=0, topics={topic: TopicEntry(count) for topic, count in partitions.items()}
    )
    placed: dict[tuple[str, int], list[Recorded]] = {}
    for record in records:
        partition = murmur2_partition(record.key, partitions[record.topic])
        placed.setdefault((record.topic, partition), []).append(record)
    with RecordingWriter(path, manifest) as writer:
        for (topic, partition), own in sorted(placed.items()):
            writer.append(
                RecordColumns(
                    topic,
                    partition,
                    np.arange(len(own), dtype=np.int64),
                    np.array([record.timestamp_ms for record in own], dtype=np.int64),
                    np.ones(len(own), dtype=np.int8),
                    [record.key.encode() for record in own],
                    [_raw(record.value) for record in own],
                    [None] * len(own),
                )
            )


def _raw(value: Mapping[str, Any] | bytes | None) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else msgspec.json.encode(value)
