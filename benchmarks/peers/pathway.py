"""Pathway: a table grouped by product and bucket, whose changes a subscriber pipelines into Redis. See `job`.

Its persistence is off. With it, it would go on from its last snapshot after a kill and write absolute sums once more.
"""

from __future__ import annotations

import os
from typing import Any

import pathway as pw
import redis

from benchmarks.peers.job import (
    BUCKET_MS,
    FETCH_QUEUE_BACKOFF_MS,
    SESSION_TIMEOUT_S,
    Cell,
    Job,
    Progress,
    job_from_arguments,
    store_cells,
)

_COMMIT_MS = 100
_LIBRARIES = ("pathway", "redis", "hiredis")


class Sale(pw.Schema):  # type: ignore[misc]
    """The fields that the job needs; Pathway parses the JSON."""

    event_time: int
    product_id: str
    quantity: int
    unit_price: float


class RedisWriter:
    """Writes the cells that a commit changed, in one round trip."""

    def __init__(self, job: Job) -> None:
        self._client = redis.Redis.from_url(job.redis_url)
        self._progress = Progress(job, _LIBRARIES)
        self._cells: list[Cell] = []
        self._counted = 0

    def on_change(self, key: object, row: dict[str, Any], time: int, is_addition: bool) -> None:
        """A changed cell comes as its old row taken away and its new one added."""
        if is_addition:
            self._cells.append((row["product_id"], row["bucket"], row["units"], row["cents"]))
            self._counted += row["sales"]
        else:
            self._counted -= row["sales"]

    def on_time_end(self, time: int) -> None:
        """All changes of a commit have come."""
        if self._cells:
            store_cells(self._client, self._cells)
            self._cells = []
            self._progress.stored(self._counted)


def subscribe(job: Job) -> None:
    """From Kafka to Redis."""
    settings = {
        "bootstrap.servers": job.bootstrap_servers,
        "group.id": f"peer-{os.getpid()}",
        "session.timeout.ms": str(1000 * SESSION_TIMEOUT_S),
        "auto.offset.reset": "earliest",
        "fetch.queue.backoff.ms": str(FETCH_QUEUE_BACKOFF_MS),
    }
    sales = pw.io.kafka.read(settings, job.topic, schema=Sale, format="json", autocommit_duration_ms=_COMMIT_MS)
    cells = sales.select(
        pw.this.product_id,
        pw.this.quantity,
        bucket=pw.this.event_time // BUCKET_MS,
        cents=pw.this.quantity * pw.cast(int, (pw.this.unit_price * 100).num.round()),
    )
    sums = cells.groupby(pw.this.product_id, pw.this.bucket).reduce(
        pw.this.product_id,
        pw.this.bucket,
        units=pw.reducers.sum(pw.this.quantity),
        cents=pw.reducers.sum(pw.this.cents),
        sales=pw.reducers.count(),
    )
    writer = RedisWriter(job)
    pw.io.subscribe(sums, on_change=writer.on_change, on_time_end=writer.on_time_end)


if __name__ == "__main__":
    subscribe(job_from_arguments())
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
