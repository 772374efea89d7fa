"""Alerts in a lane, on a real Redis: episodes open and close once, whatever is killed in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from feature_store.store import FeatureStore, Remembered
from forecaster.inputs import ModelInputs, ModelOutputs
from tests.worker.test_lane_and_scheduler import Shop
from worker.alert_table import AlertRules
from worker.aside import Message
from worker.lane import Lane
from worker.scheduler import Scheduler
from worker.schemas import Alert

_HOUR_MS = 3_600_000
_LEVELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8], dtype=np.float32)
_PRODUCTS = tuple(f"p{n}" for n in range(4))


class Reply(NamedTuple):
    outputs: ModelOutputs
    model_version: str


class KilledError(Exception):
    """The worker is gone at once."""


class AlertingShop(Shop):
    """Its model always says that two units sell in an hour, and everything does."""

    def __init__(self, url: str, namespace: str = "alerting") -> None:
        super().__init__(url)
        self.store = FeatureStore(url, namespace=namespace, partition_count=1, forecast_freqs=("1h",))
        self.kill_at = -1.0  # the send of alerts, counted from 0, before which the worker is killed; n + 0.5: after it
        self.away_ms = self.kills = 0
        self.alerts: list[Alert] = []
        self._offset = self._sends = 0
        self.rules = dataclasses.replace(self.rules, forecast_freqs=("1h",), remembered={"1h": Remembered(alerts=True)})
        self.scheduler = Scheduler(
            dataclasses.replace(
                self.scheduler._rules,
                freqs=("1h",),
                stored_freq={"1h": "1h"},
                stored_buckets={"1h": 336},
                prediction_length={"1h": 48},
                infer=self._say_two,
                alert_rules={"1h": AlertRules(per_day=24)},
                topic_alerts="alerts",
            )
        )

    async def _say_two(self, inputs: ModelInputs) -> Reply:
        sold = inputs.running[:, 0]
        quantiles = np.tile(_LEVELS, (len(sold), 48, 1))
        cumulative = np.cumsum(np.full_like(quantiles, 2), axis=1) + np.sqrt(np.arange(1, 49))[:, None] * (_LEVELS - 2)
        quantiles[:, 0] += sold[:, None]
        mean = np.full((len(sold), 48), 2, dtype=np.float32)
        mean[:, 0] = sold + 2 * (1 - inputs.elapsed_fraction[:, 0])
        return Reply(ModelOutputs(quantiles, mean, np.maximum(cumulative, 0)), "1")

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        if topic == "alerts":
            self._sends += 1
            if self._sends - 1 == self.kill_at:
                raise KilledError
            self.alerts += [msgspec.json.decode(m.value or b"", type=Alert) for m in messages]
            if self._sends - 0.5 == self.kill_at:
                raise KilledError
        await super()._send(topic, partition, messages)

    async def hour(self, lane: Lane, busy: int) -> Lane:
        """One more hour: in each half p0 gets `busy` orders of one, everything else one."""
        lane = await self._drained(lane)  # what was owed at the hour's begin
        for _ in range(2):
            self.now_ms += _HOUR_MS // 4
            orders = [*_PRODUCTS[1:], *("p0",) * busy]
            await lane.handle(self.orders(self._offset, *orders))
            self._offset += len(orders)
            lane = await self._drained(lane)
            self.now_ms += _HOUR_MS // 4
        return lane

    async def _drained(self, lane: Lane) -> Lane:
        self.now_ms += 3_000  # a lane follows the wall clock once nothing has come for a while
        while True:
            try:
                await self.scheduler.drain(lane)
            except KilledError:
                self.kills += 1
                lane = await self.lane()
                self.now_ms += self.away_ms  # until the next worker has the lane
                continue
            self.now_ms -= 3_000
            return lane


async def weeks_of(shop: AlertingShop, hours: Sequence[int]) -> Lane:
    lane = await shop.lane()
    for busy in hours:
        lane = await shop.hour(lane, busy)
    return lane


_SPIKE = [*[1] * 30, *[12] * 5, *[1] * 14]


async def test_a_spike_is_told_of_once_within_its_first_hour_and_closed(redis_url: str) -> None:
    shop = AlertingShop(redis_url, "spike")
    await weeks_of(shop, _SPIKE)
    await shop.store.close()
    assert [(a.item_id, a.kind) for a in shop.alerts] == [("p0", "demand_above")] * len(shop.alerts)
    assert (shop.alerts[0].episode_state, shop.alerts[-1].episode_state) == ("open", "close")
    assert len({a.alert_id for a in shop.alerts}) == 1
    assert [a.sequence for a in shop.alerts] == list(range(1, len(shop.alerts) + 1))
    opened, closed = shop.alerts[0], shop.alerts[-1]
    begin = shop.now_ms - 19 * _HOUR_MS
    assert begin <= opened.event_time < begin + _HOUR_MS
    assert opened.observed >= 12
    assert opened.tail_probability < 1e-4
    assert closed.event_time > begin + 5 * _HOUR_MS


@pytest.mark.parametrize("kill_at", [0, 0.5, 1.5])
async def test_a_kill_around_the_sending_of_an_alert_loses_none_and_sends_the_same_again(
    redis_url: str, kill_at: float
) -> None:
    told: list[list[Alert]] = []
    for kill in (-1, kill_at):
        shop = AlertingShop(redis_url, f"killed{kill_at}.{kill}")
        shop.kill_at = kill
        await weeks_of(shop, _SPIKE)
        await shop.store.close()
        told.append(shop.alerts)
    undisturbed, killed = told
    assert shop.kills == 1
    assert len(killed) == len(undisturbed) + (kill_at % 1 > 0)
    assert [alert for n, alert in enumerate(killed) if alert not in killed[:n]] == undisturbed


@pytest.mark.parametrize(("kill_at", "away_h"), [(0, 20), (0.5, 20), (0.5, 72)])
async def test_an_alert_is_closed_though_the_lane_comes_back_when_all_is_over(
    redis_url: str, kill_at: float, away_h: int
) -> None:
    shop = AlertingShop(redis_url, f"over{kill_at}.{away_h}")
    shop.kill_at, shop.away_ms = kill_at, away_h * _HOUR_MS
    await weeks_of(shop, [*[1] * 30, *[12] * 2, *[1] * 2])
    await shop.store.close()
    assert shop.kills == 1
    assert len({alert.alert_id for alert in shop.alerts}) == 1
    sequences = list(dict.fromkeys(alert.sequence for alert in shop.alerts))
    assert sequences == list(range(1, len(sequences) + 1))
    assert (shop.alerts[0].episode_state, shop.alerts[-1].episode_state) == ("open", "close")


async def test_an_item_that_stops_selling_is_told_of_within_a_day_once_a_week_and_a_half_of_it_are_known(
    redis_url: str,
) -> None:
    shop = AlertingShop(redis_url, "drop")
    await weeks_of(shop, [*[1] * 24 * 10, *[0] * 20])
    await shop.store.close()
    assert [(a.item_id, a.kind, a.episode_state) for a in shop.alerts[:1]] == [("p0", "demand_below", "open")]
    assert {a.item_id for a in shop.alerts} == {"p0"}
    assert shop.alerts[0].event_time > shop.now_ms - 20 * _HOUR_MS
    assert shop.alerts[0].observed == 0
