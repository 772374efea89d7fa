"""Plain Faust: an agent with `take(1000)`, raw values decoded by msgspec, a Redis pipeline. See `job` for the job.

This is the fastest form of plain Faust that was found; its models and tables are slower. Its sums live in memory:
killed, it starts with empty ones and writes over what stands in Redis.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import faust
import redis.asyncio

from benchmarks.peers.job import (
    SESSION_TIMEOUT_S,
    Job,
    Progress,
    RunningSums,
    decode_sale,
    hset_commands,
    job_from_arguments,
)

_BATCH = 1000
_LIBRARIES = ("faust-streaming", "aiokafka", "msgspec", "redis", "hiredis")


def create_app(job: Job) -> faust.App:
    """An app with one agent."""
    app = faust.App(
        f"peer-{os.getpid()}",
        broker=f"aiokafka://{job.bootstrap_servers}",
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=SESSION_TIMEOUT_S / 3,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
        datadir=str(Path.cwd() / "data"),  # whoever starts it removes its directory
    )
    client = redis.asyncio.Redis.from_url(job.redis_url)
    sums, progress = RunningSums(), Progress(job, _LIBRARIES)

    async def sum_up(stream: Any) -> None:
        counted = 0
        async for values in stream.take(_BATCH, within=1.0):
            pipeline = client.pipeline(transaction=False)
            for command in hset_commands(sums.add(map(decode_sale, values))):
                pipeline.execute_command(*command)
            await pipeline.execute()
            counted += len(values)
            progress.stored(counted)

    app.agent(app.topic(job.topic, value_type=bytes, value_serializer="raw"), name="sum_up")(sum_up)
    return app


def main() -> None:
    """See the module."""
    app = create_app(job_from_arguments())
    sys.argv[1:] = []  # Faust would read the command line too
    faust.Worker(app, loglevel="ERROR", quiet=True, redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main()
