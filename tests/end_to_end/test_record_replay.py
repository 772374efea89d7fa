"""What was replayed and recorded again is the recording that it came from: partitions, offsets, timestamps, bytes."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_store.recording_files import Manifest, RecordColumns, Recording, RecordingWriter, TopicEntry
from worker import record, replay
from worker.local_stack import LocalBroker

_TOPICS = {"sales": 3, "visits": 1}
_numbers = itertools.count()

_bytes = st.none() | st.binary(min_size=1, max_size=40)
# librdkafka cuts the name of a header off at a NUL.
_names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
_headers = st.none() | st.lists(st.tuples(_names, st.none() | st.binary(max_size=9)), min_size=1, max_size=3)
_record = st.tuples(
    st.sampled_from([(topic, p) for topic, count in _TOPICS.items() for p in range(count)]),
    st.integers(1, 10_000_000),
    _bytes,
    _bytes,
    _headers,
)


def write(path: Path, records: list[Any]) -> Recording:
    places: dict[tuple[str, int], list[Any]] = {}
    for place, *record_ in records:
        places.setdefault(place, []).append(record_)
    manifest = Manifest("elsewhere:9092", 0, {topic: TopicEntry(count) for topic, count in _TOPICS.items()})
    with RecordingWriter(path, manifest, roll_rows=40) as writer:
        for (topic, partition), own in places.items():
            times, keys, values, headers = map(list, zip(*own, strict=True))
            numbers = np.arange(len(own), dtype=np.int64), np.array(times), np.ones(len(own), dtype=np.int8)
            writer.append(RecordColumns(topic, partition, *numbers, keys, values, headers))
    return Recording.open(path)


def rows(recording: Recording, prefix: str = "") -> dict[tuple[str, int], list[tuple[Any, ...]]]:
    """By topic, without the prefix, and partition."""
    out: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
    for topic in recording.topics:
        for columns in recording.columns(topic):
            numbers = (column.tolist() for column in columns[2:5])
            place = (topic.removeprefix(prefix), columns.partition)
            out.setdefault(place, []).extend(zip(*numbers, *columns[5:], strict=True))
    return out


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(_record, min_size=1, max_size=200))
def test_a_replay_recorded_again_is_the_recording(broker: LocalBroker, records: list[Any]) -> None:
    prefix = f"replayed{next(_numbers)}."
    environment = {"SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers}
    with tempfile.TemporaryDirectory() as folder:
        first = write(Path(folder) / "first", records)
        options = [str(first.path), "--prefix", prefix]
        CliRunner().invoke(replay.command, options, env=environment, catch_exceptions=False)
        options = [*(prefix + topic for topic in _TOPICS), "--output", f"{folder}/second", "--to", "end"]
        CliRunner().invoke(record.command, options, env=environment, catch_exceptions=False)
        second = Recording.open(Path(folder) / "second")
        assert second.verify() == []
        assert rows(second, prefix) == rows(first)
