"""The batch transport inside a real Faust app on the real broker, with Faust's compiled stream iterator and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from worker.local_stack import LocalBroker

PATIENCE_S = 60.0
PARTITIONS = 2
ROOT = Path(__file__).parents[2]
ITERATORS = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "pure"])


class BatchApp:
    """`batch_app` as a process, and what it has said so far."""

    def __init__(self, arguments: list[str], *, compiled: bool) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({} if compiled else {"NO_CYTHON": "1"})
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "tests.worker.batch_app", str(writing), *arguments]
        self._process = subprocess.Popen(command, env=environment, cwd=ROOT, pass_fds=[writing])
        os.close(writing)
        self._lines = os.fdopen(reading)
        self.said: list[dict[str, Any]] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        with self._lines:
            for line in self._lines:
                self.said.append(json.loads(line))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._process.poll() is None, "the app has ended"
            assert time.monotonic() < deadline, [str(said)[:60] for said in self.said]
            time.sleep(0.02)

    def batches(self, partition: int) -> list[dict[str, Any]]:
        return [said for said in self.said if said.get("partition") == partition]

    def values(self, partition: int) -> list[str | None]:
        return [value for batch in self.batches(partition) for value in batch["values"]]

    def plain(self) -> list[str]:
        return [said["plain"] for said in self.said if "plain" in said]

    def stop(self) -> int:
        self._process.terminate()
        code = self._process.wait(PATIENCE_S)
        self._reading.join(PATIENCE_S)
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self._reading.join(PATIENCE_S)


@pytest.fixture
def start_app() -> Iterator[Callable[..., BatchApp]]:
    apps: list[BatchApp] = []

    def start(*arguments: str, compiled: bool) -> BatchApp:
        apps.append(BatchApp(list(arguments), compiled=compiled))
        return apps[-1]

    yield start
    for app in apps:
        app.kill()


def make_topics(broker: LocalBroker, *names: str) -> Producer:
    config = {"bootstrap.servers": broker.address, "log_level": 2}
    admin = AdminClient(config)
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
        future.result(timeout=PATIENCE_S)
    return Producer(config)


def send(producer: Producer, topic: str, partition: int, values: list[str | None]) -> None:
    for value in values:
        producer.produce(topic, value, b"key", partition=partition)
    assert producer.flush(PATIENCE_S) == 0


def committed(broker: LocalBroker, group: str, topic: str) -> list[int]:
    """Offsets that the group has committed, by partition; negative = none."""
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": group, "log_level": 2})
    partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    offsets = [partition.offset for partition in consumer.committed(partitions, timeout=PATIENCE_S)]
    consumer.close()
    return offsets


@ITERATORS
def test_agents_get_whole_batches_of_batch_topics_and_single_records_of_others(
    broker: LocalBroker, start_app: Callable[..., BatchApp], *, compiled: bool
) -> None:
    batched, plain, group = f"whole-{compiled}", f"single-{compiled}", f"group-whole-{compiled}"
    producer = make_topics(broker, batched, plain)
    sent: list[list[str | None]] = [[f"{p}/{n}" if n % 7 else None for n in range(2000)] for p in range(PARTITIONS)]
    for partition in range(PARTITIONS):
        send(producer, batched, partition, sent[partition])
        send(producer, plain, partition, [f"{partition}/{n}" for n in range(5)])
    app = start_app(broker.address, group, batched, plain, "10", compiled=compiled)
    app.wait_until(lambda: all(len(app.values(p)) >= 1990 for p in range(PARTITIONS)) and len(app.plain()) >= 10)
    assert app.said[0] == {"compiled": compiled}
    for partition in range(PARTITIONS):
        assert app.values(partition) == sent[partition][10:]
        assert [o for b in app.batches(partition) for o in b["offsets"]] == list(range(10, 2000))
        assert len(app.batches(partition)) < 100, "records come many at a time"
    assert sorted(app.plain()) == [f"{partition}/{n}" for partition in range(PARTITIONS) for n in range(5)]

    # Commits: of the batch topic what was told to be applied, of the other what its agent is through with.
    app.wait_until(lambda: committed(broker, group, batched) == [100, 100])
    app.wait_until(lambda: committed(broker, group, plain) == [5, 5])
    assert app.stop() == 0


@ITERATORS
def test_a_rebalance_loses_and_repeats_nothing_behind_the_positions(
    broker: LocalBroker, start_app: Callable[..., BatchApp], *, compiled: bool
) -> None:
    batched, plain, group = f"moved-{compiled}", f"stayed-{compiled}", f"group-moved-{compiled}"
    producer = make_topics(broker, batched, plain)
    for partition in range(PARTITIONS):
        send(producer, batched, partition, [str(n) for n in range(50)])
    arguments = (broker.address, group, batched, plain, "0")
    first = start_app(*arguments, compiled=compiled)
    first.wait_until(lambda: all(len(first.values(p)) == 50 for p in range(PARTITIONS)))
    second = start_app(*arguments, compiled=compiled)
    second.wait_until(lambda: any(len(said.get("assigned", ())) == 1 for said in second.said))
    (own,) = next(said["assigned"] for said in second.said if len(said.get("assigned", ())) == 1)
    assert own[0] == batched
    for partition in range(PARTITIONS):
        send(producer, batched, partition, ["last"])
    second.wait_until(lambda: second.values(own[1]) == [*(str(n) for n in range(50)), "last"])
    first.wait_until(lambda: first.values(1 - own[1])[-51:] == [*(str(n) for n in range(50)), "last"])
    assert "last" not in first.values(own[1])
