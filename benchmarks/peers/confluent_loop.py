"""A loop by hand: confluent-kafka's `consume`, msgspec, a dict, a Redis pipeline. See `job` for the job.

Offsets are committed after the sums are stored, but the sums live in memory: killed, it starts with empty ones and
writes over what stands in Redis.
"""

from __future__ import annotations

import os

import redis
from confluent_kafka import Consumer

from benchmarks.peers.job import (
    FETCH_QUEUE_BACKOFF_MS,
    SESSION_TIMEOUT_S,
    Progress,
    RunningSums,
    decode_sale,
    job_from_arguments,
    store_cells,
)

_BATCH = 5000
_LIBRARIES = ("confluent-kafka", "msgspec", "redis", "hiredis")


def main() -> None:
    """See the module."""
    job = job_from_arguments()
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": f"peer-{os.getpid()}",
            "session.timeout.ms": 1000 * SESSION_TIMEOUT_S,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": FETCH_QUEUE_BACKOFF_MS,
        }
    )
    consumer.subscribe([job.topic])
    client = redis.Redis.from_url(job.redis_url)
    sums, progress, counted = RunningSums(), Progress(job, _LIBRARIES), 0
    while True:
        messages = consumer.consume(_BATCH, timeout=0.05)
        if not messages:
            continue
        store_cells(client, sums.add(decode_sale(message.value()) for message in messages))
        consumer.commit(asynchronous=True)
        counted += len(messages)
        progress.stored(counted)


if __name__ == "__main__":
    main()
