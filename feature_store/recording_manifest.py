"""The manifest of a recording: which files belong to it, and what they hold. `manifest.json` in the recording's folder.

A file is a part of the recording only once the manifest names it. The manifest is replaced as a whole (written beside,
synced, renamed), so it is always either the old or the new one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
PARTIAL = ".partial"  # ends the name of a file that is still being written
_TOPIC_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z")  # Kafka's own rule, so a topic is a safe folder name
_FILE_NAME = re.compile(r"\d{6,}\.parquet\Z")


class RecordingError(Exception):
    """A folder is not the recording that was expected, or what stands in it is damaged; names the remedy."""


class PartitionRange(msgspec.Struct):
    """What a file holds of one partition. Offsets from `first_offset` up to, not including, `next_offset`;
    `first_timestamp_ms` is the first record's, `max_timestamp_ms` the greatest of all."""

    first_offset: int
    next_offset: int
    first_timestamp_ms: int
    max_timestamp_ms: int
    rows: int


class FileEntry(msgspec.Struct):
    """A file, by its path below the recording's folder."""

    path: str
    sha256: str
    rows: int
    partitions: dict[int, PartitionRange]


class Gap(msgspec.Struct):
    """Offsets from `from_offset` up to, not including, `to_offset` at which nothing could be read: deleted by retention
    or compaction before they were recorded, or a transaction's marker."""

    partition: int
    from_offset: int
    to_offset: int


class TopicEntry(msgspec.Struct):
    """A topic's files, in which a partition's records follow one another in offset order.

    Attributes:
        partition_count: partitions that the topic had.
        files: oldest first.
        gaps: where nothing could be read.
        start_offsets: by partition, where recording began; no entry = at its first record.
    """

    partition_count: int
    files: list[FileEntry] = []
    gaps: list[Gap] = []
    start_offsets: dict[int, int] = {}


class Cut(msgspec.Struct, omit_defaults=True):
    """What was left out on purpose, when this recording was cut from another: all that `from_ms` (inclusive), `to_ms`
    (exclusive), products and topics do not name. None = not restricted by it."""

    from_ms: int | None = None
    to_ms: int | None = None
    product_ids: list[str] | None = None
    topics: list[str] | None = None


class Manifest(msgspec.Struct):
    """See the module.

    Attributes:
        source: bootstrap servers or name of the table that the records come from.
        created_ms: when the recording was begun, milliseconds since the epoch.
        topics: by name.
        schema_versions: by topic the name of its messages' JSON schema; topics of foreign messages have none.
        redacted_fields: fields taken out of JSON values.
        cuts: one for each time that the recording was cut from a larger one: offsets missing in it are no gaps.
        snapshot: folder below the recording's with the features that it starts from; None = it starts cold.
    """

    source: str
    created_ms: int
    topics: dict[str, TopicEntry]
    schema_versions: dict[str, str] = {}
    redacted_fields: list[str] = []
    cuts: list[Cut] = []
    snapshot: str | None = None
    format_version: int = FORMAT_VERSION


class _AnyVersion(msgspec.Struct):
    format_version: int


def is_topic_name(name: str) -> bool:
    """Whether Kafka would allow a topic of this name."""
    return _TOPIC_NAME.match(name) is not None


def is_file_name(name: str) -> bool:
    """Whether a recording's writer names files so."""
    return _FILE_NAME.match(name) is not None


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a recording's folder.

    Raises:
        RecordingError: there is none, it is damaged, of a later format, or names files outside of the folder.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordingError(
            f"{folder} is not a recording: it has no {MANIFEST_NAME}. `shelfcast record` and `shelfcast recording "
            "import` make recordings"
        ) from error
    try:
        version = msgspec.json.decode(text, type=_AnyVersion).format_version
        if version > FORMAT_VERSION:
            raise RecordingError(
                f"{path} is of format {version}, this shelfcast reads up to {FORMAT_VERSION}: use the newer shelfcast"
            )
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as error:
        raise RecordingError(f"{path} is damaged ({error}): restore it from a copy, or record anew") from error
    _check_names(path, manifest)
    return manifest


def _check_names(path: Path, manifest: Manifest) -> None:
    for topic, entry in manifest.topics.items():
        named = [file.path.partition("/") for file in entry.files]
        if not is_topic_name(topic) or any(part[0] != topic or not is_file_name(part[2]) for part in named):
            raise RecordingError(
                f"{path} is damaged: {topic!r} or its files have names that no writer gives. Restore it from a copy"
            )


def positions_of(manifest: Manifest) -> dict[tuple[str, int], int]:
    """By topic and partition, from which offset on its records go on; those of which nothing is known are missing."""
    positions = {}
    for topic, entry in manifest.topics.items():
        positions.update({(topic, p): offset for p, offset in entry.start_offsets.items()})
        for file in entry.files:
            positions.update({(topic, p): one.next_offset for p, one in file.partitions.items()})
    return positions


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest; on the disk when this returns."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    partial = folder / (MANIFEST_NAME + PARTIAL)
    with partial.open("wb") as file:
        file.write(text + b"\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / MANIFEST_NAME)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Bring renames in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
