"""Lanes begin and end with assignments, on a Redis that is away meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from feature_store.calendar_time import ShopCalendar
from feature_store.decoding import DecodeLimits
from feature_store.plan import Retention
from feature_store.store import FeatureStore
from tests.feature_store.stores import Noticed
from tests.worker.records import records_of
from worker.lane_keeper import LaneKeeper
from worker.lane_state import LaneRules
from worker.local_stack import LocalRedis
from worker.records import Records

_TOPIC = "orders"


class Fetched(NamedTuple):
    """A batch of partition 0."""

    topic: str
    records: Records
    partition: int = 0
    epoch: int = 0


class Reader:
    """In place of the consumer: takes every commit, and remembers where it was sent and what it was told."""

    def __init__(self) -> None:
        self.sought: list[tuple[str, int]] = []
        self.sought_positions: list[tuple[str, int | None]] = []
        self.applied_to: dict[str, int] = {}

    def epoch(self, topic: str, partition: int) -> int:
        return 0

    def taken(self, batch: Any) -> None: ...

    def applied(self, topic: str, partition: int, position: int) -> None:
        self.applied_to[topic] = position

    async def seek_to(self, topic: str, partition: int, position: int | None) -> None:
        self.sought.append((topic, partition))
        self.sought_positions.append((topic, position))

    async def commit_now(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        return True


async def _send(*_: object) -> None:
    raise AssertionError("nothing is to be sent")


async def _crash(error: BaseException) -> None:
    raise error


@asynccontextmanager
async def open_keeper(url: str, topics: Sequence[str] = (_TOPIC,)) -> AsyncIterator[tuple[LaneKeeper, Reader]]:
    store, reader = FeatureStore(url, namespace="t", partition_count=4, forecast_freqs=("1d",)), Reader()
    rules = LaneRules(
        sources={topic: topic for topic in topics},
        dedup_window_ms={},
        clock_topic="",
        retention=Retention(ShopCalendar("UTC"), {"5m": 288, "1h": 504, "1d": 400}),
        forecast_freqs=("1d",),
        limits=DecodeLimits(),
        out_of_orderness_ms=5_000,
        max_future_ms=600_000,
        live_days=90,
        max_reject_share=0.5,
        reject_window=200,
        send=_send,
    )
    keeper = LaneKeeper(store, reader, rules, topics=topics, on_tick=None, crash=_crash)
    try:
        yield keeper, reader
    finally:
        await asyncio.gather(*keeper.close())
        await store.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> LocalRedis:
    """Not started yet."""
    return LocalRedis(tmp_path)


async def test_an_assignment_overtaken_while_redis_was_away_begins_no_lane(own_redis: LocalRedis) -> None:
    own_redis.start()
    own_redis.stop()
    async with open_keeper(own_redis.url) as (keeper, reader):
        with Noticed() as noticed:
            first = asyncio.create_task(keeper.reassign({(_TOPIC, 0), (_TOPIC, 1), (_TOPIC, 2)}))
            await noticed.in_call(first)
        second = asyncio.create_task(keeper.reassign({(_TOPIC, 2), (_TOPIC, 3)}))
        await asyncio.to_thread(own_redis.start)
        await asyncio.gather(first, second)
        assert set(keeper.lanes) == {2, 3}
        assert keeper.all_run
        assert reader.sought == [(_TOPIC, 2), (_TOPIC, 3)]
    own_redis.stop()


async def test_topics_that_come_together_are_one_step_and_a_gap_in_one_keeps_no_other_back(redis_url: str) -> None:
    order = {"event_time": time.time_ns() // 1_000_000, "product_id": "mug", "quantity": 1, "unit_price": 2}
    click = {"event_time": order["event_time"], "product_id": "mug", "action": "view"}
    async with open_keeper(redis_url, topics=("orders", "clicks")) as (keeper, reader):
        await keeper.reassign({("orders", 0), ("clicks", 0)})
        keeper.offer(Fetched("orders", records_of("orders", [order])))
        keeper.offer(Fetched("clicks", records_of("clicks", [click])))
        await _until(lambda: reader.applied_to == {"orders": 1, "clicks": 1})
        assert keeper.lanes[0].claim.dirty["1d"] == {"mug": 1}  # two steps would have touched it twice
        keeper.offer(Fetched("orders", records_of("orders", [order], first_offset=7)))
        keeper.offer(Fetched("clicks", records_of("clicks", [click], first_offset=1)))
        await _until(lambda: reader.applied_to == {"orders": 1, "clicks": 2})
        assert reader.sought_positions[-1] == ("orders", 1)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
