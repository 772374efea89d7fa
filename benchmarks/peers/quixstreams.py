"""Quix Streams: a tumbling window, whose updates a batching sink writes at each checkpoint. See `job` for the job.

Without a changelog topic, which is off here, its state is lost with its disk. Offsets are committed after state and
sink are flushed: killed, it would go on from its last checkpoint and write absolute sums once more.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import redis
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch

from benchmarks.peers.job import (
    BUCKET_MS,
    FETCH_QUEUE_BACKOFF_MS,
    SESSION_TIMEOUT_S,
    Job,
    Progress,
    job_from_arguments,
    store_cells,
)

# Warm-up and total are multiples of it, so that no sale waits for the next checkpoint by time.
_CHECKPOINT_EVERY, _CHECKPOINT_INTERVAL_S = 20_000, 3600.0
_LIBRARIES = ("quixstreams", "confluent-kafka", "orjson", "redis", "hiredis")


class RedisSink(BatchingSink):  # type: ignore[misc]
    """Writes the newest update of each window, in one round trip a partition."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._client = redis.Redis.from_url(job.redis_url)
        self._progress = Progress(job, _LIBRARIES)
        self._counted = 0

    def write(self, batch: SinkBatch) -> None:
        newest = {(item.key, item.value["start"]): item.value["value"] for item in batch}
        store_cells(self._client, [(product, start // BUCKET_MS, *sums) for (product, start), sums in newest.items()])
        self._counted += batch.size

    def flush(self) -> None:
        super().flush()
        self._progress.stored(self._counted)


def first_sums(sale: dict[str, Any]) -> list[int]:
    """Units and cents of a window's first sale."""
    return [sale["quantity"], sale["quantity"] * round(sale["unit_price"] * 100)]


def add_sums(sums: list[int], sale: dict[str, Any]) -> list[int]:
    """Units and cents with one more sale."""
    return [sums[0] + sale["quantity"], sums[1] + sale["quantity"] * round(sale["unit_price"] * 100)]


def event_time(value: dict[str, Any], headers: object, timestamp: float, timestamp_type: object) -> int:
    """When the sale happened, for the window."""
    return int(value["event_time"])


def create_app(job: Job) -> Application:
    """From Kafka to Redis."""
    app = Application(
        job.bootstrap_servers,
        consumer_group=f"peer-{os.getpid()}",
        auto_offset_reset="earliest",
        commit_every=_CHECKPOINT_EVERY,
        commit_interval=_CHECKPOINT_INTERVAL_S,
        consumer_extra_config={
            "session.timeout.ms": 1000 * SESSION_TIMEOUT_S,
            "fetch.queue.backoff.ms": FETCH_QUEUE_BACKOFF_MS,
        },
        use_changelog_topics=False,
        state_dir=Path.cwd() / "state",  # whoever starts it removes its directory
        loglevel="ERROR",
    )
    topic = app.topic(job.topic, key_deserializer="string", value_deserializer="json", timestamp_extractor=event_time)
    windows = app.dataframe(topic).tumbling_window(BUCKET_MS).reduce(add_sums, first_sums).current()
    windows.sink(RedisSink(job))
    return app


if __name__ == "__main__":
    create_app(job_from_arguments()).run()
