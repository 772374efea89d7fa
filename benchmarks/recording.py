"""How many messages a second `shelfcast record` saves, and how many the broker delivers to a loop that drops them.

Messages of 100 bytes with a key of 6 stand in a topic of 8 partitions before the clock runs. The loop reads them with
the same client and settings and does nothing with them: the most that any recorder could reach. Both take turns; the
medians are told. The recorder runs in a process of its own; its clock covers all from the first request to the last
sync to the disk, and not the start of Python.
"""

from __future__ import annotations

import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from feature_store.recording_files import Recording
from worker.local_stack import LocalStack
from worker.topic_recorder import consumer_config

_PARTITIONS, _MESSAGE_BYTES, _PRODUCTS = 8, 100, 5_000
_RATE = re.compile(r"\(([\d,]+)/s\)")
_topics = (f"benchmark.record{n}" for n in itertools.count())


def measure_record(stack: LocalStack, messages: int = 1_000_000, rounds: int = 3) -> dict[str, float]:
    """`record_per_s` and `broker_per_s`, medians of some rounds. Needs the stack's broker only."""
    topic = next(_topics)
    _fill(stack.bootstrap_servers, topic, messages)
    recorded, delivered = [], []
    for _ in range(rounds):
        delivered.append(_deliver(stack.bootstrap_servers, topic, messages))
        with tempfile.TemporaryDirectory(prefix="shelfcast-") as directory:
            recorded.append(record_topic(stack.bootstrap_servers, topic, Path(directory) / "recording", messages))
    return {"record_per_s": statistics.median(recorded), "broker_per_s": statistics.median(delivered)}


def _fill(servers: str, topic: str, messages: int) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(topic, _PARTITIONS, 1)])[topic].result()
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 20, "queue.buffering.max.messages": messages + 1})
    for n in range(messages):
        # Bytes that differ, so that compression does not make the disk's part look smaller than it is.
        value = f"{n * 2654435761 % 2**64:020d}".encode() * (_MESSAGE_BYTES // 20)
        producer.produce(topic, value, f"p{n * 7919 % _PRODUCTS:05d}".encode())
        if n % 10_000 == 0:
            producer.poll(0)
    assert producer.flush(300) == 0


def _deliver(servers: str, topic: str, messages: int) -> float:
    consumer = Consumer({**consumer_config({"bootstrap.servers": servers}), "enable.partition.eof": False})
    began_s, count = time.perf_counter(), 0
    consumer.assign([TopicPartition(topic, p, 0) for p in range(_PARTITIONS)])
    while count < messages:
        count += len(consumer.consume(4_000, timeout=0.1))
    seconds = time.perf_counter() - began_s
    consumer.close()
    return messages / seconds


def record_topic(servers: str, topic: str, output: Path, messages: int) -> float:
    """Messages a second of `shelfcast record`, from the first to the end of a topic that holds so many."""
    command = [sys.executable, "-m", "worker", "record", topic, "--to", "end", "--output", str(output)]
    environment = os.environ | {"SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": servers}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    recording = Recording.open(output)
    assert recording.rows(topic) == messages, f"{recording.rows(topic)} of {messages} records were saved"
    rate = _RATE.search(done.stdout)
    assert rate is not None, done.stdout
    return float(rate.group(1).replace(",", ""))


if __name__ == "__main__":
    with LocalStack(redis=False, triton=False) as local_stack:
        print(measure_record(local_stack))
