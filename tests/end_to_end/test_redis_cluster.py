"""A worker on a Redis Cluster whose slots move and whose masters die while orders flow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from feature_store.layout import Keys
from tests.end_to_end.order_stream import OrderStream, lines_of, wait_until
from tests.end_to_end.shop import Shop
from worker.local_cluster import LocalRedisCluster
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker

_PARTITIONS = 6


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalRedisCluster]:
    with LocalRedisCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def shop(stack: LocalStack, cluster: LocalRedisCluster, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(stack, tmp_path, redis_url=cluster.url, redis_cluster="true", partition_count=_PARTITIONS)
    yield shop
    shop.close()


def test_orders_count_once_while_slots_move_and_masters_die(shop: Shop, cluster: LocalRedisCluster) -> None:
    slots = [cluster.slot_of(Keys(shop.settings.namespace, p).meta) for p in range(_PARTITIONS)]
    worker = shop.start_worker()
    with OrderStream(shop) as orders:
        orders.wait_for_more(500)
        for slot in slots[:2]:
            move = cluster.begin_move(slot)
            while move.move_keys(20):
                orders.wait_for_more(50)
            move.finish()
            orders.wait_for_more(200)
        for slot in slots[2:4]:
            before = outages(worker)
            cluster.fail_over(cluster.owner_of(slot))
            wait_until(lambda before=before: outages(worker).ended > before.ended)  # type: ignore[misc]
            orders.wait_for_more(200)
            cluster.start()
            orders.wait_for_more(200)

    orders.assert_all_counted_once()
    assert worker.is_running
    mug = shop.order("mug", 3)
    assert shop.forecast("mug", "1d").observed == mug["quantity"]
    begun, ended = outages(worker)
    assert 2 <= begun == ended <= 8  # one for each failover; slots on their way may be met several times, or not at all


class Outages(NamedTuple):
    """As the worker's log tells."""

    begun: int
    ended: int


def outages(worker: LocalWorker) -> Outages:
    return Outages(len(lines_of(worker, "Redis is away")), len(lines_of(worker, "Redis is back")))
