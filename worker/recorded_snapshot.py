"""The snapshot that a recording starts from: how it comes there, and how replays and backtests begin with it.

It stands in the recording's own folder under a name that no topic can have.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from feature_store.recording_files import Merged, Recording
from feature_store.snapshot_files import CalendarRecord, Snapshot
from feature_store.snapshots import load_snapshot
from feature_store.store import FeatureStore
from worker.settings import Settings
from worker.snapshot import restore_rules

FOLDER = "+snapshot"
_PARTIAL = FOLDER + ".partial"
_CREATE_TIME = 1


def keep_copy(snapshot: Path, recording: Path) -> None:
    """Put a copy of a snapshot into a recording's folder, whole or not at all. One that stands there stays."""
    if (recording / FOLDER).exists():
        return
    shutil.rmtree(recording / _PARTIAL, ignore_errors=True)
    shutil.copytree(snapshot, recording / _PARTIAL)
    (recording / _PARTIAL).rename(recording / FOLDER)


def positions(snapshot: Path) -> dict[tuple[str, int], int]:
    """By topic and partition the offset from which on a recording goes on where the snapshot ends.

    Raises:
        SnapshotError: the folder is no whole snapshot.
    """
    taken = Snapshot.open(snapshot).manifest.partitions
    return {(topic, p): offset for p, entry in taken.items() for topic, offset in entry.fields.positions.items()}


def folder_of(recording: Recording) -> Path | None:
    """The snapshot that a recording starts from; None = it starts cold."""
    name = recording.manifest.snapshot
    return None if name is None else recording.path / name


async def restore_recorded(recording: Recording, settings: Settings) -> None:
    """Bring the recording's snapshot, if it has one, into the settings' namespace, without positions: those belong to
    the topics that were recorded, and a replay's begin at 0.

    Raises:
        SnapshotError: it is missing or damaged, or means something else under these settings.
        StoreRefusedError: the namespace holds features.
    """
    folder = folder_of(recording)
    if folder is None:
        return
    store = FeatureStore(**settings.store_options())
    try:
        await load_snapshot(store, folder, restore_rules(settings, keep_positions=False))
    finally:
        await store.close()


def calendar_of(recording: Recording) -> list[CalendarRecord]:
    """What the whole shop's calendar said when the snapshot was taken, if the recording starts from one."""
    folder = folder_of(recording)
    return [] if folder is None else Snapshot.open(folder).calendar()


def with_calendar(stretches: Iterable[Merged], recording: Recording, topic: str) -> Iterator[Merged]:
    """The recording's stretches, with the calendar of its snapshot before them as records of `topic`, due with the
    first of the others. A recording without that topic, or without records, stays as it is."""
    stretches = iter(stretches)
    first, known = next(stretches, None), calendar_of(recording)
    if first is not None and known and topic in first.topics and len(first.keys):
        due_ms, count = int(first.due_ms[0]), len(known)
        first = Merged(
            first.topics,
            np.r_[np.full(count, first.topics.index(topic), dtype=np.int16), first.topic],
            np.r_[np.zeros(count, dtype=np.int32), first.partition],
            np.r_[np.arange(-count, 0), first.offset],
            np.r_[np.full(count, due_ms), first.due_ms],
            np.r_[np.full(count, due_ms), first.timestamps_ms],
            np.r_[np.full(count, _CREATE_TIME, dtype=np.int8), first.timestamp_types],
            [*(record.key for record in known), *first.keys],
            [*(record.value for record in known), *first.values],
            [*(None for _ in known), *first.headers],
        )
    return chain(() if first is None else (first,), stretches)
