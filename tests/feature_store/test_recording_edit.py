"""Parts of recordings, and recordings put together, hold just the records they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_store import recording_edit
from feature_store.recording_files import Cut, Gap, Manifest, Recording, RecordingError, RecordingWriter, TopicEntry
from tests.feature_store.recordings import Row, columns_of, merged_rows, stored

PRODUCTS = (b"mug", b"plate", b"b\xc3\xb8rd")


def order(partition: int, offset: int, time_ms: int, value: bytes = b"v") -> Row:
    return Row(
        "orders", partition, offset, time_ms, 1, PRODUCTS[offset % 3], value, [("h", None)] if offset % 2 else None
    )


def record(path: Path, rows: list[Row], **changes: object) -> Recording:
    topics = {"orders": TopicEntry(2), "wide": TopicEntry(1)}
    manifest = Manifest("kafka:9092", 7, topics, schema_versions={"orders": "orders", "wide": "calendar_global"})
    for name, value in changes.items():
        setattr(manifest, name, value)
    with RecordingWriter(path, manifest, roll_rows=5) as writer:
        for row in rows:
            writer.append(columns_of([row]))
    return Recording.open(path)


# Offsets 3 and 4 of partition 0 could not be read. Offset 6 happened at 5 and is due at 40, after offset 5.
ROWS = [
    *(order(0, offset, time_ms) for offset, time_ms in ((0, 10), (1, 20), (2, 20), (5, 40), (6, 5), (7, 50))),
    *(order(1, offset, 10 * offset) for offset in range(8)),
    Row("wide", 0, 0, 35, 1, b"holidays", b"w", None),
]


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return record(tmp_path / "whole", ROWS)


def test_a_cut_of_a_time_is_what_is_due_in_it(recording: Recording, tmp_path: Path) -> None:
    whole = merged_rows(recording.merged())
    assert recording_edit.cut(recording, tmp_path / "cut", Cut(from_ms=20, to_ms=50)) == 8
    part = Recording.open(tmp_path / "cut")
    assert part.verify() == []
    expected = [pair for pair in whole if 20 <= pair[0] < 50]
    assert [pair[1][:3] for pair in expected if pair[1].topic == "orders" and pair[1].partition == 0] == [
        ("orders", 0, offset) for offset in (1, 2, 5, 6)
    ]
    assert merged_rows(part.merged()) == expected
    assert part.manifest.cuts == [Cut(from_ms=20, to_ms=50)]
    assert part.manifest.topics["orders"].gaps == [Gap(0, 3, 5)]


def test_a_cut_of_products_keeps_the_shop_wide_calendar(recording: Recording, tmp_path: Path) -> None:
    recording_edit.cut(recording, tmp_path / "cut", Cut(product_ids=["børd", "mug"]))
    kept = stored(tmp_path / "cut")
    assert {row.key for row in kept} == {b"mug", b"b\xc3\xb8rd", b"holidays"}
    assert kept == sorted((row for row in ROWS if row.key != b"plate"), key=lambda row: row[:3])
    assert Recording.open(tmp_path / "cut").manifest.topics["orders"].gaps == [Gap(0, 3, 5)]


def test_a_cut_of_a_cut_of_topics(recording: Recording, tmp_path: Path) -> None:
    recording_edit.cut(recording, tmp_path / "orders", Cut(topics=["orders"]))
    recording_edit.cut(Recording.open(tmp_path / "orders"), tmp_path / "last", Cut(from_ms=60))
    last = Recording.open(tmp_path / "last")
    assert last.topics == ["orders"]
    assert last.manifest.cuts == [Cut(topics=["orders"]), Cut(from_ms=60)]
    assert [row[:3] for row in stored(tmp_path / "last")] == [("orders", 1, 6), ("orders", 1, 7)]
    with pytest.raises(RecordingError, match="no topic clicks"):
        recording_edit.cut(recording, tmp_path / "x", Cut(topics=["clicks"]))
    assert not (tmp_path / "x").exists()


def test_what_is_cut_out_of_time_is_merged_again(recording: Recording, tmp_path: Path) -> None:
    """In three parts that overlap."""
    for name, part in (("a", Cut(to_ms=40)), ("b", Cut(from_ms=15, to_ms=60)), ("c", Cut(from_ms=40))):
        recording_edit.cut(recording, tmp_path / name, part)
    parts = [Recording.open(tmp_path / name) for name in "cab"]
    assert recording_edit.merge(parts, tmp_path / "merged") == len(ROWS)
    assert stored(tmp_path / "merged") == sorted(ROWS, key=lambda row: row[:3])


def test_offsets_that_no_recording_has_are_gaps(tmp_path: Path) -> None:
    first = record(tmp_path / "a", [order(0, offset, offset) for offset in (0, 1, 2, 5, 6)])
    second = record(tmp_path / "b", [order(0, offset, offset) for offset in (3, 5, 6, 9)])
    assert recording_edit.merge([first, second], tmp_path / "merged") == 7
    merged = Recording.open(tmp_path / "merged")
    assert merged.verify() == []
    assert merged.manifest.topics["orders"].gaps == [Gap(0, 4, 5), Gap(0, 7, 9)]


@pytest.mark.parametrize(
    ("other", "changes", "message"),
    [
        ([order(0, 1, 20, b"another")], {}, "different records at offset 1"),
        ([order(0, 1, 21)], {}, "different records at offset 1"),
        ([order(0, 1, 20)], {"topics": {"orders": TopicEntry(3)}}, "has 3 partitions of orders, another recording 2"),
        ([order(0, 1, 20)], {"redacted_fields": ["order_id"]}, "different fields redacted"),
    ],
)
def test_recordings_that_do_not_fit_are_not_merged(
    recording: Recording, tmp_path: Path, other: list[Row], changes: dict[str, object], message: str
) -> None:
    stranger = record(tmp_path / "other", other, **changes)
    with pytest.raises(RecordingError, match=message):
        recording_edit.merge([recording, stranger], tmp_path / "merged")


def test_nothing_is_written_over(recording: Recording, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="is not empty"):
        recording_edit.cut(recording, tmp_path / "whole", Cut(from_ms=0))
    with pytest.raises(RecordingError, match="is not empty"):
        recording_edit.merge([recording], tmp_path / "whole")
