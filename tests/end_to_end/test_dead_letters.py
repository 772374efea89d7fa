"""A wrong record becomes a dead letter, is mended, sent again and counted: once, on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from feature_store.features import FEATURE_INDEX, FEATURES
from tests.conftest import empty_redis
from tests.end_to_end.shop import Received, Shop, now_ms
from worker.cli import shelfcast
from worker.local_stack import LocalBroker, LocalRedis, LocalStack
from worker.transport import murmur2_partition


@pytest.fixture
def shop(servers: LocalStack, broker: LocalBroker, redis_server: LocalRedis, tmp_path: Path) -> Iterator[Shop]:
    """Without Triton: a baseline stands in for it."""
    shop = Shop(servers, tmp_path)
    yield shop
    shop.close()


def dlq(shop: Shop, *arguments: str) -> Result:
    return CliRunner().invoke(shelfcast, ["dlq", *arguments], env=shop.environment)


def letters(shop: Shop, count: int) -> list[str]:
    """PARTITION/OFFSET of the letters, receipts left out, once there are so many."""

    def enough(records: list[Received]) -> list[Received] | None:
        found = [record for record in records if "shelfcast.reason" in record.headers]
        return found if len(found) >= count else None

    found = shop.reader(f"{shop.settings.topic_orders}.dlq").wait_for(enough)
    return [f"{record.partition}/{record.offset}" for record in found]


def day_sums(shop: Shop, product: str) -> dict[str, float]:
    """Features of a product over all days."""

    async def read() -> Any:
        store = shop.store()
        found = await store.look_up(murmur2_partition(product, shop.settings.partition_count), product, "")
        await store.close()
        return found.sums["1d"][1].sum(axis=0) if found else [0] * len(FEATURES)

    sums = asyncio.run(read())
    return {name: sums[index] / FEATURES[index].units_per_one for name, index in FEATURE_INDEX.items()}


def test_a_mended_letter_is_counted_once(shop: Shop) -> None:
    shop.start_worker()
    shop.order("mug", 1)
    shop.order("mug", 5, currency="SEK", unit_price=2)
    (place,) = letters(shop, 1)

    assert "currency 'SEK', but this shop's is 'GBP'" in dlq(shop, "list").output
    assert f"shelfcast dlq retry {place}" in dlq(shop, "show", place).output
    assert dlq(shop, "retry", place).exit_code == 1  # as it is, it would only come back
    for _ in range(3):
        assert dlq(shop, "retry", place, "--set", "currency=GBP").exit_code == 0
    shop.wait_for_positions("orders", 3)  # two sent by the shop, one by the first retry

    shop.order("mug", 10)  # whatever else might be on its way is counted before this one
    shop.wait_for_positions("orders", 4)
    sums = day_sums(shop, "mug")
    assert (sums["units"], sums["order_lines"], sums["revenue"]) == (16, 3, 1 * 2.5 + 5 * 2 + 10 * 2.5)
    assert "nothing to do" in dlq(shop, "show", place).output


def test_a_record_that_went_astray_is_counted_where_it_belongs(shop: Shop) -> None:
    shop.start_worker()
    wrong = 1 - murmur2_partition("mug", shop.settings.partition_count)
    order = {"event_time": now_ms(), "product_id": "mug", "quantity": 4, "unit_price": 1}
    shop.send("orders", order, partition=wrong)
    letters(shop, 1)
    assert dlq(shop, "retry", "--all").exit_code == 0
    shop.wait_for_positions("orders", 2)
    assert day_sums(shop, "mug")["units"] == 4


def test_letters_set_aside_again_by_a_rebuild_are_not_counted_again(shop: Shop, redis_server: LocalRedis) -> None:
    worker = shop.start_worker()
    shop.order("mug", 5, currency="SEK")
    letters(shop, 1)
    mend_all = ("retry", "--all", "--set", "currency=GBP")
    assert dlq(shop, *mend_all).exit_code == 0
    shop.wait_for_positions("orders", 2)

    worker.kill()
    empty_redis(redis_server)
    worker.start()  # builds the features anew, from the first record on
    first, copy = letters(shop, 2)
    shop.wait_for_positions("orders", 2)
    assert dlq(shop, "show", copy).output == dlq(shop, "show", first).output
    assert "there are no such letters left" in dlq(shop, *mend_all).output
    assert day_sums(shop, "mug")["units"] == 5
