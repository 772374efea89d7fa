"""Orders that flow while something happens to a server, and what must stand in the features afterwards."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Self
from zoneinfo import ZoneInfo

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from feature_store.features import FEATURES
from tests.end_to_end.shop import PATIENCE_S, Shop, now_ms
from worker.local_worker import LocalWorker
from worker.topics import kafka_client_config
from worker.transport import murmur2_partition

Cells = Counter[tuple[str, str, int, str]]  # (product, freq, bucket, feature) -> thousandths, millionths or a count

_PAUSE_S = 0.02
_ORDERS_A_PAUSE = 10
MOST_ORDERS_A_SECOND = round(_ORDERS_A_PAUSE / _PAUSE_S)
PRODUCTS = [f"product-{n}" for n in range(50)]


class OrderStream:
    """Sends orders from a thread, from entering to leaving the context, as a busy shop has them."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._topic = shop.settings.topic_orders
        # Nothing may be given up while the broker is away, however long.
        config = kafka_client_config(shop.settings) | {
            "partitioner": "murmur2",
            "message.timeout.ms": 0,
            "queue.buffering.max.messages": 1_000_000,
        }
        self._producer = Producer(config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._random = random.Random(5)
        self.made = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)

    def _send(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            for _ in range(_ORDERS_A_PAUSE):
                self._produce(self._random.choice(PRODUCTS))
            self._producer.poll(0)

    def flood(self, orders: int, product: str) -> None:
        """Outside of the context: send orders of one product at once."""
        for _ in range(orders):
            self._produce(product)
            self._producer.poll(0)
        assert self._producer.flush(PATIENCE_S) == 0

    def _produce(self, product: str) -> None:
        order = {
            "event_time": now_ms() - self._random.randrange(600_000),
            "product_id": product,
            "order_id": str(self.made),
            "kind": self._random.choice(["sale", "sale", "sale", "return"]),
            "quantity": self._random.randrange(1, 5),
            "unit_price": self._random.randrange(1, 2000) / 100,
        }
        self._producer.produce(self._topic, json.dumps(order).encode(), product.encode())
        self.made += 1

    def wait_for_more(self, orders: int) -> None:
        """Wait until so many more have been made."""
        goal = self.made + orders
        wait_until(lambda: self.made >= goal)

    def in_topic(self) -> list[dict[str, Any]]:
        """After the end: all orders as the broker holds them, which is what counts."""
        assert self._producer.flush(PATIENCE_S) == 0
        config = kafka_client_config(self._shop.settings) | {"group.id": "order-stream"}
        consumer = Consumer(config)
        count = self._shop.settings.partition_count
        consumer.assign([TopicPartition(self._topic, p, OFFSET_BEGINNING) for p in range(count)])
        orders: list[dict[str, Any]] = []
        ids: set[str] = set()  # a record whose acknowledgement was lost may stand there twice

        def all_sent() -> bool:
            for message in consumer.consume(5000, timeout=0.2):
                assert message.error() is None, message.error()
                orders.append(json.loads(message.value() or b"", parse_float=Decimal))
                if "order_id" in orders[-1]:  # it is one of these, and not one that the test itself has sent
                    ids.add(orders[-1]["order_id"])
            return len(ids) == self.made

        wait_until(all_sent)
        consumer.close()
        return orders

    def assert_all_counted_once(self) -> None:
        """After the end: wait until the features have reached the end of the topic, and compare them cell by cell."""
        orders = self.in_topic()
        self._shop.wait_for_positions("orders", len(orders))
        products = {order["product_id"] for order in orders}
        assert stored_cells(self._shop, products) == recomputed_cells(orders, self._shop.settings.time_zone)


def recomputed_cells(orders: list[dict[str, Any]], time_zone: str) -> Cells:
    """Order by order, with datetime and Decimal. All buckets are recent: nothing has left the retention."""
    cells: Cells = Counter()
    for order in orders:
        seconds = order["event_time"] // 1000
        local = dt.datetime.fromtimestamp(seconds, ZoneInfo(time_zone)).date()
        buckets = {"5m": seconds // 300, "1h": seconds // 3600, "1d": (local - dt.date(1970, 1, 1)).days}
        quantity = Decimal(order["quantity"])
        if order.get("kind") == "return":
            amounts = {"returned_units": quantity * 1000}
        else:
            revenue = quantity * Decimal(order["unit_price"]) * 1_000_000
            amounts = {"units": quantity * 1000, "order_lines": Decimal(1), "revenue": revenue}
        for feature, amount in amounts.items():
            for freq, bucket in buckets.items():
                cells[order["product_id"], freq, bucket, feature] += int(amount)
    return cells


def stored_cells(shop: Shop, products: set[str]) -> Cells:
    """What stands in Redis, zeros left out."""

    async def read() -> Cells:
        store, cells = shop.store(), Cells()
        for product in products:
            partition = murmur2_partition(product, shop.settings.partition_count)
            found = await store.look_up(partition, product, "")
            for freq, (buckets, values) in found.sums.items() if found else ():
                for bucket, row in zip(buckets.tolist(), values.tolist(), strict=True):
                    for feature, value in zip(FEATURES, row, strict=True):
                        if value:
                            cells[product, freq, bucket, feature.name] += value
        await store.close()
        return cells

    return asyncio.run(read())


def troubles(worker: LocalWorker) -> list[str]:
    """What the worker has warned of, but for what it says of single partitions."""
    lines = [line.partition("] [")[2].partition("] [")[2] for line in lines_of(worker, r"\[WARNING\]", r"\[ERROR\]")]
    return [line for line in lines if "] partition " not in line]


def lines_of(worker: LocalWorker, *patterns: str) -> list[str]:
    """Lines of the worker's log in which one of the regular expressions is found."""
    lines = worker.log_path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if any(re.search(pattern, line) for pattern in patterns)]


def wait_for_lines(worker: LocalWorker, pattern: str, count: int) -> None:
    """Wait until the worker's log has so many such lines."""
    wait_until(lambda: len(lines_of(worker, pattern)) >= count, lambda: worker.log_path.read_text()[-3000:])


def wait_until(condition: Callable[[], bool], explain: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"it never came true; {explain()}"
        time.sleep(0.02)
