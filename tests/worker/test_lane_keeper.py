"""Lanes begin and end with assignments, on a Redis that is away meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from feature_store.calendar_time import ShopCalendar
from feature_store.decoding import DecodeLimits
from feature_store.plan import Retention
from feature_store.store import FeatureStore
from tests.feature_store.stores import Noticed
from worker.lane_keeper import LaneKeeper
from worker.lane_state import LaneRules
from worker.local_stack import LocalRedis

_TOPIC = "orders"


class Reader:
    """In place of the consumer: takes every commit, and remembers where it was sent."""

    def __init__(self) -> None:
        self.sought: list[tuple[str, int]] = []

    def epoch(self, topic: str, partition: int) -> int:
        return 0

    def taken(self, batch: Any) -> None: ...

    def applied(self, topic: str, partition: int, position: int) -> None:
        raise AssertionError("nothing was read")

    async def seek_to(self, topic: str, partition: int, position: int | None) -> None:
        self.sought.append((topic, partition))

    async def commit_now(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        return True


async def _send(*_: object) -> None:
    raise AssertionError("nothing is to be sent")


async def _crash(error: BaseException) -> None:
    raise error


@asynccontextmanager
async def open_keeper(url: str) -> AsyncIterator[tuple[LaneKeeper, Reader]]:
    store, reader = FeatureStore(url, namespace="t", partition_count=4, forecast_freqs=("1d",)), Reader()
    rules = LaneRules(
        sources={_TOPIC: "orders"},
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
    keeper = LaneKeeper(store, reader, rules, topics=[_TOPIC], on_tick=None, crash=_crash)
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
