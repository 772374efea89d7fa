"""What the peers have in common: the sale they decode, the running sums they keep, how they tell how far they are.

    python -m benchmarks.peers.NAME BOOTSTRAP_SERVERS TOPIC REDIS_URL WARM_UP TOTAL

A peer is run by `benchmarks.ingest` with the interpreter of the peers' own environment. It reads sales from the start
of TOPIC, sums units and cents by product and five minutes of event time, and keeps the running sums in Redis: hash
`peer:PRODUCT`, field = bucket, value = "UNITS,CENTS". It prints a line of JSON when WARM_UP sales are stored and
another when TOTAL are, and runs on until it is killed, so that whoever started it can look at its process.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import redis

BUCKET_MS = 300_000
SESSION_TIMEOUT_S = 10  # on the embedded broker half of it is what a group's first join takes

# librdkafka lets a partition rest for a second once its queue is full; a fast reader has drained it long before.
FETCH_QUEUE_BACKOFF_MS = 5

Cell = tuple[str, int, int, int]  # product, bucket, units, cents


class Sale(msgspec.Struct, gc=False):
    """The fields that the job needs."""

    event_time: int
    product_id: str
    quantity: int
    unit_price: float


decode_sale = msgspec.json.Decoder(Sale).decode


class Job(NamedTuple):
    """What to read, where to store it, and after how many sales to say so."""

    bootstrap_servers: str
    topic: str
    redis_url: str
    warm_up: int
    total: int


def job_from_arguments() -> Job:
    """The job that the command line names."""
    bootstrap_servers, topic, redis_url, warm_up, total = sys.argv[1:]
    return Job(bootstrap_servers, topic, redis_url, int(warm_up), int(total))


class RunningSums:
    """Units and cents by product and bucket since the start, in memory: for libraries without a state of their own."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], list[int]] = {}

    def add(self, sales: Iterable[Sale]) -> list[Cell]:
        """Add sales. Returns the cells that they changed, as they are now."""
        sums, touched = self._sums, set()
        for sale in sales:
            cell = sale.product_id, sale.event_time // BUCKET_MS
            total = sums.get(cell)
            if total is None:
                total = sums[cell] = [0, 0]
            quantity = sale.quantity
            total[0] += quantity
            total[1] += quantity * round(sale.unit_price * 100)
            touched.add(cell)
        return [(*cell, sums[cell][0], sums[cell][1]) for cell in touched]


def hset_commands(cells: Iterable[Cell]) -> list[list[str | int]]:
    """One HSET a product with all its cells."""
    by_product: dict[str, list[str | int]] = {}
    for product, bucket, units, cents in cells:
        command = by_product.get(product)
        if command is None:
            command = by_product[product] = ["HSET", f"peer:{product}"]
        command += (bucket, f"{units},{cents}")
    return list(by_product.values())


def store_cells(client: redis.Redis, cells: Iterable[Cell]) -> None:
    """Write cells, all in one round trip."""
    pipeline = client.pipeline(transaction=False)
    for command in hset_commands(cells):
        pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
    pipeline.execute()


class Progress:
    """Tells how many sales stand in Redis."""

    def __init__(self, job: Job, libraries: Sequence[str]) -> None:
        self._milestones = [job.warm_up, job.total]
        self._libraries = {name: importlib.metadata.version(name) for name in libraries}

    def stored(self, count: int) -> None:
        """Call after each write, with the number of sales counted so far."""
        now_s = time.monotonic()
        while self._milestones and count >= self._milestones[0]:
            told = {"stored": self._milestones.pop(0), "clock_s": now_s, "libraries": self._libraries}
            # A line of its own, whatever a library may have printed before.
            print("\n" + json.dumps(told), flush=True)
