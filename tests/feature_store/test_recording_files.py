"""What is written to a recording is what is read from it, in the order of a replay, whenever the writer is killed."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import recording_merge, recording_writer
from feature_store.recording_files import (
    Cut,
    Gap,
    RecordColumns,
    Recording,
    RecordingWriter,
    TopicEntry,
)
from tests.feature_store.recordings import COUNTS, Row, begun, columns_of, merged_rows, small_recording, stored


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows fill row groups and stretches, so that there are many of them."""
    monkeypatch.setattr(recording_writer, "ROW_GROUP_ROWS", 3)
    monkeypatch.setattr(recording_merge, "_ROWS_AT_ONCE", 4)


def naive_merge(rows: list[Row]) -> list[tuple[int, Row]]:
    """Record by record, by the words of the definition."""
    due = []
    for row in rows:
        before = [r.timestamp_ms for r in rows if r[:2] == row[:2] and r.offset <= row.offset]
        due.append((max(before), row))
    return sorted(due, key=lambda pair: (pair[0], *pair[1][:3]))


_bytes = st.none() | st.binary(max_size=6)
_headers = st.none() | st.lists(st.tuples(st.text(max_size=3), _bytes), max_size=3)


@st.composite
def batches(draw: st.DrawFn) -> list[list[Row]]:
    """Batches of records, each of one partition, offsets ascending with holes, timestamps in some disorder."""
    ends = {(topic, p): draw(st.integers(0, 50)) for topic, count in COUNTS.items() for p in range(count)}
    out = []
    for topic, p in draw(st.lists(st.sampled_from(sorted(ends)), max_size=12)):
        rows = []
        for step in draw(st.lists(st.sampled_from([0, 0, 0, 2]), min_size=1, max_size=8)):
            offset = ends[topic, p] + step
            ends[topic, p] = offset + 1
            kind, time_ms = draw(st.sampled_from([(1, 5), (1, 6), (2, 7), (1, 9), (1, 40), (0, -1)]))
            rows.append(Row(topic, p, offset, time_ms, kind, draw(_bytes), draw(_bytes), draw(_headers)))
        out.append(rows)
    return out


def fill(writer: RecordingWriter, some: list[list[Row]], roll_after: int = 0) -> None:
    for number, rows in enumerate(some, 1):
        writer.append(columns_of(rows))
        if roll_after and number % roll_after == 0:
            writer.roll()


def in_order(some: list[list[Row]]) -> list[Row]:
    return sorted(itertools.chain.from_iterable(some), key=lambda row: row[:3])


@given(some=batches(), roll_after=st.integers(0, 3), limit=st.sampled_from([2, 7, 1000]))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_and_merged_in_order(some: list[list[Row]], roll_after: int, limit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        with RecordingWriter(path, begun(), roll_rows=limit) as writer:
            fill(writer, some, roll_after)
        rows = in_order(some)
        assert stored(path) == rows
        recording = Recording.open(path)
        expected = naive_merge(rows)
        assert merged_rows(recording.merged()) == expected
        assert merged_rows(recording.merged(["clicks"])) == [pair for pair in expected if pair[1].topic == "clicks"]
        assert merged_rows(recording.merged(from_ms=6, to_ms=9)) == [pair for pair in expected if 6 <= pair[0] < 9]
        holes = [
            Gap(a.partition, a.offset + 1, b.offset)
            for a, b in itertools.pairwise(rows)
            if a[:2] == b[:2] and b.offset > a.offset + 1
        ]
        gaps = [gap for topic in sorted(COUNTS) for gap in recording.manifest.topics[topic].gaps]
        assert sorted(gaps, key=repr) == sorted(holes, key=repr)


class _KilledError(Exception):
    pass


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the n-th call that reaches the disk end in a kill: before it is done, or right after it."""
    left = [0]

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise _KilledError
            result = call(*arguments)
            left[0] -= 1
            if left[0] == 0:
                raise _KilledError
            return result

        return step

    monkeypatch.setattr(os, "fsync", guarded(os.fsync))
    monkeypatch.setattr(Path, "rename", guarded(Path.rename))

    def arm(steps: int) -> None:
        left[0] = steps

    return arm


def test_a_kill_at_any_moment_loses_and_doubles_nothing(tmp_path: Path, kill_at: Callable[[int], None]) -> None:
    rows = [
        Row(topic, p, offset, 100 + offset, 1, b"k", b"%d" % offset, None)
        for offset in range(3)
        for topic, count in COUNTS.items()
        for p in range(count)
    ]
    for steps in itertools.count(1):
        path = tmp_path / str(steps)
        kill_at(steps)
        kills = 0
        while True:
            try:
                with RecordingWriter(path, begun(), roll_rows=5) as writer:
                    for row in rows:
                        if row.offset >= (writer.next_offset(row.topic, row.partition) or 0):
                            writer.append(columns_of([row]))
                break
            except _KilledError:
                kills += 1
        assert stored(path) == sorted(rows, key=lambda row: row[:3])
        named = {file.path for topic in COUNTS for file in Recording.open(path).files(topic)}
        assert {str(file.relative_to(path)) for file in path.glob("*/*")} == named
        if not kills:
            break
    assert steps > 20  # each roll writes a file a topic and the manifest, in several steps each


def test_memory_holds_about_a_row_group_of_each_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions recorded one after the other, so that every file but one is far from the time being merged."""
    held: dict[int, int] = {}

    def noting(one: Any, columns: RecordColumns, due_ms: Any, hold: Any = recording_merge._hold) -> None:
        hold(one, columns, due_ms)
        held[id(one)] = len(one.due_ms) - one.row

    monkeypatch.setattr(recording_merge, "_hold", noting)
    with RecordingWriter(tmp_path, begun(), roll_rows=50) as writer:
        for p in range(3):
            writer.append(columns_of([Row("clicks", p, n, n // 7, 1, None, None, None) for n in range(200)]))
    assert len(merged_rows(Recording.open(tmp_path).merged())) == 600
    assert max(held.values()) <= 3 + recording_merge._ROWS_AT_ONCE


def test_offsets_missing_at_the_start_are_a_gap(tmp_path: Path) -> None:
    manifest = begun(topics={"orders": TopicEntry(2, start_offsets={0: 5, 1: 0})})
    with RecordingWriter(tmp_path, manifest) as writer:
        assert writer.next_offset("orders", 0) == 5
        writer.append(columns_of([Row("orders", 0, 9, 1, 1, None, None, None)]))
    recording = Recording.open(tmp_path)
    assert recording.manifest.topics["orders"].gaps == [Gap(0, 5, 9)]
    assert recording.verify() == []
    with RecordingWriter(tmp_path, manifest) as writer:
        assert [writer.next_offset("orders", p) for p in (0, 1)] == [10, 0]


def test_a_cut_has_no_gaps(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path, begun(cuts=[Cut(product_ids=["a"])])) as writer:
        writer.append(columns_of([Row("orders", 0, n, n, 1, None, None, None) for n in (3, 8)]))
    recording = Recording.open(tmp_path)
    assert recording.manifest.topics["orders"].gaps == []
    assert recording.verify() == []


def test_files_are_plain_parquet(tmp_path: Path) -> None:
    small_recording(tmp_path)
    table = pq.read_table(tmp_path / "orders" / "000001.parquet")
    assert [f"{field.name} {field.type}" for field in table.schema] == [
        "partition int32",
        "offset int64",
        "timestamp_ms int64",
        "timestamp_type int8",
        "key binary",
        "value binary",
        "headers list<element: struct<key: string not null, value: binary>>",
    ]
    metadata = pq.ParquetFile(tmp_path / "orders" / "000001.parquet").metadata
    assert {metadata.row_group(0).column(n).compression for n in range(metadata.num_columns)} == {"ZSTD"}
