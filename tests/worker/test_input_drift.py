"""Drift of inputs: what forecasts are made from, summed by day, and what is told of it. The lane is on a real Redis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from feature_store.features import FEATURE_INDEX, FEATURES
from feature_store.known_future import KNOWN_CHANNELS
from feature_store.score_state import RowName, SumsByStep
from forecaster.contract import STATIC_CHANNELS
from forecaster.inputs import ModelInputs
from tests.worker.records import records_of
from tests.worker.test_scored_lane import ScoredShop
from worker.drift import Drift
from worker.input_drift import WATCHED, input_drifts
from worker.input_sums import INPUT_SUMS, INPUTS, Bucket, input_sums
from worker.lane import Lane
from worker.schemas import Alert

_DAY_MS, _FIRST = 86_400_000, 15_000
_FRESH = np.array([True, True, False, True])


def _inputs(items: int = 4, days: int = 60) -> ModelInputs:
    random = np.random.default_rng(8)
    context = random.integers(0, 5, (items, days, len(FEATURES))).astype(np.float32)
    context[:, :, FEATURE_INDEX["revenue"]] *= 1.5
    context[1, :-1] = 0  # sells for the first time
    context[3, :50] = np.nan
    known = np.full((items, days + 28, len(KNOWN_CHANNELS)), np.nan, dtype=np.float32)
    known[:, :, KNOWN_CHANNELS.index("promotion")] = [[0.0], [1.0], [1.0], [0.25]]
    known[3, :, KNOWN_CHANNELS.index("unit_price")] = 2.5
    static = np.full((items, len(STATIC_CHANNELS)), 9, dtype=np.float32)
    static[0, STATIC_CHANNELS.index("category_code")] = 0
    nothing = np.zeros((items, 0), dtype=np.float32)
    return ModelInputs(context, nothing, known, nothing, nothing, static, np.zeros((items, 1), dtype=np.int32))


def test_sums_are_those_of_the_closed_bucket_and_of_first_forecasts_alone() -> None:
    inputs = _inputs()
    closed = np.array([_FIRST, _FIRST, _FIRST, _FIRST - 1])
    rows = input_sums(Bucket("1d", closed), inputs, _FRESH)
    assert sorted(rows) == [RowName(_FIRST - 1, "-", INPUTS), RowName(_FIRST, "-", INPUTS)]
    assert input_sums(Bucket("1d", closed), inputs, np.zeros(4, dtype=np.bool_)) == {}

    def feature(item: int, name: str, day: int = -1) -> float:
        return float(inputs.context[item, day, FEATURE_INDEX[name]])

    def log_price(item: int) -> float:
        past = range(-57, -1)
        known = [d for d in past if not math.isnan(feature(item, "units", d))]
        usual = sum(feature(item, "revenue", d) for d in known) / sum(feature(item, "units", d) for d in known)
        return math.log(feature(item, "revenue") / feature(item, "units") / usual)

    told = dict(zip(INPUT_SUMS, rows[RowName(_FIRST, "-", INPUTS)][1], strict=True))
    for name in ("order_lines", "views", "add_to_carts", "review_count", "rating_sum"):
        assert told[name] == feature(0, name) + feature(1, name), name
    assert told["units"] == 1000 * (feature(0, "units") + feature(1, "units"))
    assert (told["items"], told["promoted"], told["uncategorised"], told["priced"]) == (2, 1000, 1, 0)
    assert told["compared"] == (feature(0, "units") > 0)
    assert told["log_price"] == round(1000 * log_price(0))
    told = dict(zip(INPUT_SUMS, rows[RowName(_FIRST - 1, "-", INPUTS)][1], strict=True))
    assert (told["items"], told["promoted"], told["priced"], told["listed"]) == (1, 250, 1, 1)
    known = range(-10, -1)
    usual = sum(feature(3, "revenue", d) for d in known) / sum(feature(3, "units", d) for d in known)
    assert told["log_listed"] == round(1000 * math.log(2.5 / usual))


def _rows(days: int, **changed: Sequence[float]) -> dict[RowName, SumsByStep]:
    """Days of 200 items that sell 100 lines of 2 units and are seen 800 times; of each, what has changed."""
    random = np.random.default_rng(4)
    rows: dict[RowName, SumsByStep] = {}
    for n in range(days + 1):
        lines = int(random.poisson(100))
        sums = {"items": 200, "order_lines": lines, "units": 2000 * lines, "views": int(random.poisson(8 * lines))}
        sums |= {"compared": 60, "log_price": round(float(random.normal(0, 600))), "review_count": lines // 9}
        sums |= {"rating_sum": lines // 9 * 4, "promoted": 20_000}
        for name, values in changed.items():
            sums[name] = round(sums.get(name, 0) * values[n] if name in sums else values[n])
        rows[RowName(_FIRST + n, "-", INPUTS)] = {1: [sums.get(name, 0) for name in INPUT_SUMS]}
    return rows


def _open(found: Sequence[Drift]) -> set[tuple[str, int]]:
    return {(drift.measure, drift.sign) for drift in found if drift.evidence >= 5}


def test_what_stays_as_it_was_opens_nothing() -> None:
    found = input_drifts(_rows(40))
    assert not _open(found)
    assert {"unit_price", "views_per_line", "promoted_share"} <= {drift.measure for drift in found}
    assert "returned_per_unit" not in {drift.measure for drift in found}, "nothing comes back"
    assert not input_drifts({})
    assert not input_drifts(_rows(9))


@pytest.mark.parametrize(
    ("name", "before", "after", "found", "ratio"),
    [
        ("views", 1, 0.5, ("views_per_line", -1), 0.5),
        ("views", 1, 0, ("views_per_line", -1), 0.0),
        ("units", 1, 6, ("units_per_line", 1), 6.0),
        ("rating_sum", 1, 0.5, ("rating", -1), 0.5),
        ("promoted", 1, 4, ("promoted_share", 1), 4.0),
        ("uncategorised", 0, 80, ("uncategorised_share", 1), math.inf),
    ],
)
def test_an_input_that_breaks_is_named(
    name: str, before: float, after: float, found: tuple[str, int], ratio: float
) -> None:
    drifts = input_drifts(_rows(34, **{name: [before] * 28 + [after] * 7}))
    assert _open(drifts) == {found}
    drift = next(one for one in drifts if (one.measure, one.sign) == found)
    assert drift.since == _FIRST + 28
    assert (drift.observed / drift.expected if drift.expected else math.inf) == pytest.approx(ratio, rel=0.1)


def test_prices_in_another_currency_are_told_as_a_factor() -> None:
    rows = _rows(34)
    place = INPUT_SUMS.index("log_price")
    for name, by_step in rows.items():
        if name.day >= _FIRST + 28:
            sums = list(by_step[1])
            sums[place] += round(60 * 1000 * math.log(1.25))
            rows[name] = {1: sums}
    drifts = input_drifts(rows)
    assert _open(drifts) == {("unit_price", 1)}
    assert next(d for d in drifts if d.measure == "unit_price").observed == pytest.approx(1.25, rel=0.05)


def test_what_is_sure_and_small_opens_nothing_nor_does_one_odd_day() -> None:
    assert not _open(input_drifts(_rows(34, units=[1] * 20 + [1.05] * 15)))
    assert not _open(input_drifts(_rows(34, units=[1] * 30 + [50] + [1] * 4)))


class _Stream(ScoredShop):
    """Items that sell a unit or two a day and are viewed four times as often, in a lane that sums its inputs."""

    def __init__(self, url: str, namespace: str, fence_at: Sequence[int] = ()) -> None:
        super().__init__(url, namespace, fence_at)
        self.rules = dataclasses.replace(self.rules, sources={**self.rules.sources, "clicks": "clicks"})
        self.scheduler._rules = dataclasses.replace(self.scheduler._rules, input_drift_freqs=("1d",))
        self._events = np.random.default_rng(2)
        self.clicks_sent = 0

    async def live(self, lane: Lane, days: int, price: float = 2.0, seen: float = 4.0) -> Lane:
        for _ in range(days):
            self.now_ms += _DAY_MS
            lane = await self.settle(lane)
            common = {"event_time": self.now_ms}
            orders = [
                common | {"product_id": f"p{n}", "quantity": int(q), "unit_price": price}
                for n, q in enumerate(self._events.integers(1, 3, 14))
            ]
            clicks = [
                common | {"product_id": f"p{n}", "action": "view"}
                for n, count in enumerate(self._events.poisson(4.0, 14))
                for _ in range(int(count * seen / 4.0))
            ]
            await lane.handle(records_of("orders", orders, first_offset=len(self.orders_sent)))
            self.orders_sent += orders  # type: ignore[arg-type]  # of another shape: this test does not recompute scores
            await lane.handle(records_of("clicks", clicks, first_offset=self.clicks_sent))
            self.clicks_sent += len(clicks)
            lane = await self.settle(lane)
        return lane

    def alerts(self) -> list[tuple[str, str]]:
        """State and input of each, once, as consumers keep them."""
        found: dict[tuple[str, int], tuple[str, str]] = {}
        for topic, message in self.sent:
            if topic == "alerts":
                alert = msgspec.json.decode(message.value or b"", type=Alert)
                if alert.kind == "input_drift":
                    found.setdefault((alert.alert_id, alert.sequence), (alert.episode_state, alert.channel))
        return list(found.values())


async def _lived(url: str, namespace: str, fence_at: Sequence[int] = ()) -> tuple[_Stream, Mapping[RowName, Any]]:
    shop = _Stream(url, namespace, fence_at)
    lane = await shop.live(await shop.begin(), 22)
    assert shop.alerts() == []
    lane = await shop.live(lane, 6, price=2.6, seen=2.0)
    lane = await shop.live(lane, 8, price=2.6, seen=4.0)
    rows = (await shop.store.accuracy().read(lane.claim, "1d")).rows
    return shop, {name: sums for name, sums in rows.items() if name.segment == INPUTS}


async def test_a_lane_tells_which_input_has_drifted_and_when_it_is_back(redis_url: str) -> None:
    shop, rows = await _lived(redis_url, "inputs")
    told = shop.alerts()
    assert {("open", "unit_price"), ("open", "views_per_line")} <= set(told)
    assert {name for _, name in told} == {"unit_price", "views_per_line"}
    assert told.count(("open", "views_per_line")) == 1
    first, last = min(name.day for name in rows), max(name.day for name in rows)
    for name, by_step in rows.items():
        assert by_step[1][INPUT_SUMS.index("items")] == 14, (name, first, last)
    again, others = await _lived(redis_url, "inputs-lost", fence_at=(50, 120, 121, 260, 300))
    assert others == rows
    assert again.alerts() == told


def test_every_input_is_made_of_sums_that_are_kept() -> None:
    assert all(one.of in INPUT_SUMS and one.over in INPUT_SUMS for one in WATCHED)
