"""`shelfcast record` against a real broker: every byte, from where to where it was asked for, whatever kills it."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from feature_store.recording_files import Gap, Headers, Manifest, Recording, RecordingError, RecordingWriter, TopicEntry
from worker.cli import shelfcast
from worker.errors import TopicError
from worker.local_stack import LocalBroker
from worker.record_span import Point, Start
from worker.redaction import Redaction
from worker.topic_recorder import TopicRecorder

_PATIENCE_S = 60.0
_numbers = itertools.count()


class Sent(NamedTuple):
    """A record as it was produced, in its place."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers | None


class Topics:
    """Two topics of a test, what was sent to them, and recordings of them."""

    def __init__(self, broker: LocalBroker, directory: Path) -> None:
        self.servers = broker.bootstrap_servers
        n = next(_numbers)
        self.names = {f"rec{n}.a": 3, f"rec{n}.b": 1}
        self.first, self.second = self.names
        admin = AdminClient({"bootstrap.servers": self.servers})
        for future in admin.create_topics([NewTopic(name, count, 1) for name, count in self.names.items()]).values():
            future.result()
        self.output = directory / "recording"
        self.sent: list[Sent] = []
        self._random = random.Random(n)
        self._ends = dict.fromkeys(((topic, p) for topic, count in self.names.items() for p in range(count)), 0)
        # Of several requests, some to each partition.
        self._producer = Producer({"bootstrap.servers": self.servers, "linger.ms": 20, "batch.num.messages": 100})

    def send(self, count: int, values: Callable[[int], bytes | None] | None = None, topic: str = "") -> None:
        """So many records with nulls, empty texts, any bytes, headers of all sorts, and times in some disorder."""
        choose = self._random
        for n in range(count):
            key = choose.choice([None, b"", b"mug", b"\xff\x00", b"p%d" % n])
            value = values(n) if values else choose.choice([None, b"", b'{"a": 1}', choose.randbytes(30)])
            some: list[Headers | None] = [None, None, [("h", b"1"), ("h", None), ("", b"")], [("ä", b"\xff")]]
            headers = choose.choice(some)
            time_ms = 1_600_000_000_000 + len(self.sent) * 1000 + choose.randrange(-5000, 5000)
            place = choose.choice([key for key in self._ends if topic in ("", key[0])])
            self._producer.produce(place[0], value, key, place[1], timestamp=time_ms, headers=headers)
            self.sent.append(Sent(*place, self._ends[place], time_ms, key, value, headers))
            self._ends[place] += 1
        assert self._producer.flush(_PATIENCE_S) == 0

    @property
    def environment(self) -> dict[str, str]:
        return {"SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": self.servers}

    def command(self, *options: str) -> list[str]:
        return ["record", *self.names, "--output", str(self.output), *options]

    def record(self, *options: str) -> Result:
        return CliRunner().invoke(shelfcast, self.command(*options), env=self.environment)

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """In a process of its own."""
        arguments = [sys.executable, "-m", "worker", *self.command(*options)]
        return subprocess.Popen(arguments, env=os.environ | self.environment, stdout=subprocess.PIPE)

    def recorded(self) -> list[Sent]:
        """What the recording holds, after its manifest was found to be true."""
        recording = Recording.open(self.output)
        assert recording.verify() == []
        return [sent for topic in recording.topics for c in recording.columns(topic) for sent in _sent_of(c)]

    def recorded_in_order(self) -> list[Sent]:
        return sorted(self.recorded(), key=lambda sent: sent[:3])

    def expected(self, keep: Callable[[Sent], bool] = lambda _: True) -> list[Sent]:
        return sorted((sent for sent in self.sent if keep(sent)), key=lambda sent: sent[:3])


def _sent_of(columns: Any) -> Iterator[Sent]:
    assert columns.timestamp_types.tolist() == [1] * len(columns.offsets)
    rows = (columns.offsets.tolist(), columns.timestamps_ms.tolist(), columns.keys, columns.values, columns.headers)
    return (Sent(columns.topic, columns.partition, *row) for row in zip(*rows, strict=True))


@pytest.fixture
def topics(broker: LocalBroker, tmp_path: Path) -> Topics:
    return Topics(broker, tmp_path)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows_held(output: Path) -> int:
    try:
        recording = Recording.open(output)
    except RecordingError:
        return 0
    return sum(recording.rows(topic) for topic in recording.topics)


def test_every_byte_is_recorded(topics: Topics) -> None:
    topics.send(3000)
    result = topics.record("--to", "end", "--roll-records", "700")
    assert result.exit_code == 0, result.output
    assert "3,000 records in" in result.output
    assert topics.recorded_in_order() == topics.expected()
    recording = Recording.open(topics.output)
    assert {topic: recording.partition_count(topic) for topic in recording.topics} == topics.names
    assert recording.manifest.source == topics.servers
    files = [file for topic in topics.names for file in recording.files(topic)]
    assert max(file.rows for file in files) <= 700
    assert len(files) >= 5
    assert not any(entry.gaps for entry in recording.manifest.topics.values())


def test_it_is_gone_on_with_where_it_ends(topics: Topics) -> None:
    topics.send(300)
    assert topics.record("--to", "end").exit_code == 0
    topics.send(200)
    result = topics.record("--to", "end")
    assert "going on with" in result.output
    assert "200 records in" in result.output
    assert topics.recorded_in_order() == topics.expected()


def test_kills_lose_and_double_nothing(topics: Topics) -> None:
    topics.send(20_000)
    for kill in range(3):
        held = rows_held(topics.output)
        process = topics.start("--roll-records", str(400 + kill))
        wait_for(lambda held=held: rows_held(topics.output) > held)  # type: ignore[misc]
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert rows_held(topics.output) > 0
    assert topics.record("--to", "end").exit_code == 0
    assert topics.recorded_in_order() == topics.expected()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_all_that_was_read(topics: Topics, number: signal.Signals) -> None:
    topics.send(500)
    process = topics.start("--roll-seconds", "0.1")
    wait_for(lambda: rows_held(topics.output) == 500)
    topics.send(500)
    wait_for(lambda: rows_held(topics.output) > 500)
    process.send_signal(number)
    output, _ = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == 0
    held = topics.recorded()
    assert f"holds {len(held):,}".encode() in output
    assert set(map(repr, held)) <= set(map(repr, topics.sent))


def test_what_was_read_before_it_was_stopped_is_written(topics: Topics) -> None:
    topics.send(800)
    manifest = Manifest(topics.servers, 0, {name: TopicEntry(count) for name, count in topics.names.items()})
    with RecordingWriter(topics.output, manifest) as writer:
        config = {"bootstrap.servers": topics.servers}
        recorder = TopicRecorder(config, writer, Redaction([]), roll_s=3600)
        starts = {(name, p): Start(0) for name, count in topics.names.items() for p in range(count)}
        recorder.run(starts, None, lambda: recorder.records == 800, lambda: None)
        assert writer.rows == 800
    assert topics.recorded_in_order() == topics.expected()


def test_from_an_offset_to_an_offset(topics: Topics) -> None:
    topics.send(1000)
    assert topics.record("--from", "20", "--to", "90").exit_code == 0
    assert topics.recorded_in_order() == topics.expected(lambda sent: 20 <= sent.offset < 90)


def test_from_a_time_to_a_time(topics: Topics) -> None:
    """From the first record at or after a time, as Kafka defines the offset of a time, to the one of another time."""
    topics.send(1000)
    from_ms, to_ms = 1_600_000_200_000, 1_600_000_700_500
    result = topics.record("--from", "2020-09-13T12:30:00", "--to", "2020-09-13T14:38:20.500+02:00")
    assert result.exit_code == 0, result.output
    expected = []
    for topic, count in topics.names.items():
        for p in range(count):
            own = [sent for sent in topics.sent if sent[:2] == (topic, p)]
            first = next(sent.offset for sent in own if sent.timestamp_ms >= from_ms)
            stop = next(sent.offset for sent in own if sent.timestamp_ms >= to_ms)
            expected += [sent for sent in own if first <= sent.offset < stop]
    assert topics.recorded_in_order() == sorted(expected, key=lambda sent: sent[:3])
    assert not any(entry.gaps for entry in Recording.open(topics.output).manifest.topics.values())


def test_from_now_records_what_comes_after(topics: Topics) -> None:
    topics.send(500)
    begun = len(topics.sent)
    process = topics.start("--from", "now", "--roll-seconds", "0.1")
    wait_for((topics.output / "manifest.json").exists)
    process.kill()  # where it began must not be forgotten
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    topics.send(300)
    assert topics.record("--from", "now", "--to", "end").exit_code == 0
    expected = sorted(topics.sent[begun:], key=lambda sent: sent[:3])
    assert topics.recorded_in_order() == expected


def test_a_time_to_come_ends_it(topics: Topics) -> None:
    """A time that has passed long ago but for which no later record ever comes."""
    topics.send(50)
    assert topics.record("--to", "2021-01-01").exit_code == 0
    assert len(topics.recorded()) == 50


def test_fields_are_taken_out(topics: Topics) -> None:
    topics.send(50, lambda n: b'{"email":"x@y","n": %d,"who":{"name":"N","city":"C"}}' % n)
    assert topics.record("--to", "end", "--redact", "email, who.name").exit_code == 0
    assert Recording.open(topics.output).manifest.redacted_fields == ["email", "who.name"]
    values = [json.loads(sent.value or b"") for sent in topics.recorded()]
    assert sorted(value["n"] for value in values) == list(range(50))
    assert all(value == {"n": value["n"], "who": {"city": "C"}} for value in values)
    again = topics.record("--to", "end")
    assert "its redacted fields are email, who.name, not none" in str(again.exception)


def test_a_value_that_is_not_json_is_not_kept_by_accident(topics: Topics) -> None:
    topics.send(5, lambda n: b"secret" if n == 3 else None)
    result = topics.record("--to", "end", "--redact", "email")
    assert isinstance(result.exception, RecordingError)
    assert "--not-json" in str(result.exception)
    assert rows_held(topics.output) < 5
    assert topics.record("--to", "end", "--redact", "email", "--not-json", "empty").exit_code == 0
    assert sorted(repr(sent.value) for sent in topics.recorded()) == ["None"] * 4 + ["b''"]


def test_what_cannot_be_recorded_is_said(topics: Topics, tmp_path: Path) -> None:
    def error(*arguments: str) -> str:
        result = CliRunner().invoke(shelfcast, ["record", *arguments], env=topics.environment)
        assert result.exit_code != 0
        return result.output + str(result.exception)

    assert "has no topic nothing.here" in error("nothing.here", "--output", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    assert "not empty and not a recording" in error(topics.first, "--to", "end", "--output", str(tmp_path / "full"))
    assert topics.record("--to", "end").exit_code == 0
    assert "its topics are" in error(topics.first, "--to", "end", "--output", str(topics.output))
    assert "is no time" in error(topics.first, "--from", "yesterday", "--output", str(tmp_path / "x"))
    assert "needs a name" in error(topics.first, "--redact", "a..b", "--output", str(tmp_path / "x"))


class ForgetfulLog:
    """Stands in for librdkafka's consumer of one partition: offsets below 900 were deleted, 905 to 907 compacted, and
    the last one, 910, is a transaction's mark. The embedded broker does none of this."""

    def __init__(self) -> None:
        self._coming: list[Message] = []

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        offsets = [offset for offset in range(900, 910) if offset not in (905, 906, 907)]
        if partitions[0].offset < 900:
            self._put(partitions[0].offset, error=KafkaError(KafkaError.OFFSET_OUT_OF_RANGE))
            return
        for offset in offsets:
            if offset >= partitions[0].offset:
                self._put(offset, value=b"v", timestamp=(2, offset))
        self._put(911, error=KafkaError(KafkaError._PARTITION_EOF))

    incremental_assign = assign

    def _put(self, offset: int, **more: Any) -> None:
        self._coming.append(Message(topic="t", partition=0, offset=offset, **more))

    def poll(self, seconds: float) -> Message | None:
        return self._coming.pop(0) if self._coming else None

    def consume(self, count: int, timeout: float) -> list[Message]:
        out, self._coming = self._coming, []
        return out

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        return 900, 911

    def incremental_unassign(self, partitions: Sequence[TopicPartition]) -> None:
        self._coming.clear()

    def close(self) -> None: ...


@pytest.mark.parametrize("end", [Point("end"), Point("offset", 910)])
def test_offsets_without_records_are_gaps(tmp_path: Path, end: Point) -> None:
    manifest = Manifest("kafka:9092", 0, {"t": TopicEntry(1, start_offsets={0: 40})})
    config = {"bootstrap.servers": "kafka:9092"}
    with RecordingWriter(tmp_path, manifest) as writer:
        recorder = TopicRecorder(config, writer, Redaction([]), roll_s=3600, new_consumer=lambda _: ForgetfulLog())
        recorder.run({("t", 0): Start(40)}, end, lambda: False, lambda: None)
    recording = Recording.open(tmp_path)
    assert recording.verify() == []
    assert [offset for c in recording.columns("t") for offset in c.offsets.tolist()] == [*range(900, 905), 908, 909]
    assert recording.manifest.topics["t"].gaps == [Gap(0, 40, 900), Gap(0, 905, 908)]
    assert {kind for c in recording.columns("t") for kind in c.timestamp_types.tolist()} == {2}


def test_a_start_beyond_the_log_is_refused(tmp_path: Path) -> None:
    class ShortLog(ForgetfulLog):
        def assign(self, partitions: Sequence[TopicPartition]) -> None:
            self._put(partitions[0].offset, error=KafkaError(KafkaError._AUTO_OFFSET_RESET))

    with RecordingWriter(tmp_path, Manifest("kafka:9092", 0, {"t": TopicEntry(1)})) as writer:
        config = {"bootstrap.servers": "kafka:9092"}
        recorder = TopicRecorder(config, writer, Redaction([]), roll_s=3600, new_consumer=lambda _: ShortLog())
        with pytest.raises(TopicError, match="t partition 0 ends at offset 911, and is to be recorded from 5000"):
            recorder.run({("t", 0): Start(5000)}, None, lambda: False, lambda: None)
