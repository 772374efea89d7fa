"""A lane and the scheduler on a real Redis, with a clock that the test moves and a list in place of Kafka."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from feature_store.calendar_time import ShopCalendar
from feature_store.decoding import DecodeLimits
from feature_store.plan import Retention
from feature_store.store import FeatureStore, FencedError
from worker.errors import ForecastUnavailableError
from worker.lane import GapError, Lane, LaneRules, Message, Record
from worker.scheduler import ForecastRules, Scheduler
from worker.schemas import Forecast

_NOON = int(dt.datetime(2026, 3, 4, 12, tzinfo=dt.UTC).timestamp() * 1000)
_DAY_MS = 86_400_000
_CALENDAR = ShopCalendar("UTC")


class Shop:
    """One partition with one topic."""

    def __init__(self, url: str) -> None:
        self.now_ms = _NOON
        self.sent: list[tuple[str, Message]] = []
        self.store = FeatureStore(url, namespace="t", partition_count=1, forecast_freqs=("1d",))
        self.rules = LaneRules(
            sources={"orders": "orders"},
            compacted=frozenset(),
            clock_topic="",
            retention=Retention(_CALENDAR, {"5m": 288, "1h": 504, "1d": 400}),
            forecast_freqs=("1d",),
            limits=DecodeLimits(),
            out_of_orderness_ms=5_000,
            max_future_ms=600_000,
            live_days=90,
            max_reject_share=0.5,
            reject_window=200,
            send=self._send,
            now_ms=lambda: self.now_ms,
        )
        self.scheduler = Scheduler(
            ForecastRules(
                topic="forecasts",
                freqs=("1d",),
                stored_freq={"1d": "1d"},
                prediction_length={"1d": 28},
                calendar=_CALENDAR,
                global_entries=tuple,
                config_hash="c",
                model_name="m",
                batch_size=4,
                refresh_per_s=1000,
                infer=self._no_model,
                model_is_away=lambda: True,
                issued_at_ms=lambda cutoff_ms: cutoff_ms,
            )
        )

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        self.sent += [(topic, message) for message in messages]

    async def _no_model(self, inputs: Any) -> Any:
        raise ForecastUnavailableError("no model here")

    async def lane(self) -> Lane:
        return Lane(self.store, await self.store.claim(0), self.rules)

    def order(self, offset: int, product_id: str, event_time: int | None = None) -> Record:
        order = {"event_time": event_time or self.now_ms, "product_id": product_id, "quantity": 1, "unit_price": 2}
        return Record("orders", offset, self.now_ms, product_id.encode(), msgspec.json.encode(order), ())

    def forecasts(self) -> list[Forecast]:
        """Those sent since the last call."""
        found = [msgspec.json.decode(m.value or b"", type=Forecast) for t, m in self.sent if t == "forecasts"]
        self.sent.clear()
        return found


@pytest.fixture
def shop(redis_url: str) -> Shop:
    return Shop(redis_url)


async def test_touched_items_are_forecast_once_however_often_they_were_touched(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle([shop.order(0, "mug"), shop.order(1, "mug"), shop.order(2, "jug")])
    assert await shop.scheduler.run_due([lane]) == 2
    assert {(f.item_id, f.observed) for f in shop.forecasts()} == {("mug", 2), ("jug", 1)}
    assert await shop.scheduler.run_due([lane]) == 0


async def test_every_live_item_is_forecast_anew_when_its_day_has_closed(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle([shop.order(n, f"p{n}") for n in range(6)])
    while await shop.scheduler.run_due([lane]):
        pass
    before = {f.item_id: f for f in shop.forecasts()}
    shop.now_ms += _DAY_MS // 2 + 4_000  # past midnight, but late events may still come
    assert lane.stale("1d") == []
    shop.now_ms += 2_000
    while await shop.scheduler.run_due([lane]):
        pass
    after = shop.forecasts()
    assert sorted(f.item_id for f in after) == sorted(before)
    assert all(f.steps[0].bucket_start == before[f.item_id].steps[1].bucket_start for f in after)
    assert all(f.revision == 2 and f.observed == 0 for f in after)


async def test_items_without_orders_for_long_are_no_longer_refreshed(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle([shop.order(0, "old"), shop.order(1, "new")])
    await shop.scheduler.run_due([lane])
    shop.now_ms += 60 * _DAY_MS
    await lane.handle([shop.order(2, "new")])
    shop.forecasts()
    shop.now_ms += 31 * _DAY_MS
    while await shop.scheduler.run_due([lane]):
        pass
    assert {f.item_id for f in shop.forecasts()} == {"new"}


async def test_a_forecast_owed_is_made_by_the_partitions_next_owner(shop: Shop) -> None:
    await (await shop.lane()).handle([shop.order(0, "mug")])
    heir = await shop.lane()
    assert heir.touched("1d") == ["mug"]
    assert await shop.scheduler.run_due([heir]) == 1


async def test_a_fenced_lane_counts_nothing_more(shop: Shop) -> None:
    zombie = await shop.lane()
    heir = await shop.lane()
    with pytest.raises(FencedError):
        await zombie.handle([shop.order(0, "mug")])
    await heir.handle([shop.order(0, "mug")])
    await shop.scheduler.run_due([heir])
    assert [f.observed for f in shop.forecasts()] == [1]


async def test_records_read_twice_count_once(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle([shop.order(0, "mug"), shop.order(1, "mug")])
    await lane.handle([shop.order(1, "mug"), shop.order(2, "mug")])
    await shop.scheduler.run_due([lane])
    assert [f.observed for f in shop.forecasts()] == [3]


async def test_a_gap_is_read_again_before_it_is_believed(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle([shop.order(0, "mug")])
    with pytest.raises(GapError) as gap:
        await lane.handle([shop.order(5, "mug")])
    assert gap.value.position == 1
    await lane.handle([shop.order(5, "mug")])
    assert lane.claim.positions == {"orders": 6}
