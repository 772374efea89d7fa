"""Live accuracy in a lane, on a real Redis: it equals a recomputation from what was sent and sold, whoever loses it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import prometheus_client
import pytest

from feature_store.score_state import SCORE_SUMS
from feature_store.store import FeatureStore, FencedError, Remembered
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import ModelInputs, ModelOutputs
from tests.worker.records import records_of
from tests.worker.score_oracle import Order, Recomputed, Rules, recomputed
from tests.worker.test_lane_and_scheduler import Shop
from worker import metrics
from worker.accuracy_reports import AccuracyReporter, ReportRules
from worker.aside import Message
from worker.errors import ForecastUnavailableError
from worker.lane import Lane
from worker.scheduler import Scheduler
from worker.schemas import Accuracy, Forecast
from worker.scoring import ScoringRules, item_sums

_DAY_MS = 86_400_000
_STEPS, _CORRECTION = (1, 3, 7), 4
_PRODUCTS = tuple(f"p{n}" for n in range(7))
_CATEGORIES = {f"p{n}": ("mugs", "pots and pans", "")[n % 3] for n in range(7)}


class Reply(NamedTuple):
    outputs: ModelOutputs
    model_version: str


class ScoredShop(Shop):
    """Its model says something else each time. `fence_at`: the sends, counted from 0, after which another worker claims
    the partition."""

    def __init__(self, url: str, namespace: str = "scored", fence_at: Sequence[int] = ()) -> None:
        super().__init__(url)
        self.store = FeatureStore(url, namespace=namespace, partition_count=1, forecast_freqs=("1d",))
        self.random = random.Random(5)
        self.model_version = "1"
        self.has_model = True
        self.orders_sent: list[Order] = []
        self._fence_at, self._sends, self._products_sent = set(fence_at), 0, 0
        sources = {"orders": "orders", "products": "products"}
        self.rules = dataclasses.replace(self.rules, sources=sources, remembered={"1d": Remembered(scores=True)})
        self.scheduler = Scheduler(
            dataclasses.replace(
                self.scheduler._rules,
                scoring={"1d": ScoringRules("1d", _STEPS, _CORRECTION)},
                topic_accuracy="accuracy",
                item_accuracy_freqs=("1d",),
                infer=self._say,
            )
        )
        self.reporter = self.new_reporter()

    def new_reporter(self) -> AccuracyReporter:
        rules = ReportRules("accuracy", "alerts", "m", _DAY_MS // 4, {"1d": _CORRECTION})
        return AccuracyReporter(rules, self.store.accuracy())

    async def _say(self, inputs: ModelInputs) -> Reply:
        if not self.has_model:
            raise ForecastUnavailableError("no model here")
        sold = inputs.running[:, 0]
        made = np.random.default_rng(self.random.randrange(2**32))
        quantiles = made.gamma(0.6, 3, (len(sold), 28, len(QUANTILE_LEVELS))).astype(np.float32)
        quantiles[::2] = np.floor(quantiles[::2])
        quantiles.sort(axis=2)
        quantiles[:, 0] += sold[:, None]
        mean = quantiles.mean(axis=2)
        return Reply(ModelOutputs(quantiles, mean, np.cumsum(quantiles, axis=1)), self.model_version)

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        await super()._send(topic, partition, messages)
        if self._sends in self._fence_at:
            await self.store.claim(0)
        self._sends += 1

    async def begin(self) -> Lane:
        lane = await self.lane()
        events = [
            {"event_time": self.now_ms, "product_id": p, "title": p, "category": c} for p, c in _CATEGORIES.items()
        ]
        await lane.handle(records_of("products", events))
        return lane

    async def sell(self, lane: Lane, days_ago: int, *product_ids: str) -> None:
        first = len(self.orders_sent)
        events = []
        for product_id in product_ids:
            thousandths = self.random.choice([1_000, 2_000, 12_000, 250, 12_345])
            time_ms = self.now_ms - days_ago * _DAY_MS
            events.append(
                {"event_time": time_ms, "product_id": product_id, "quantity": thousandths / 1000, "unit_price": 1}
            )
            self.orders_sent.append(Order(product_id, len(self.orders_sent), time_ms, thousandths))
        await lane.handle(records_of("orders", events, first_offset=first))

    async def days(self, lane: Lane, count: int) -> Lane:
        """What happens at a shop: sales, late ones among them, items that sell nothing, a new model, none at all."""
        for day in range(count):
            self.now_ms += _DAY_MS
            lane = await self.settle(lane)
            self.has_model = day not in (3, 4)
            self.model_version = "2" if day > 5 else "1"
            for _ in range(2):
                chosen = [p for p in _PRODUCTS if self.random.random() < 0.6]
                await self.sell(lane, self.random.choice([0, 0, 0, 1, 2, 6]), *chosen)
                lane = await self.settle(lane)
        return lane

    async def settle(self, lane: Lane) -> Lane:
        """Make what is owed, and report; who has lost the lane leaves it to the next one."""
        while True:
            await self.scheduler.drain(lane)
            if not lane.closed:
                try:
                    await self.reporter.report(lane)
                except FencedError:
                    lane.closed = True
            if not lane.closed:
                return lane
            lane, self.reporter = await self.lane(), self.new_reporter()
            self.now_ms += 3_000  # a lane that has just begun follows the wall clock once nothing has come for a while

    def expected(self) -> Recomputed:
        sent = [msgspec.json.decode(m.value, type=Forecast) for t, m in self.sent if t == "forecasts" and m.value]
        rules = Rules({"1d": _STEPS}, {"1d": _CORRECTION}, "orders", category_of=_CATEGORIES.__getitem__)
        return recomputed([(0, forecast) for forecast in sent], self.orders_sent, rules)

    async def found(self, lane: Lane) -> Recomputed:
        rows = (await self.store.accuracy().read(lane.claim, "1d")).rows
        items = {}
        for item_id in _PRODUCTS:
            state = await self.store.accuracy().peek_item(0, "1d", item_id)
            for s in item_sums(state) if state else []:
                items[item_id, "1d", s.model_version, s.step, s.first_day] = tuple(s.sums)
        return Recomputed(
            {
                ("1d", name.day, name.model_version, name.segment, step): tuple(numbers)
                for name, sums in rows.items()
                for step, numbers in sums.items()
            },
            items,
        )

    def accuracy(self) -> list[Accuracy]:
        return [msgspec.json.decode(m.value or b"", type=Accuracy) for t, m in self.sent if t == "accuracy"]


def sums_of(message: Accuracy) -> dict[int, tuple[int, ...]]:
    return {step.step: tuple(step.sums[name] for name in SCORE_SUMS) for step in message.steps}


@pytest.mark.parametrize("fence_at", [(), (0, 1, 2), (20, 21, 30), (33, 47, 58, 71), tuple(range(10, 100, 7))])
async def test_sums_equal_a_recomputation_whoever_is_fenced(redis_url: str, fence_at: tuple[int, ...]) -> None:
    shop = ScoredShop(redis_url, f"fenced{fence_at}", fence_at)
    lane = await shop.days(await shop.begin(), 14)
    expected, found = shop.expected(), await shop.found(lane)
    assert found.rows == expected.rows
    assert found.items == expected.items
    assert {version for _, _, version, _, _ in expected.rows} == {"1", "2", "baseline"}
    assert {segment for _, _, _, segment, _ in expected.rows} == {"all", "category:mugs", "category:pots and pans"}
    assert sum(key[3] == "all" for key in expected.rows) > 25
    assert not fence_at or shop._sends > max(fence_at)


async def test_the_last_message_of_a_window_has_its_sums(redis_url: str) -> None:
    shop = ScoredShop(redis_url, "messages", (25, 60))
    lane = await shop.days(await shop.begin(), 14)
    shop.now_ms += _DAY_MS
    lane = await shop.settle(lane)
    expected = shop.expected()
    last: dict[tuple[Any, ...], Accuracy] = {}
    for message in shop.accuracy():
        key = message.segment_kind, message.segment, message.model_version, message.window_start, message.window_days
        assert key not in last or message.revision >= last[key].revision
        last[key] = message
    days: dict[tuple[int, str, str], dict[int, tuple[int, ...]]] = {}
    for (_, day, version, segment, step), numbers in expected.rows.items():
        days.setdefault((day, version, segment), {})[step] = numbers
    for (day, version, segment), steps in days.items():
        kind, _, name = segment.partition(":")
        assert sums_of(last[kind, name, version, str(np.datetime64(day, "D")), 1]) == steps
    newest = max(day for day, _, _ in days)
    week = [
        steps
        for (day, version, segment), steps in days.items()
        if (version, segment) == ("2", "all") and day > newest - 7
    ]
    message = last["all", "", "2", str(np.datetime64(newest - 6, "D")), 7]
    assert sums_of(message)[1] == tuple(np.sum([steps[1] for steps in week], axis=0))
    assert message.steps[0].wape == pytest.approx(
        message.steps[0].sums["absolute_error"] / message.steps[0].sums["actual"], abs=1e-6
    )
    items = {
        (m.segment, m.model_version, m.window_start): sums_of(m) for m in last.values() if m.segment_kind == "item"
    }
    for (item_id, _, version, step, first_day), numbers in expected.items.items():
        assert items[item_id, version, str(np.datetime64(first_day, "D"))][step] == numbers
    shown = metrics.ACCURACY.labels("0", "1d", "1", "2", "actual")._value.get()
    assert shown == sums_of(message)[1][1]
    await shop.reporter.report_all({})
    assert "shelfcast_accuracy_sums{" not in prometheus_client.generate_latest(metrics.REGISTRY).decode()


async def test_a_withdrawn_item_is_forgotten_and_what_it_was_scored_with_stays(redis_url: str) -> None:
    shop = ScoredShop(redis_url, "withdrawn")
    lane = await shop.days(await shop.begin(), 3)
    before = await shop.found(lane)
    await lane.handle(records_of("products", [None], keys=[b"p1"], first_offset=len(_PRODUCTS)))
    lane = await shop.settle(lane)
    after = await shop.found(lane)
    assert after.rows == before.rows
    assert {item for item, *_ in before.items} - {item for item, *_ in after.items} == {"p1"}
