"""Plain Faust doing the first half of our job: `take(1000)` and a Redis pipeline. A program, run by `ingest`.

    python faust_peer.py BOOTSTRAP_SERVERS TOPIC REDIS_URL EVENTS

Sums units and cents by product and five minutes, keeps the running sums in Redis (hash `peer:PRODUCT`, bucket ->
"units,cents"), and after EVENTS of them prints one line of JSON: events, seconds and processor seconds between its
first stored batch and its last, and the order_ids it has counted. It knows nothing of positions: killed, it would count
some orders twice or never.
"""

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import faust
import msgspec
import redis.asyncio


class Sale(msgspec.Struct):
    """The fields it needs."""

    event_time: int
    product_id: str
    quantity: int
    unit_price: float
    order_id: str


def create_app(bootstrap_servers: str, topic: str, redis_url: str, wanted: int) -> faust.App:
    """An app whose one agent ends the process when it has counted enough."""
    app = faust.App(
        f"peer-{os.getpid()}",
        broker=f"aiokafka://{bootstrap_servers}",
        broker_session_timeout=6,
        broker_heartbeat_interval=2,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
        datadir=str(Path.cwd() / "data"),  # whoever starts it removes its directory
    )
    client = redis.asyncio.Redis.from_url(redis_url)
    decode = msgspec.json.Decoder(Sale).decode
    sums: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    counted: list[str] = []
    started: list[tuple[int, float, float]] = []  # events before, clock, processor seconds

    async def sum_up(stream: Any) -> None:
        async for values in stream.take(1000, within=1.0):
            touched = set()
            for sale in map(decode, values):
                cell = (sale.product_id, sale.event_time // 300_000)
                total = sums[cell]
                total[0] += sale.quantity
                total[1] += sale.quantity * round(sale.unit_price * 100)
                touched.add(cell)
                counted.append(sale.order_id)
            pipeline = client.pipeline(transaction=False)
            for product_id, bucket in touched:
                units, cents = sums[product_id, bucket]
                pipeline.hset(f"peer:{product_id}", str(bucket), f"{units},{cents}")
            await pipeline.execute()
            if not started:
                started.append((len(counted), time.monotonic(), time.process_time()))
            elif len(counted) >= wanted:
                before, clock, cpu = started[0]
                result = {
                    "events": len(counted) - before,
                    "seconds": time.monotonic() - clock,
                    "cpu_s": time.process_time() - cpu,
                    "order_ids": counted,
                }
                print("\n" + json.dumps(result), flush=True)
                os._exit(0)

    app.agent(app.topic(topic, value_type=bytes, value_serializer="raw"), name="sum_up")(sum_up)
    return app


def main() -> None:
    """See the module."""
    bootstrap_servers, topic, redis_url, wanted = sys.argv[1:]
    app = create_app(bootstrap_servers, topic, redis_url, int(wanted))
    faust.Worker(app, loglevel="ERROR", quiet=True, redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main()
