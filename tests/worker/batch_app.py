"""A small Faust app on the batch transport, run as a program: what its agents get it writes, one JSON object a line.

    python -m tests.worker.batch_app DESCRIPTOR BOOTSTRAP_SERVERS GROUP BATCH_TOPIC PLAIN_TOPIC POSITION

DESCRIPTOR is the open file to write to: standard output carries Faust's own greeting.

The batch topic is read from POSITION on in every partition; what lies before offset 100 counts as applied.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

import faust
from faust import streams

from worker.record_fetcher import RecordBatch
from worker.transport import BatchConsumer, BatchSchema, BatchTransport

APPLIED = 100


def say(**what: Any) -> None:
    os.write(int(sys.argv[1]), json.dumps(what).encode() + b"\n")


def create_app(servers: str, group: str, batch_topic: str, plain_topic: str, position: int, data: str) -> faust.App:
    app = faust.App(
        group,
        broker=f"aiokafka://{servers}",
        broker_session_timeout=6,
        broker_heartbeat_interval=2,
        broker_commit_interval=0.1,
        topic_disable_leader=True,
        autodiscover=False,
        web_enabled=False,
        datadir=data,
    )
    app.transport = BatchTransport(app.conf.broker_consumer, app)
    consumer: BatchConsumer = app.consumer

    async def seek(assigned: set[tuple[str, int]]) -> None:
        for topic, partition in sorted(assigned):
            await consumer.seek_to(topic, partition, position)
        say(assigned=sorted(assigned))

    consumer.batch_topics = frozenset({batch_topic})
    consumer.fetcher_config = {"bootstrap.servers": servers, "group.id": "fetcher", "fetch.wait.max.ms": 10}
    consumer.on_seek = seek

    async def take_batches(stream: Any) -> None:
        async for batch in stream:
            assert isinstance(batch, RecordBatch)
            values = [None if value is None else value.decode() for value in batch.records.values]
            say(partition=batch.partition, offsets=list(batch.records.offsets), values=values)
            consumer.taken(batch)
            consumer.applied(batch.topic, batch.partition, min(batch.records.next_offset, APPLIED))

    async def take_plain(stream: Any) -> None:
        async for value in stream:
            say(plain=value.decode())

    app.agent(app.topic(batch_topic, schema=BatchSchema(), acks=False), name="batches")(take_batches)
    app.agent(app.topic(plain_topic, value_type=bytes, value_serializer="raw"), name="plain")(take_plain)
    return app


def main() -> None:
    servers, group, batch_topic, plain_topic, position = sys.argv[2:]
    say(compiled=streams._CStreamIterator is not None)
    with tempfile.TemporaryDirectory() as data:
        app = create_app(servers, group, batch_topic, plain_topic, int(position), data)
        faust.Worker(app, loglevel="ERROR", quiet=True, redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main()
