"""A lane in a replay: what a tick names is applied and forecast at that tick, or left to the lane's next owner."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from feature_store.store import FencedError
from forecaster.inputs import ModelInputs
from tests.worker.records import records_of
from tests.worker.test_lane_and_scheduler import Shop
from worker.errors import ForecastUnavailableError
from worker.held_records import ClosedError
from worker.lane import Lane
from worker.records import Records
from worker.scheduler import Scheduler

_HOUR_MS = 3_600_000


@pytest.fixture
def shop(redis_url: str) -> Shop:
    return Shop(redis_url)


async def replaying(shop: Shop, on_tick: Callable[[Lane], Awaitable[None]]) -> Lane:
    """A lane that holds three orders, of which ticks may name some."""
    rules = dataclasses.replace(shop.rules, clock_topic="clock", global_calendar_topic="holidays")
    lane = Lane(shop.store, await shop.store.claim(0), rules, on_tick=on_tick)
    await lane.handle(shop.orders(0, "mug", "jug", "cup"))
    return lane


def tick(shop: Shop, offset: int, **next_offsets: int) -> Records:
    time_ms = shop.now_ms + (offset + 1) * _HOUR_MS
    return records_of("clock", [{"event_time": time_ms, "next_offsets": next_offsets}], first_offset=offset)


async def test_a_tick_forecasts_what_it_names(shop: Shop) -> None:
    lane = await replaying(shop, shop.scheduler.drain)
    await lane.handle(tick(shop, 0, orders=2))
    assert {(f.item_id, f.cutoff) for f in shop.forecasts()} == {
        (item, shop.now_ms + _HOUR_MS) for item in ("mug", "jug")
    }
    await lane.handle(tick(shop, 1, orders=3))
    assert [(f.item_id, f.cutoff, f.positions) for f in shop.forecasts()] == [
        ("cup", shop.now_ms + 2 * _HOUR_MS, {"orders": 3})
    ]
    assert (await shop.store.peek_positions(0))["clock"] == 2


@pytest.mark.parametrize(("is_ended", "error"), [(False, FencedError), (True, ClosedError)])
async def test_a_tick_whose_forecasts_were_not_all_made_is_left_to_the_next_owner(
    shop: Shop, is_ended: bool, error: type[Exception]
) -> None:
    async def half_done(lane: Lane) -> None:
        if is_ended:
            lane.close()
        lane.closed = True
        await shop.scheduler.drain(lane)

    lane = await replaying(shop, half_done)
    with pytest.raises(error):
        await lane.handle(tick(shop, 0, orders=2))
    assert shop.forecasts() == []
    assert await shop.store.peek_positions(0) == {"orders": 2}
    again = await replaying(shop, shop.scheduler.drain)
    await again.handle(tick(shop, 0, orders=2))
    assert {(f.item_id, f.cutoff) for f in shop.forecasts()} == {
        (item, shop.now_ms + _HOUR_MS) for item in ("mug", "jug")
    }


async def test_forecasts_of_a_lane_that_ended_meanwhile_are_not_sent(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug"))

    async def ends(inputs: ModelInputs) -> Any:
        lane.close()
        raise ForecastUnavailableError("a baseline takes its place")

    rules = dataclasses.replace(shop.scheduler._rules, infer=ends)
    await Scheduler(rules).run_due([lane])
    assert shop.forecasts() == []
    assert (await shop.lane()).touched("1d") == ["mug"]


async def test_a_tick_waits_for_the_shops_calendar(shop: Shop) -> None:
    seen: list[int | str] = []

    async def read_to(next_offset: int) -> None:
        seen.append(next_offset)

    async def forecast(_: Lane) -> None:
        seen.append("forecast")

    rules = dataclasses.replace(
        shop.rules, clock_topic="clock", global_calendar_topic="holidays", global_calendar_read=read_to
    )
    lane = Lane(shop.store, await shop.store.claim(0), rules, on_tick=forecast)
    await lane.handle(tick(shop, 0, holidays=4))
    assert seen == [4, "forecast"]
