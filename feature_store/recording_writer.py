"""RecordingWriter: appends to a recording, so that a kill at any moment leaves a whole one to go on with."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_store.recording_columns import RECORD_SCHEMA, RecordColumns, to_table
from feature_store.recording_manifest import (
    MANIFEST_NAME,
    PARTIAL,
    FileEntry,
    Gap,
    Manifest,
    PartitionRange,
    RecordingError,
    is_file_name,
    is_topic_name,
    load_manifest,
    positions_of,
    save_manifest,
    sync_folder,
)

ROW_GROUP_ROWS = 16_384  # what a merge holds in memory of each partition
_ROLL_ROWS, _ROLL_BYTES = 500_000, 128 << 20  # bounds the memory of a writer
_HASHED_AT_ONCE = 1 << 20
_DICTIONARIES = ["partition", "timestamp_type", "key", "headers.list.element.key"]
_DELTAS = {"offset": "DELTA_BINARY_PACKED", "timestamp_ms": "DELTA_BINARY_PACKED"}


class RecordingWriter:
    """Writes a recording into a folder, a new one or one to go on with.

    `append` holds records in memory until `roll` makes files of them, which it does by itself after `roll_rows` records
    or `roll_bytes`. Each roll is atomic: a kill loses all of it or nothing. Where offsets are missing between records a
    gap is noted, unless the manifest says that the recording is a cut.
    """

    def __init__(
        self, path: Path, manifest: Manifest, *, roll_rows: int = _ROLL_ROWS, roll_bytes: int = _ROLL_BYTES
    ) -> None:
        """`manifest` describes the recording to begin: source, topics with partition counts and start offsets, without
        files. A recording that stands there already must have the same source, topics, counts, fields redacted and
        cuts; what else it says stays as it is.

        Raises:
            RecordingError: the folder holds something else, another recording, or is being written to by somebody.
        """
        self.path = Path(path)
        self._roll_rows, self._roll_bytes = roll_rows, roll_bytes
        self._pending: dict[str, dict[int, list[Any]]] = {}
        self._pending_gaps: dict[str, list[Gap]] = {}
        self._pending_rows = self._pending_bytes = 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        self._lock = _locked(self.path)
        try:
            self.manifest = self._begin(manifest)
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        self._next = positions_of(self.manifest)

    def next_offset(self, topic: str, partition: int) -> int | None:
        """From where a partition's records go on; None = from its first, wherever that is."""
        return self._next.get((topic, partition))

    @property
    def rows(self) -> int:
        """How many records there are, those that are not in a file yet included."""
        return self._pending_rows + sum(file.rows for entry in self.manifest.topics.values() for file in entry.files)

    def append(self, columns: RecordColumns) -> None:
        """Take up records of one partition. May block on the disk, when it rolls.

        Raises:
            RecordingError: they are not of this recording, do not follow those before in the order of offsets, or the
                disk does not take them.
        """
        topic, partition, offsets = columns.topic, columns.partition, columns.offsets
        if not len(offsets):
            return
        entry = self.manifest.topics.get(topic)
        if entry is None or not 0 <= partition < entry.partition_count:
            raise RecordingError(f"{self.path} does not record partition {partition} of {topic}: record it elsewhere")
        expected = self._next.get((topic, partition), int(offsets[0]))
        if offsets[0] < expected or (np.diff(offsets) <= 0).any():
            raise RecordingError(
                f"{topic} partition {partition}: records at offset {offsets[0]} and on do not follow those before "
                f"{expected}; append each record once, in the order of offsets"
            )
        first = 0
        while first < len(offsets):
            stop = min(len(offsets), first + self._roll_rows - self._pending_rows)
            self._hold(columns.part(first, stop))
            first = stop

    def _hold(self, columns: RecordColumns) -> None:
        """Keep records until the next roll, which is now when there are enough."""
        topic, partition, offsets = columns.topic, columns.partition, columns.offsets
        table = to_table(columns)
        if not self.manifest.cuts:
            expected = self._next.get((topic, partition), int(offsets[0]))
            self._pending_gaps.setdefault(topic, []).extend(gaps_in(partition, offsets, expected))
        self._pending.setdefault(topic, {}).setdefault(partition, []).append(table)
        self._next[topic, partition] = int(offsets[-1]) + 1
        self._pending_rows += len(offsets)
        self._pending_bytes += table.nbytes
        if self._pending_rows >= self._roll_rows or self._pending_bytes >= self._roll_bytes:
            self.roll()

    def roll(self) -> None:
        """Make files of what is in memory, and the manifest name them: all on the disk when this returns.

        Raises:
            RecordingError: the disk does not take them.
        """
        if not self._pending:
            return
        try:
            written = {topic: self._write(topic, partitions) for topic, partitions in self._pending.items()}
            for topic, file in written.items():
                self.manifest.topics[topic].files.append(file)
                self.manifest.topics[topic].gaps.extend(self._pending_gaps.get(topic, []))
            save_manifest(self.path, self.manifest)
        except OSError as error:
            raise self._unwritable(error) from error
        self._pending, self._pending_gaps = {}, {}
        self._pending_rows = self._pending_bytes = 0

    def save(self) -> None:
        """Roll, and save what was changed in the manifest since."""
        self.roll()
        save_manifest(self.path, self.manifest)

    def close(self) -> None:
        """Roll, and let others write here."""
        try:
            self.roll()
        finally:
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            os.close(self._lock)

    def _unwritable(self, error: OSError) -> RecordingError:
        return RecordingError(
            f"{self.path} can't be written to ({error}): make room or mend its permissions, and run the same command "
            "again; what the manifest names is safe"
        )

    def _begin(self, manifest: Manifest) -> Manifest:
        if (self.path / MANIFEST_NAME).exists():
            found = load_manifest(self.path)
            self._check_same(found, manifest)
            self._remove_leftovers(found)
            return found
        if any(path.name != MANIFEST_NAME + PARTIAL for path in self.path.iterdir()):
            raise RecordingError(f"{self.path} is not empty and not a recording: give a new folder, or empty this one")
        for topic in manifest.topics:
            if not is_topic_name(topic):
                raise RecordingError(f"{topic!r} can't be the name of a topic")
        save_manifest(self.path, manifest)
        return load_manifest(self.path)  # a copy: the caller's stays as it is

    def _check_same(self, found: Manifest, wanted: Manifest) -> None:
        def shape(manifest: Manifest) -> dict[str, object]:
            counts = {topic: entry.partition_count for topic, entry in sorted(manifest.topics.items())}
            topics = ", ".join(f"{topic} ({count} partitions)" for topic, count in counts.items())
            fields = ", ".join(sorted(manifest.redacted_fields)) or "none"
            return {"source": manifest.source, "topics": topics, "redacted fields": fields, "cuts": manifest.cuts}

        have, want = shape(found), shape(wanted)
        for name in have:
            if have[name] != want[name]:
                raise RecordingError(
                    f"{self.path} is another recording: its {name} are {have[name]}, not {want[name]}. Give a new "
                    "folder, or ask for the same to go on with it"
                )

    def _remove_leftovers(self, manifest: Manifest) -> None:
        """Files that a killed writer did not come to name in the manifest."""
        for topic, entry in manifest.topics.items():
            named = {Path(file.path).name for file in entry.files}
            for path in (self.path / topic).glob("*"):
                if is_file_name(path.name.removesuffix(PARTIAL)) and path.name not in named:
                    path.unlink()

    def _write(self, topic: str, partitions: Mapping[int, list[Any]]) -> FileEntry:
        """A topic's next file, complete and synced under its own name."""
        folder = self.path / topic
        folder.mkdir(exist_ok=True)
        name = f"{len(self.manifest.topics[topic].files) + 1:06d}.parquet"
        partial = folder / (name + PARTIAL)
        ranges = {}
        with partial.open("wb") as file:
            with pq.ParquetWriter(
                file,
                RECORD_SCHEMA,
                compression="zstd",
                use_dictionary=_DICTIONARIES,
                column_encoding=_DELTAS,
                write_statistics=["partition", "offset", "timestamp_ms"],
            ) as parquet:
                for partition in sorted(partitions):
                    table = pa.concat_tables(partitions[partition]).combine_chunks()
                    parquet.write_table(table, row_group_size=ROW_GROUP_ROWS)
                    ranges[partition] = _range_of(table)
            file.flush()
            os.fsync(file.fileno())
        sha256 = sha256_of(partial)
        partial.rename(folder / name)
        sync_folder(folder)
        rows = sum(one.rows for one in ranges.values())
        return FileEntry(f"{topic}/{name}", sha256, rows, ranges)


def _locked(folder: Path) -> int:
    """A descriptor that keeps other writers out of the folder until it is closed, or this process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise RecordingError(f"{folder} is being written to by another process: wait for it, or stop it") from error
    return descriptor


def _range_of(table: Any) -> PartitionRange:
    offsets, timestamps = np.from_dlpack(table["offset"].chunk(0)), np.from_dlpack(table["timestamp_ms"].chunk(0))
    return range_of(offsets, timestamps)


def range_of(offsets: NDArray[np.int64], timestamps_ms: NDArray[np.int64]) -> PartitionRange:
    """What the manifest says of a partition's records, at least one, in the order of offsets."""
    return PartitionRange(
        first_offset=int(offsets[0]),
        next_offset=int(offsets[-1]) + 1,
        first_timestamp_ms=int(timestamps_ms[0]),
        max_timestamp_ms=int(timestamps_ms.max()),
        rows=len(offsets),
    )


def gaps_in(partition: int, offsets: NDArray[np.int64], expected: int) -> list[Gap]:
    """Where offsets are missing, from `expected` on."""
    before = np.concatenate([[expected], offsets[:-1] + 1])
    return [Gap(partition, int(before[row]), int(offsets[row])) for row in np.flatnonzero(offsets > before).tolist()]


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED_AT_ONCE):
            digest.update(chunk)
    return digest.hexdigest()
