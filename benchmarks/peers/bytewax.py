"""Bytewax: sales summed by batch, then as the state of a keyed operator, and a sink that pipelines. See `job`.

Its recovery store is off. With one, it would go on from its last snapshot after a kill and write the sums since then
once more; they are absolute, so Redis would come right again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import bytewax.operators as op
import redis
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from benchmarks.peers.job import (
    BUCKET_MS,
    FETCH_QUEUE_BACKOFF_MS,
    Cell,
    Job,
    Progress,
    decode_sale,
    job_from_arguments,
    store_cells,
)

_BATCH = 5000
_LIBRARIES = ("bytewax", "confluent-kafka", "msgspec", "redis", "hiredis")

Sums = dict[int, list[int]]  # of one product: units, cents and number of sales by bucket


def sum_batch(messages: Iterable[Any]) -> Iterable[tuple[str, Sums]]:
    """Decode a batch and sum it by product, so that fewer items go through the keyed operator."""
    by_product: dict[str, Sums] = {}
    for message in messages:
        sale = decode_sale(message.value)
        sums = by_product.setdefault(sale.product_id, {})
        _add(sums, sale.event_time // BUCKET_MS, (sale.quantity, sale.quantity * round(sale.unit_price * 100), 1))
    return by_product.items()


def _add(sums: Sums, bucket: int, more: Iterable[int]) -> None:
    total = sums.setdefault(bucket, [0, 0, 0])
    for i, value in enumerate(more):
        total[i] += value


class ProductSums(StatefulBatchLogic):  # type: ignore[misc]
    """Running sums of one product; passes on how many sales came and the buckets that they changed."""

    def __init__(self, sums: Sums | None) -> None:
        self._sums: Sums = sums or {}

    def on_batch(self, values: list[Sums]) -> tuple[Iterable[tuple[int, list[tuple[int, int, int]]]], bool]:
        sales = 0
        for sums in values:
            for bucket, more in sums.items():
                _add(self._sums, bucket, more)
                sales += more[2]
        changed = {bucket for sums in values for bucket in sums}
        rows = [(bucket, self._sums[bucket][0], self._sums[bucket][1]) for bucket in changed]
        return [(sales, rows)], StatefulBatchLogic.RETAIN

    def snapshot(self) -> Sums:
        return {bucket: list(total) for bucket, total in self._sums.items()}


class RedisPartition(StatelessSinkPartition):  # type: ignore[misc]
    """Writes what comes together in one round trip."""

    def __init__(self, job: Job) -> None:
        self._client = redis.Redis.from_url(job.redis_url)
        self._progress = Progress(job, _LIBRARIES)
        self._counted = 0

    def write_batch(self, items: list[tuple[str, tuple[int, list[tuple[int, int, int]]]]]) -> None:
        cells: list[Cell] = [(product, *row) for product, (_, rows) in items for row in rows]
        store_cells(self._client, cells)
        self._counted += sum(sales for _, (sales, _) in items)
        self._progress.stored(self._counted)


class RedisSink(DynamicSink):  # type: ignore[misc]
    """The running sums, in Redis."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def build(self, step_id: str, worker_index: int, worker_count: int) -> RedisPartition:
        return RedisPartition(self._job)


def create_flow(job: Job) -> Dataflow:
    """From Kafka to Redis."""
    flow = Dataflow("sums")
    config = {"fetch.queue.backoff.ms": str(FETCH_QUEUE_BACKOFF_MS)}
    source = KafkaSource([job.bootstrap_servers], [job.topic], add_config=config, batch_size=_BATCH)
    batches = op.flat_map_batch("sum_batch", op.input("orders", flow, source), sum_batch)
    op.output("store", op.stateful_batch("sum", batches, ProductSums), RedisSink(job))
    return flow


if __name__ == "__main__":
    cli_main(create_flow(job_from_arguments()))
