"""A lane and the scheduler on a real Redis, with a clock that the test moves and a list in place of Kafka."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from feature_store.calendar_time import ShopCalendar
from feature_store.decoding import DecodeLimits
from feature_store.plan import Retention
from feature_store.store import Done, FeatureStore, FencedError
from tests.worker.records import records_of
from worker import metrics
from worker.aside import Message
from worker.errors import ForecastUnavailableError
from worker.forecast_messages import ForecastRules
from worker.lane import GapError, Lane
from worker.lane_state import LaneRules
from worker.records import Records
from worker.scheduler import Scheduler
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
            clock_topic="",
            retention=Retention(_CALENDAR, {"5m": 288, "1h": 504, "1d": 400}),
            forecast_freqs=("1d",),
            limits=DecodeLimits(),
            dedup_window_ms={"orders": _DAY_MS},
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
                stored_buckets={"1d": 182},
                prediction_length={"1d": 28},
                calendar=_CALENDAR,
                global_entries=lambda _: (),
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

    def orders(self, first_offset: int, *product_ids: str, **fields: Any) -> Records:
        """Orders of now, one a product."""
        order = {"event_time": self.now_ms, "quantity": 1, "unit_price": 2} | fields
        return records_of(
            "orders", [{**order, "product_id": product_id} for product_id in product_ids], first_offset=first_offset
        )

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
    await lane.handle(shop.orders(0, "mug", "mug", "jug"))
    assert await shop.scheduler.run_due([lane]) == 2
    assert {(f.item_id, f.observed) for f in shop.forecasts()} == {("mug", 2), ("jug", 1)}
    assert await shop.scheduler.run_due([lane]) == 0


async def test_what_was_observed_is_exact_beyond_32_bits_and_the_first_step_is_never_below(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug", quantity=22268.733))  # as float32 it is 22268.732
    await shop.scheduler.run_due([lane])
    (forecast,) = shop.forecasts()
    assert forecast.observed == 22268.733
    assert min([*forecast.steps[0].quantiles, forecast.steps[0].mean]) >= 22268.733


async def test_rounds_that_overlap_leave_each_others_items_alone(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, *(f"p{n}" for n in range(6))))
    assert sorted(await asyncio.gather(*(shop.scheduler.run_due([lane]) for _ in range(3)))) == [0, 2, 4]
    assert sorted((f.item_id, f.revision) for f in shop.forecasts()) == [(f"p{n}", 1) for n in range(6)]


async def test_every_live_item_is_forecast_anew_when_its_day_has_closed(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, *(f"p{n}" for n in range(6))))
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
    await lane.handle(shop.orders(0, "old", "new"))
    await shop.scheduler.run_due([lane])
    shop.now_ms += 60 * _DAY_MS
    await lane.handle(shop.orders(2, "new"))
    shop.forecasts()
    shop.now_ms += 31 * _DAY_MS
    while await shop.scheduler.run_due([lane]):
        pass
    assert {f.item_id for f in shop.forecasts()} == {"new"}


async def test_a_forecast_owed_is_made_by_the_partitions_next_owner(shop: Shop) -> None:
    await (await shop.lane()).handle(shop.orders(0, "mug"))
    heir = await shop.lane()
    assert heir.touched("1d") == ["mug"]
    assert await shop.scheduler.run_due([heir]) == 1


async def test_an_item_touched_again_while_it_is_forecast_queues_behind_those_that_wait(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug", "jug", "cup"))
    read = await lane.read("1d", "1d", 182, ["mug"])
    await lane.handle(shop.orders(3, "mug"))
    await lane.forecasts_done("1d", [Done("mug", read.marks[0], None)])
    assert lane.touched("1d") == ["jug", "cup", "mug"]
    assert (await shop.lane()).touched("1d") == ["cup", "jug", "mug"], "to the next owner as well"


async def test_a_fenced_lane_counts_nothing_more(shop: Shop) -> None:
    zombie = await shop.lane()
    heir = await shop.lane()
    with pytest.raises(FencedError):
        await zombie.handle(shop.orders(0, "mug"))
    await heir.handle(shop.orders(0, "mug"))
    await shop.scheduler.run_due([heir])
    assert [f.observed for f in shop.forecasts()] == [1]


async def test_records_read_twice_count_once(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug", "mug"))
    await lane.handle(shop.orders(1, "mug", "mug"))
    await shop.scheduler.run_due([lane])
    assert [f.observed for f in shop.forecasts()] == [3]


async def test_records_that_the_reader_left_out_are_asked_for_again(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug"))
    with pytest.raises(GapError) as gap:
        await lane.handle(shop.orders(5, "mug"))
    assert gap.value.position == 1
    assert lane.claim.positions == {"orders": 1}


def _from(records: Records, start: int, log_start: int) -> Records:
    return dataclasses.replace(records, start=start, log_start=log_start)


def _lost() -> float:
    return metrics.REGISTRY.get_sample_value("shelfcast_lost_offsets_total", {"source": "orders"}) or 0


async def test_offsets_that_kafka_has_deleted_are_reported_with_their_extent(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug"))
    lost_before = _lost()
    await lane.handle(_from(shop.orders(9, "mug"), start=1, log_start=7))
    assert "orders partition 0: offsets 1 to 6 are no longer held by Kafka" in caplog.text
    assert _lost() - lost_before == 6
    assert lane.claim.positions == {"orders": 10}
    await shop.scheduler.run_due([lane])
    assert [f.observed for f in shop.forecasts()] == [2]


async def test_holes_in_the_log_are_no_loss(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug"))
    await lane.handle(_from(shop.orders(9, "mug"), start=1, log_start=0))
    assert "no longer held" not in caplog.text
    assert lane.claim.positions == {"orders": 10}


async def test_an_order_sent_twice_counts_once_in_one_batch_and_across_batches(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug", "mug", event_id="e1"))
    await lane.handle(shop.orders(2, "mug", "mug", event_id="e1"))
    await lane.handle(shop.orders(4, "mug", event_id="e2"))
    await shop.scheduler.run_due([lane])
    assert [f.observed for f in shop.forecasts()] == [2]
    assert lane.claim.positions == {"orders": 5}


async def test_an_order_sent_twice_counts_once_under_the_next_owner_too(shop: Shop) -> None:
    await (await shop.lane()).handle(shop.orders(0, "mug", event_id="e1"))
    heir = await shop.lane()
    await heir.handle(shop.orders(1, "mug", event_id="e1", event_time=shop.now_ms - _DAY_MS // 2))
    await heir.handle(shop.orders(2, "jug", event_id="e3"))
    await shop.scheduler.run_due([heir])
    assert {(f.item_id, f.observed) for f in shop.forecasts()} == {("mug", 1), ("jug", 1)}


async def test_an_id_seen_more_than_two_windows_ago_is_another_event(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug", event_id="e1"))
    shop.now_ms += 3 * _DAY_MS
    await lane.handle(shop.orders(1, "mug", event_id="e1"))
    await shop.scheduler.run_due([lane])
    assert [f.observed for f in shop.forecasts()] == [1]
    rows = await shop.store.look_up(0, "mug", "")
    assert rows is not None
    assert rows.sums["1d"][1][:, 0].tolist() == [1000, 1000]


async def test_a_lane_with_records_in_hand_does_not_jump_to_the_wall_clock(shop: Shop) -> None:
    lane = await shop.lane()
    await lane.handle(shop.orders(0, "mug", event_time=shop.now_ms - _DAY_MS))
    shop.now_ms += 60_000
    async with lane._lock:  # as while Redis is away
        assert lane.clock_ms() == _NOON - _DAY_MS
    assert lane.clock_ms() == shop.now_ms
