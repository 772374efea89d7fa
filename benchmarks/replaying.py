"""How fast a recording is replayed onto the broker, without a worker."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from feature_store.recording_files import Manifest, RecordColumns, Recording, RecordingWriter, TopicEntry
from worker.local_stack import LocalBroker
from worker.replay import Replayed, ReplayPlan, run_replay
from worker.replay_topics import replay_settings, replay_topics
from worker.settings import load_settings

PREFIX = "again."  # of the topics that a recording is replayed onto
_TOPIC = "shop.orders.v1"
_PARTITIONS = 4
_START_MS = 1_700_000_000_000


def measure_replay(records: int = 1_500_000, message_bytes: int = 100, hours: int = 24 * 7) -> Replayed:
    """Replay orders of so many bytes, spread over so many hours, as fast as possible and with hourly ticks; timed until
    the broker has acknowledged all."""
    with tempfile.TemporaryDirectory(prefix="shelfcast-replay-") as folder:
        recording = write_orders(Path(folder) / "recording", records, message_bytes, hours)
        with LocalBroker(Path(folder)) as broker:
            return replay_onto(broker, recording)


def replay_onto(broker: LocalBroker, recording: Recording) -> Replayed:
    """Replay as fast as possible, with hourly ticks, onto topics that begin with PREFIX."""
    shop = load_settings({"SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers})
    settings = replay_settings(shop, recording, PREFIX, recording.topics)
    where = replay_topics(shop, recording, PREFIX, recording.topics, clock=True)
    return run_replay(ReplayPlan(recording, recording.topics), settings, where)


def write_orders(path: Path, records: int, message_bytes: int, hours: int) -> Recording:
    """A recording of orders, padded to a size."""
    manifest = Manifest("invented", int(time.time() * 1000), {_TOPIC: TopicEntry(_PARTITIONS)})
    each = records // _PARTITIONS
    times = _START_MS + np.linspace(0, hours * 3_600_000, each, endpoint=False).astype(np.int64)
    with RecordingWriter(path, manifest) as writer:
        for partition in range(_PARTITIONS):
            products = [f"product-{n % 5_000}".encode() for n in range(partition, partition + each)]
            texts = [
                b'{"event_time":%d,"product_id":"%b","quantity":1,"unit_price":2.5' % pair
                for pair in zip(times.tolist(), products, strict=True)
            ]
            writer.append(
                RecordColumns(
                    _TOPIC,
                    partition,
                    np.arange(each, dtype=np.int64),
                    times,
                    np.ones(each, dtype=np.int8),
                    list(products),
                    [(text + b',"order_id":"%b"}' % (b"0" * max(message_bytes - len(text) - 14, 0))) for text in texts],
                    [None] * each,
                )
            )
    return Recording.open(path)


if __name__ == "__main__":
    done = measure_replay()
    print(f"{done.records:,} records in {done.wall_s:.1f} s: {done.records / done.wall_s:,.0f}/s")
