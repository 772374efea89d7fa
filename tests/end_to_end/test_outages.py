"""A server is away while orders flow: nothing is lost, memory stays bounded, the worker recovers by itself, and its log
has one line at each end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.cable import FarBroker
from tests.end_to_end.order_stream import (
    MOST_ORDERS_A_SECOND,
    PRODUCTS,
    OrderStream,
    troubles,
    wait_for_lines,
    wait_until,
)
from tests.end_to_end.shop import Shop
from worker.local_server import LocalServer
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker

OpenShop = Callable[..., Shop]


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Not the session's: these tests take its servers down."""
    stack = LocalStack(tmp_path_factory.mktemp("stack"))
    stack.kafka = FarBroker(stack.directory)
    stack.redis.launch()
    stack.triton.launch()
    stack.kafka.start()
    stack.kafka.mend()
    stack.redis.wait_until_ready()
    stack.triton.wait_until_ready()
    yield stack
    stack.stop()


@pytest.fixture
def open_shop(own_stack: LocalStack, tmp_path: Path) -> Iterator[OpenShop]:
    shops: list[Shop] = []

    def open_(**settings: Any) -> Shop:
        shops.append(Shop(own_stack, tmp_path, **settings))
        return shops[-1]

    yield open_
    for shop in shops:
        shop.close()


def pause(server: LocalServer) -> None:
    """It no longer answers, and its connections stay."""
    server.send_signal(signal.SIGSTOP)


def go_on(server: LocalServer) -> None:
    server.send_signal(signal.SIGCONT)


def assert_one_line_at_each_end(worker: LocalWorker, away: str, back: str) -> None:
    found = troubles(worker)
    assert len(found) == 2, found
    assert away in found[0]
    assert back in found[1]


@pytest.mark.parametrize(("leave", "come_back"), [(pause, go_on), (LocalServer.kill, LocalServer.start)])
def test_redis_away(own_stack: LocalStack, open_shop: OpenShop, leave: Any, come_back: Any) -> None:
    shop = open_shop()
    worker = shop.start_worker()
    with OrderStream(shop) as orders:
        orders.wait_for_more(500)
        leave(own_stack.redis)
        try:
            wait_for_lines(worker, "Redis is away", 1)
            orders.wait_for_more(2000)
        finally:
            come_back(own_stack.redis)
        wait_for_lines(worker, "Redis is back", 1)
        orders.wait_for_more(500)
    orders.assert_all_counted_once()
    assert worker.is_running
    assert_one_line_at_each_end(worker, "Redis is away", "Redis is back")


# The real worker; Faust waits less long for lanes to begin.
_IMPATIENT = """
import sys
import faust
import worker.app
from worker.cli import main

class Impatient(faust.App):
    def __init__(self, *args, **options):
        super().__init__(*args, broker_request_timeout=7.0, **options)

worker.app.faust.App = Impatient
sys.argv = ["shelfcast", "worker"]
main()
"""


class ImpatientWorker(LocalWorker):
    def _command(self) -> list[str]:
        return [sys.executable, "-c", _IMPATIENT]


def test_partitions_are_reassigned_while_redis_is_away(own_stack: LocalStack, open_shop: OpenShop) -> None:
    shop = open_shop(partition_count=4, watchdog_s=0)
    other = shop.start_worker()
    with ImpatientWorker(shop.directory, shop.environment, name="worker-impatient") as worker:
        with OrderStream(shop) as orders:
            orders.wait_for_more(500)
            own_stack.redis.kill()
            try:
                wait_for_lines(worker, "Redis is away", 1)
                other.kill()
                orders.wait_for_more(20 * MOST_ORDERS_A_SECOND)  # the group's session and Faust's patience have ended
            finally:
                own_stack.redis.start()
            wait_for_lines(worker, "Redis is back", 1)
        orders.assert_all_counted_once()


def test_watchdog_lets_a_known_outage_pass(own_stack: LocalStack, open_shop: OpenShop) -> None:
    patience_s = 8
    shop = open_shop(watchdog_s=patience_s)
    worker = shop.start_worker()
    with OrderStream(shop) as orders:
        orders.wait_for_more(500)
        own_stack.redis.kill()
        try:
            wait_for_lines(worker, "Redis is away", 1)
            orders.wait_for_more(2 * patience_s * MOST_ORDERS_A_SECOND)
        finally:
            own_stack.redis.start()
        wait_for_lines(worker, "Redis is back", 1)
    orders.assert_all_counted_once()
    assert worker.is_running


def test_memory_stays_bounded_while_redis_is_away(own_stack: LocalStack, open_shop: OpenShop) -> None:
    shop = open_shop()
    worker = shop.start_worker()
    own_stack.redis.kill()
    try:
        orders = OrderStream(shop)
        orders.flood(100_000, PRODUCTS[0])  # more than there is room for
        wait_for_lines(worker, "Redis is away", 1)
        full_mb = settled_rss_mb(worker)
        orders.flood(150_000, PRODUCTS[0])  # as bare bytes these would take 20 MB, were they read all the same
        assert settled_rss_mb(worker) < full_mb + 10
    finally:
        own_stack.redis.start()
    orders.assert_all_counted_once()


def settled_rss_mb(worker: LocalWorker) -> float:
    """The worker's memory once it no longer grows."""
    seen: list[float] = []

    def settled() -> bool:
        seen.append(rss_mb(worker.pid))
        return len(seen) > 100 and max(seen[-100:]) - min(seen[-100:]) < 1  # samples, 20 ms apart

    wait_until(settled)
    return seen[-1]


def rss_mb(pid: int) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def cut(broker: FarBroker) -> None:
    """Connections end, and new ones are refused."""
    broker.cable.cut()


@pytest.mark.parametrize(("leave", "come_back"), [(pause, go_on), (cut, FarBroker.mend)])
def test_broker_away(own_stack: LocalStack, open_shop: OpenShop, leave: Any, come_back: Any) -> None:
    shop = open_shop()
    worker = shop.start_worker()
    with OrderStream(shop) as orders:
        orders.wait_for_more(500)
        before_mb = rss_mb(worker.pid)
        leave(own_stack.kafka)
        try:
            wait_for_lines(worker, "Kafka at .* is away", 1)
            orders.wait_for_more(2000)
            during_mb = rss_mb(worker.pid)
        finally:
            come_back(own_stack.kafka)
        wait_for_lines(worker, "Kafka is back", 1)
        orders.wait_for_more(500)
    orders.assert_all_counted_once()
    assert during_mb < before_mb + 20
    assert_one_line_at_each_end(worker, f"Kafka at {shop.settings.kafka_bootstrap_servers} is away", "Kafka is back")
    sold = shop.order("mug", 3)
    assert shop.forecast("mug", "1d").observed == sold["quantity"]


def test_triton_too_slow(own_stack: LocalStack, open_shop: OpenShop) -> None:
    shop = open_shop()
    worker = shop.start_worker()
    shop.order("mug", 2)
    assert not shop.forecast("mug", "1d").degraded
    with OrderStream(shop) as orders:
        pause(own_stack.triton)
        try:
            wait_for_lines(worker, "Triton at .* is away", 1)
            shop.order("mug", 3)
            stand_in = shop.forecast("mug", "1d", lambda f: f.observed == 5)
            orders.wait_for_more(2000)
        finally:
            go_on(own_stack.triton)
        assert stand_in.degraded
        # Nothing more is ordered of it: what was forecast by the baseline is forecast anew.
        assert not shop.forecast("mug", "1d", lambda f: f.revision > stand_in.revision and not f.degraded).degraded
        wait_for_lines(worker, "Triton is back", 1)
    orders.assert_all_counted_once()
    assert_one_line_at_each_end(worker, f"Triton at {shop.settings.triton_url} is away", "Triton is back")
