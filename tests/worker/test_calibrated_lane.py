"""Calibration in a lane, on a real Redis: what is published, and that kills and restarts teach nothing twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from feature_store.calibration_state import ItemCalibration, SegmentLevels
from feature_store.store import Remembered
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import ModelInputs, ModelOutputs
from tests.worker.test_lane_and_scheduler import Shop
from worker.aside import Message
from worker.errors import ForecastUnavailableError
from worker.lane import Lane
from worker.scheduler import Scheduler
from worker.schemas import Forecast

_DAY_MS = 86_400_000
_PRODUCTS = tuple(f"p{n}" for n in range(8))
_QUANTILES = np.array([0, 1, 1, 2, 2, 3, 3, 3, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 12], dtype=np.float32)


class Reply(NamedTuple):
    outputs: ModelOutputs
    model_version: str


class CalibratedShop(Shop):
    """Its model always says that five units sell in a day."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.has_model = True
        self.fence_at = -1  # the send, counted from 0, after which another worker claims the partition
        self._sends = self._offset = 0
        self.rules = dataclasses.replace(self.rules, remembered={"1d": Remembered(calibration=True)})
        self.scheduler = Scheduler(
            dataclasses.replace(self.scheduler._rules, calibrated_freqs=("1d",), infer=self._say_five)
        )

    async def _say_five(self, inputs: ModelInputs) -> Reply:
        if not self.has_model:
            raise ForecastUnavailableError("no model here")
        sold = inputs.running[:, 0]
        quantiles = np.tile(_QUANTILES, (len(sold), 28, 1))
        cumulative = np.cumsum(quantiles, axis=1)
        quantiles[:, 0] += sold[:, None]
        mean = np.full((len(sold), 28), 5, dtype=np.float32)
        mean[:, 0] += sold
        return Reply(ModelOutputs(quantiles, mean, cumulative), "1")

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        await super()._send(topic, partition, messages)
        if self._sends == self.fence_at:
            await self.store.claim(0)
        self._sends += 1

    async def day(self, lane: Lane, units: int) -> Lane:
        """One more day: everything sells so many units, at noon. Returns the lane, or the one that took over from it.
        What was owed at the day's begin is forecast before anything sells."""
        self.now_ms += _DAY_MS
        lane = await self._drained(lane)
        lane_orders = self.orders(self._offset, *_PRODUCTS, quantity=units)
        await lane.handle(lane_orders)
        self._offset += len(_PRODUCTS)
        return await self._drained(lane)

    async def _drained(self, lane: Lane) -> Lane:
        while True:
            await self.scheduler.drain(lane)
            if not lane.closed:
                return lane
            lane = await self.lane()
            self.now_ms += 3_000  # a lane that has just begun follows the wall clock once nothing has come for a while

    async def remembered(self, lane: Lane) -> tuple[list[ItemCalibration | None], dict[str, SegmentLevels]]:
        read = await lane.read("1d", "1d", 182, _PRODUCTS)
        return read.calibrations, read.segments


@pytest.fixture
def shop(redis_url: str) -> CalibratedShop:
    return CalibratedShop(redis_url)


def last_of(shop: CalibratedShop) -> dict[str, Forecast]:
    return {forecast.item_id: forecast for forecast in shop.forecasts()}


async def test_quantiles_follow_what_sells_and_the_models_own_stand_beside_them(shop: CalibratedShop) -> None:
    lane = await shop.day(await shop.lane(), 9)
    for step in last_of(shop)["p3"].steps:
        assert step.quantiles == step.quantiles_raw, "nothing was learnt yet"
    for _ in range(24):
        lane = await shop.day(lane, 9)
    forecast = last_of(shop)["p3"]
    assert forecast.observed == 9
    median, low = QUANTILE_LEVELS.index(0.5), QUANTILE_LEVELS.index(0.05)
    for k, step in enumerate(forecast.steps):
        sold = forecast.observed if k == 0 else 0
        assert step.quantiles_raw == pytest.approx((_QUANTILES + sold).tolist())
        assert step.quantiles[median] > sold + 6
        assert step.quantiles[low] >= sold + 1
        assert step.quantiles == sorted(step.quantiles)
        assert min(step.quantiles) >= sold
        assert step.mean > sold + 5
    totals = [step.cumulative_quantiles for step in forecast.steps]
    assert totals[0] == pytest.approx([quantile - 9 for quantile in forecast.steps[0].quantiles])
    assert all((np.diff(totals, axis=0) >= 0).ravel())


async def test_a_baselines_quantiles_are_left_as_they_are_and_teach_nothing(shop: CalibratedShop) -> None:
    lane = await shop.day(await shop.lane(), 9)
    before = await shop.remembered(lane)
    shop.has_model = False
    for _ in range(3):
        lane = await shop.day(lane, 9)
    assert all(f.degraded and f.steps[0].quantiles_raw is None for f in last_of(shop).values())
    assert await shop.remembered(lane) == before


@pytest.mark.parametrize("fence_at", [0, 3, 6, 9, 12])
async def test_a_worker_that_loses_its_lane_after_sending_teaches_nothing_twice(redis_url: str, fence_at: int) -> None:
    ends: list[Any] = []
    for fence in (-1, fence_at):
        shop = CalibratedShop(redis_url)
        shop.store = type(shop.store)(
            redis_url, namespace=f"fenced{fence_at}.{fence}", partition_count=1, forecast_freqs=("1d",)
        )
        shop.fence_at = fence
        lane = await shop.lane()
        for units in (9, 2, 9, 0, 14):
            lane = await shop.day(lane, units)
        ends.append(await shop.remembered(lane))
        assert shop._sends > fence_at
        await shop.store.close()
    assert ends[0] == ends[1]
    assert ends[0][1]["UTC"].counts != [0] * 10
