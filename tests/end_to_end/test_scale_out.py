"""Two workers of one namespace share the partitions, and whole lanes only."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.shop import PATIENCE_S, Shop
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker


@pytest.fixture
def shop(stack: LocalStack, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(stack, tmp_path, partition_count=3)
    yield shop
    shop.close()


def _lanes(worker: LocalWorker) -> int:
    with urllib.request.urlopen(f"http://{worker.address}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("shelfcast_lanes "))))


def test_a_second_worker_takes_over_whole_lanes_and_gives_them_back(shop: Shop) -> None:
    products = [f"p{n}" for n in range(30)]
    first = shop.start_worker()
    for product in products:
        shop.order(product, 1)
    shop.wait_for_positions("orders", 30)
    second = shop.start_worker()
    deadline = time.monotonic() + PATIENCE_S
    while not (_lanes(first) and _lanes(second) and _lanes(first) + _lanes(second) == 3):
        assert time.monotonic() < deadline, "the lanes were not shared"
        time.sleep(0.1)
    for product in products:
        shop.order(product, 1)
    for product in products:
        shop.forecast(product, "1d", lambda f: f.observed == 2)
    first.stop()
    assert first.exit_code == 0
    for product in products:
        shop.order(product, 1)
    for product in products:
        shop.forecast(product, "1d", lambda f: f.observed == 3)
    assert _lanes(second) == 3
