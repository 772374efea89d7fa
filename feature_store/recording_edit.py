"""Recordings made from recordings: a part of one, and several put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from feature_store.recording_columns import due_times_ms, joined
from feature_store.recording_files import (
    Cut,
    Manifest,
    RecordColumns,
    Recording,
    RecordingError,
    RecordingWriter,
    TopicEntry,
)

_SHOP_WIDE = "calendar_global"  # its keys name lists, not products


def cut(recording: Recording, output: Path, wanted: Cut) -> int:
    """Write the part that `wanted` names to a new recording, and return how many records that are.

    Records keep their offsets. Those of a time are the ones due in it, as a replay would send them. Those of a product
    have it as their key; the shop-wide calendar stays whole. Its snapshot is left out: it belongs to where the whole
    recording starts.

    Raises:
        RecordingError: a topic is not recorded, a file is damaged, or the output can't be written.
    """
    topics = recording.topics if wanted.topics is None else sorted(set(wanted.topics))
    for topic in topics:
        recording.partition_count(topic)
    keys = None if wanted.product_ids is None else {product_id.encode() for product_id in wanted.product_ids}
    old = recording.manifest
    manifest = Manifest(
        source=old.source,
        created_ms=old.created_ms,
        topics={topic: TopicEntry(recording.partition_count(topic)) for topic in topics},
        schema_versions={topic: name for topic, name in old.schema_versions.items() if topic in topics},
        redacted_fields=old.redacted_fields,
        cuts=[*old.cuts, wanted],
    )
    with new_recording(output, manifest) as writer:
        for topic in topics:
            whole = old.schema_versions.get(topic) == _SHOP_WIDE
            for columns in _of_time(recording.columns(topic), wanted):
                writer.append(columns if keys is None or whole else _of_keys(columns, keys))
        # What could not be read when it was recorded still could not; the writer notes none where records were cut out.
        for topic in topics:
            writer.manifest.topics[topic].gaps = list(old.topics[topic].gaps)
        writer.save()
        return writer.rows


def new_recording(output: Path, manifest: Manifest) -> RecordingWriter:
    """A writer of a recording that must not be there yet. Raises RecordingError when something is."""
    if Path(output).exists() and any(Path(output).iterdir()):
        raise RecordingError(f"{output} is not empty: give a new folder for the new recording")
    return RecordingWriter(output, manifest)


def _of_time(pieces: Iterator[RecordColumns], wanted: Cut) -> Iterator[RecordColumns]:
    due_before_ms: dict[int, int] = {}
    for columns in pieces:
        due_ms = due_times_ms(columns.timestamps_ms, due_before_ms.get(columns.partition, -(2**63)))
        due_before_ms[columns.partition] = int(due_ms[-1])
        first = 0 if wanted.from_ms is None else int(np.searchsorted(due_ms, wanted.from_ms))
        stop = len(due_ms) if wanted.to_ms is None else int(np.searchsorted(due_ms, wanted.to_ms))
        yield columns.part(first, max(first, stop))


def _of_keys(columns: RecordColumns, keys: set[bytes]) -> RecordColumns:
    return columns.take([row for row, key in enumerate(columns.keys) if key in keys])


def merge(recordings: Sequence[Recording], output: Path) -> int:
    """Put recordings of the same topics' partitions together in a new one, and return how many records it has.

    Records that stand in several are kept once. Offsets that none of them has are gaps of the new one, unless one of
    them was cut. It starts cold: snapshots of the parts are left out.

    Raises:
        RecordingError: partition counts, redacted fields or records of one offset differ, a file is damaged, or the
            output can't be written.
    """
    manifest = _together(recordings)
    with new_recording(output, manifest) as writer:
        for topic, entry in manifest.topics.items():
            holders = [recording for recording in recordings if topic in recording.manifest.topics]
            for p in range(entry.partition_count):
                for columns in _merged([recording.partition_columns(topic, p) for recording in holders]):
                    writer.append(columns)
        writer.roll()
        return writer.rows


def _together(recordings: Sequence[Recording]) -> Manifest:
    """The manifest to begin with."""
    manifests = [recording.manifest for recording in recordings]
    topics: dict[str, TopicEntry] = {}
    for recording in recordings:
        if recording.manifest.redacted_fields != manifests[0].redacted_fields:
            raise RecordingError(
                f"{recording.path} and {recordings[0].path} had different fields redacted: records of both can't be "
                "told apart. Record one of them anew with the other's --redact"
            )
        for topic, entry in recording.manifest.topics.items():
            known = topics.setdefault(topic, TopicEntry(entry.partition_count))
            if known.partition_count != entry.partition_count:
                raise RecordingError(
                    f"{recording.path} has {entry.partition_count} partitions of {topic}, another recording "
                    f"{known.partition_count}: only recordings with the same number can be put together"
                )
            for p, offset in entry.start_offsets.items():
                known.start_offsets[p] = min(offset, known.start_offsets.get(p, offset))
    for recording in recordings:  # a partition of which one does not tell its start may begin before all that are told
        for topic, entry in recording.manifest.topics.items():
            for p in set(topics[topic].start_offsets) - set(entry.start_offsets):
                del topics[topic].start_offsets[p]
    return Manifest(
        source=" + ".join(sorted({manifest.source for manifest in manifests})),
        created_ms=min(manifest.created_ms for manifest in manifests),
        topics=dict(sorted(topics.items())),
        schema_versions={topic: name for manifest in manifests for topic, name in manifest.schema_versions.items()},
        redacted_fields=manifests[0].redacted_fields,
        cuts=[one for manifest in manifests for one in manifest.cuts],
    )


@dataclass
class _Head:
    """The next records of one recording's partition."""

    rest: Iterator[RecordColumns]
    columns: RecordColumns | None = None

    def fill(self) -> bool:
        """Whether there are any."""
        if self.columns is None or not len(self.columns.offsets):
            self.columns = next(self.rest, None)
        return self.columns is not None


def _merged(streams: Sequence[Iterator[RecordColumns]]) -> Iterator[RecordColumns]:
    """One partition's records of several recordings, each once, in offset order."""
    heads = [_Head(stream) for stream in streams]
    while heads := [head for head in heads if head.fill()]:
        filled = [head.columns for head in heads if head.columns is not None]
        stop = min(int(columns.offsets[-1]) for columns in filled) + 1
        pieces = []
        for head, columns in zip(heads, filled, strict=True):
            row = int(np.searchsorted(columns.offsets, stop))
            pieces.append(columns.part(0, row))
            head.columns = columns.part(row, len(columns.offsets))
        yield _once(joined(pieces)) if len(pieces) > 1 else pieces[0]


def _once(columns: RecordColumns) -> RecordColumns:
    """In offset order, of each offset one record."""
    order = np.argsort(columns.offsets, kind="stable")
    columns = columns.take(order.tolist())
    again: NDArray[np.int64] = np.flatnonzero(np.diff(columns.offsets) == 0) + 1
    for row in again.tolist():
        if _record(columns, row) != _record(columns, row - 1):
            raise RecordingError(
                f"{columns.topic} partition {columns.partition}: the recordings hold different records at offset "
                f"{columns.offsets[row]}, so they are of different topics or of one that was created anew"
            )
    keep = np.ones(len(columns.offsets), dtype=np.bool_)
    keep[again] = False
    return columns.take(np.flatnonzero(keep).tolist())


def _record(columns: RecordColumns, row: int) -> tuple[object, ...]:
    numbers = (int(columns.timestamps_ms[row]), int(columns.timestamp_types[row]))
    return (*numbers, columns.keys[row], columns.values[row], columns.headers[row])
