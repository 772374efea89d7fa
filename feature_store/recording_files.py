"""A recording: topics saved to a folder, byte for byte. No Kafka here.

    manifest.json                   what belongs to the recording: see `recording_manifest`
    shop.orders.v1/000001.parquet   records of one topic (zstd), sorted by partition and offset: see RECORD_SCHEMA

A row group holds one partition only. A partition's records follow one another in offset order from file to file. A file
that the manifest does not name was left behind by a kill; the writer removes it when it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.recording_columns import RECORD_SCHEMA, Headers, RecordColumns, from_table
from feature_store.recording_manifest import (
    Cut,
    FileEntry,
    Gap,
    Manifest,
    PartitionRange,
    RecordingError,
    TopicEntry,
    load_manifest,
)
from feature_store.recording_merge import Merged, Part, merge
from feature_store.recording_writer import RecordingWriter, gaps_in, range_of, sha256_of

__all__ = [
    "RECORD_SCHEMA",
    "Cut",
    "FileEntry",
    "Gap",
    "Headers",
    "Manifest",
    "Merged",
    "PartitionRange",
    "RecordColumns",
    "Recording",
    "RecordingError",
    "RecordingWriter",
    "TopicEntry",
]

_PARTITION, _TIMESTAMP = RECORD_SCHEMA.get_field_index("partition"), RECORD_SCHEMA.get_field_index("timestamp_ms")
_OPEN_FILES = 64  # of a merge


class Recording:
    """A recording to read. Files are opened when their records are asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: Path | str) -> Recording:
        """Of a folder.

        Raises:
            RecordingError: it holds no recording, or one that this version can't read.
        """
        return cls(Path(path), load_manifest(Path(path)))

    @property
    def topics(self) -> list[str]:
        """Names, sorted."""
        return sorted(self.manifest.topics)

    def partition_count(self, topic: str) -> int:
        """How many partitions the topic had. Raises RecordingError when it is not recorded here."""
        return self._entry(topic).partition_count

    def files(self, topic: str) -> list[FileEntry]:
        """A topic's files, oldest first. Raises RecordingError when it is not recorded here."""
        return self._entry(topic).files

    def rows(self, topic: str) -> int:
        """How many records a topic has. Raises RecordingError when it is not recorded here."""
        return sum(file.rows for file in self.files(topic))

    def columns(self, topic: str) -> Iterator[RecordColumns]:
        """A topic's records, file by file, in each by partition and offset; a row group at once.

        Raises:
            RecordingError: the topic is not recorded here, or a file is damaged.
        """
        for file in self.files(topic):
            yield from self._file_columns(topic, file)

    def partition_columns(self, topic: str, partition: int) -> Iterator[RecordColumns]:
        """The records of one partition, in offset order; a row group at once. Raises as `columns` does."""
        paths = [file.path for file in self.files(topic) if partition in file.partitions]
        return (part.read() for part in self._parts(topic, partition, paths, lru_cache(maxsize=1)(self._parquet)))

    def merged(
        self,
        topics: Sequence[str] | None = None,
        *,
        partitions: Collection[int] | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
    ) -> Iterator[Merged]:
        """Stretches of the recording in replay order: by (due time, topic, partition, offset), where a record is due at
        the running maximum of its partition's timestamps. Memory stays bounded. Restricted to some topics, to some
        partitions, and to due times from `from_ms` on, before `to_ms`.

        Raises:
            RecordingError: a topic is not recorded here, or a file is damaged.
        """
        chosen = self.topics if topics is None else sorted(set(topics))
        parquet_of = lru_cache(maxsize=_OPEN_FILES)(self._parquet)
        chosen_parts = []
        for topic in chosen:
            files = self.files(topic)
            recorded = {p for file in files for p in file.partitions}
            for p in sorted(recorded if partitions is None else recorded & set(partitions)):
                paths = [file.path for file in files if p in file.partitions]
                chosen_parts.append((topic, p, self._parts(topic, p, paths, parquet_of)))
        return merge(chosen, chosen_parts, from_ms, to_ms)

    def verify(self) -> list[str]:
        """Read everything and say what is not as the manifest has it; empty = all is well."""
        findings = []
        for topic in self.topics:
            ends = dict(self._entry(topic).start_offsets)
            missing: list[Gap] = []
            for file in self.files(topic):
                try:
                    findings += self._file_findings(topic, file, ends, missing)
                except RecordingError as error:
                    findings.append(str(error))
            if not self.manifest.cuts:
                findings += _gap_findings(topic, missing, self._entry(topic).gaps)
        snapshot = self.manifest.snapshot
        if snapshot is not None and not (self.path / snapshot).is_dir():
            findings.append(f"{snapshot}: the snapshot that the recording starts from is missing")
        return findings

    def _file_findings(self, topic: str, file: FileEntry, ends: dict[int, int], missing: list[Gap]) -> list[str]:
        """What is wrong with a file. `ends`, by partition where records have to go on, is moved on; offsets at which
        there are none are added to `missing`."""
        path = self.path / file.path
        if not path.is_file():
            return [f"{file.path}: is missing"]
        if sha256_of(path) != file.sha256:
            return [f"{file.path}: its bytes have changed (sha256): restore it from a copy"]
        found: dict[int, PartitionRange] = {}
        for columns in self._file_columns(topic, file):
            p, offsets = columns.partition, columns.offsets
            expected = ends.get(p, int(offsets[0]))
            if offsets[0] < expected or (np.diff(offsets) <= 0).any() or p < max(found, default=0):
                return [f"{file.path}: its records are not in the order of partition and offset"]
            missing += gaps_in(p, offsets, expected)
            ends[p] = int(offsets[-1]) + 1
            found[p] = _joined(found.get(p), range_of(offsets, columns.timestamps_ms))
        if found != file.partitions or file.rows != sum(one.rows for one in found.values()):
            return [f"{file.path}: does not hold the partitions, offsets, times and rows that the manifest tells"]
        if max(found, default=0) >= self.partition_count(topic):
            return [f"{file.path}: holds partitions that the topic does not have"]
        return []

    def _entry(self, topic: str) -> TopicEntry:
        if topic not in self.manifest.topics:
            raise RecordingError(f"{self.path} has no topic {topic}: it has {', '.join(self.topics) or 'none'}")
        return self.manifest.topics[topic]

    def _parts(
        self, topic: str, partition: int, paths: Sequence[str], parquet_of: Callable[[str], Any]
    ) -> Iterator[Part]:
        """The row groups of one partition."""
        for path in paths:
            metadata = parquet_of(path).metadata
            for group in range(metadata.num_row_groups):
                own = metadata.row_group(group).column(_PARTITION).statistics
                if own.min == partition:
                    newest_ms = metadata.row_group(group).column(_TIMESTAMP).statistics.max
                    yield Part(newest_ms, partial(self._read_group, topic, path, parquet_of, group))

    def _file_columns(self, topic: str, file: FileEntry) -> Iterator[RecordColumns]:
        parquet = self._parquet(file.path)
        for group in range(parquet.metadata.num_row_groups):
            yield self._read_group(topic, file.path, lambda _: parquet, group)

    def _read_group(self, topic: str, path: str, parquet_of: Callable[[str], Any], group: int) -> RecordColumns:
        try:
            return from_table(topic, parquet_of(path).read_row_group(group, use_threads=False))
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(path, error) from error

    def _parquet(self, path: str) -> Any:
        """A file, opened, of which each row group is sure to hold one partition.

        Raises:
            RecordingError: it is missing or damaged.
        """
        try:
            parquet = pq.ParquetFile(self.path / path)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(path, error) from error
        if not parquet.schema_arrow.equals(RECORD_SCHEMA):
            raise self._damaged(path, "its columns are not a recording's")
        for group in range(parquet.metadata.num_row_groups):
            own = parquet.metadata.row_group(group).column(_PARTITION).statistics
            if own is None or not own.has_min_max or own.min != own.max:
                raise self._damaged(path, f"row group {group} does not hold one partition only")
        return parquet

    def _damaged(self, path: str, why: object) -> RecordingError:
        return RecordingError(f"{self.path / path} can't be read ({why}): restore it from a copy, or record anew")


def _joined(before: PartitionRange | None, after: PartitionRange) -> PartitionRange:
    if before is None:
        return after
    return PartitionRange(
        before.first_offset,
        after.next_offset,
        before.first_timestamp_ms,
        max(before.max_timestamp_ms, after.max_timestamp_ms),
        before.rows + after.rows,
    )


def _gap_findings(topic: str, missing: Sequence[Gap], told: Sequence[Gap]) -> list[str]:
    known = {(gap.partition, gap.from_offset, gap.to_offset) for gap in told}
    return [
        f"{topic} partition {gap.partition}: offsets {gap.from_offset} to {gap.to_offset - 1} are missing"
        for gap in missing
        if (gap.partition, gap.from_offset, gap.to_offset) not in known
    ]
