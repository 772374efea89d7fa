"""What is damaged, strange or somebody else's is told of, and not written over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from feature_store.recording_files import Cut, Manifest, Recording, RecordingError, RecordingWriter, TopicEntry
from tests.feature_store.recordings import Row, begun, columns_of, small_recording


def test_changed_bytes_are_found(tmp_path: Path) -> None:
    recording = small_recording(tmp_path)
    file = tmp_path / "orders" / "000001.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert [finding for finding in recording.verify() if "sha256" in finding] == [recording.verify()[0]]
    file.unlink()
    assert "orders/000001.parquet: is missing" in recording.verify()
    with pytest.raises(RecordingError, match="restore it from a copy"):
        list(recording.columns("orders"))


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda manifest: manifest.topics["orders"].files.pop(0), "offsets 0 to 9 are missing"),
        (lambda manifest: manifest.topics["orders"].files.reverse(), "order of partition and offset"),
        (lambda manifest: setattr(manifest.topics["orders"].files[0], "rows", 9), "rows that the manifest tells"),
        (lambda manifest: manifest.topics["orders"].start_offsets.update({1: -5}), "offsets -5 to -1 are missing"),
        (lambda manifest: setattr(manifest.topics["orders"], "partition_count", 1), "partitions that the topic"),
        (lambda manifest: setattr(manifest, "snapshot", "snapshot"), "the snapshot"),
    ],
)
def test_a_manifest_that_does_not_fit_is_found(tmp_path: Path, change: Callable[[Manifest], Any], finding: str) -> None:
    recording = small_recording(tmp_path)
    assert recording.verify() == []
    change(recording.manifest)
    assert any(finding in text for text in recording.verify())


def test_offsets_missing_between_files_are_found(tmp_path: Path) -> None:
    recording = small_recording(tmp_path)
    with RecordingWriter(tmp_path, begun()) as writer:
        writer.append(columns_of([Row("orders", 1, 30, 1, 1, None, None, None)]))
    recording = Recording.open(tmp_path)
    assert recording.verify() == []
    recording.manifest.topics["orders"].gaps.clear()
    assert recording.verify() == ["orders partition 1: offsets 20 to 29 are missing"]


def test_records_come_once_and_in_order(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path, begun()) as writer:
        writer.append(columns_of([Row("orders", 0, 4, 1, 1, None, None, None)]))
        for offset in (4, 2):
            with pytest.raises(RecordingError, match="do not follow"):
                writer.append(columns_of([Row("orders", 0, offset, 1, 1, None, None, None)]))
        with pytest.raises(RecordingError, match="partition 2 of orders"):
            writer.append(columns_of([Row("orders", 2, 0, 1, 1, None, None, None)]))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path, begun()), pytest.raises(RecordingError, match="another process"):
        RecordingWriter(tmp_path, begun())
    RecordingWriter(tmp_path, begun()).close()


def test_something_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RecordingError, match="not empty and not a recording"):
        RecordingWriter(tmp_path, begun())
    with pytest.raises(RecordingError, match="is not a recording"):
        Recording.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"source": "other:9092"}, "source"),
        ({"topics": {"orders": TopicEntry(2)}}, "topics"),
        ({"topics": {"orders": TopicEntry(3), "clicks": TopicEntry(3)}}, "topics"),
        ({"redacted_fields": ["order_id"]}, "redacted fields"),
        ({"cuts": [Cut()]}, "cuts"),
    ],
)
def test_another_recording_is_not_gone_on_with(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    RecordingWriter(tmp_path, begun()).close()
    with pytest.raises(RecordingError, match=f"its {named} are"):
        RecordingWriter(tmp_path, begun(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "newer shelfcast"),
        ({"topics": []}, "damaged"),
        ({"topics": {"../up": {"partition_count": 1}}}, "names that no writer gives"),
        (
            {
                "topics": {
                    "a": {
                        "partition_count": 1,
                        "files": [{"path": "a/../../x", "sha256": "", "rows": 0, "partitions": {}}],
                    }
                }
            },
            "names that no writer gives",
        ),
    ],
)
def test_a_strange_manifest_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(msgspec.to_builtins(begun()) | change))
    with pytest.raises(RecordingError, match=message):
        Recording.open(tmp_path)


def test_a_file_of_foreign_columns_is_refused(tmp_path: Path) -> None:
    recording = small_recording(tmp_path)
    file = tmp_path / "orders" / "000001.parquet"
    pq.write_table(pq.read_table(file, columns=["offset", "partition"]), file)
    with pytest.raises(RecordingError, match="columns are not a recording's"):
        list(recording.merged())


def test_a_topic_that_was_not_recorded_is_named(tmp_path: Path) -> None:
    recording = small_recording(tmp_path)
    with pytest.raises(RecordingError, match=r"no topic reviews: it has clicks, orders"):
        recording.merged(["reviews"])
    assert recording.partition_count("clicks") == 3
    assert (recording.rows("orders"), recording.rows("clicks")) == (20, 0)
