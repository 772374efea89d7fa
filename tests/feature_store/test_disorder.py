"""Events late, early and out of order, in any batches: the features are those of the events sorted by time.

A lane applies them to a real Redis on a clock that the test moves. What must come out is computed by
`builders.naive_sums`, event by event, with Python's own integers and dates.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.calendar_time import ShopCalendar
from feature_store.decoding import DecodeLimits
from feature_store.events import Action, item_id_of
from feature_store.layout import STORED_FREQS
from feature_store.plan import Retention
from feature_store.store import FeatureStore
from tests.feature_store.builders import (
    DAY_MS,
    HOUR_MS,
    NOON_MS,
    Happened,
    Sums,
    events_between,
    naive_bucket,
    naive_sums,
)
from tests.feature_store.stores import FREQS, cells, fresh_namespace, open_store
from tests.worker.records import records_of
from worker.aside import Message
from worker.lane import Lane
from worker.lane_state import LaneRules
from worker.local_stack import LocalRedis

CALENDAR = ShopCalendar("Europe/London", {"honolulu": "Pacific/Honolulu"})
KEPT = {"5m": 3, "1h": 4, "1d": 3}  # few, so that buckets leave the retention all the time
AROUND = {"5m": 2_000, "1h": 200, "1d": 10}  # buckets before and after noon in which all events of these tests lie
OUT_OF_ORDERNESS_MS, MAX_FUTURE_MS = 5_000, 600_000
PRODUCTS, LOCATIONS = ("mug", "tea pot"), ("", "honolulu")
SERIES = {item_id_of(product, location): (product, location) for product in PRODUCTS for location in LOCATIONS}
ORDERS = (Action.SALE, Action.CANCEL, Action.RETURN)


def some_events(oldest_ms: int, newest_ms: int) -> st.SearchStrategy[list[Happened]]:
    """Events since three moments, of which most lie where 5-minute and hourly buckets begin to leave the retention."""
    since_ms = (oldest_ms, NOON_MS - 8 * HOUR_MS, NOON_MS - HOUR_MS // 2)
    when = [events_between(first_ms, newest_ms, products=PRODUCTS, locations=LOCATIONS) for first_ms in since_ms]
    sizes = st.sampled_from([0, 10, 40])  # left to itself hypothesis draws hardly any large lists
    return sizes.flatmap(lambda size: st.lists(st.one_of(when), min_size=size, max_size=size + 10))


IN_TIME = some_events(NOON_MS - 2 * DAY_MS, NOON_MS + MAX_FUTURE_MS)
ANY_TIME = some_events(NOON_MS - 5 * DAY_MS, NOON_MS + 2 * MAX_FUTURE_MS)
PAUSES_MS = [0] * 6 + [1_000, 3_000, 300_000]  # lanes without records for two seconds follow the clock
IDLE_MS = 3_000


@st.composite
def pauses_after(draw: st.DrawFn, events: Sequence[Happened]) -> list[int | None]:
    """After each event a pause, or None where its batch goes on: one batch, few, many, or events alone."""
    kinds: list[int | None] = draw(
        st.sampled_from([[None], [None] * 40 + PAUSES_MS, [None] * 9 + PAUSES_MS, PAUSES_MS])
    )
    return draw(st.lists(st.sampled_from(kinds), min_size=len(events), max_size=len(events)))


class Shop:
    """A lane of its own, with a clock that the test moves and lists in place of Kafka."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self.now_ms = NOON_MS
        self.aside: dict[str, list[Message]] = {"dlq": [], "late": []}
        self._rules = LaneRules(
            sources={"orders": "orders", "clicks": "clicks", "reviews": "reviews"},
            clock_topic="",
            retention=Retention(CALENDAR, KEPT),
            forecast_freqs=FREQS,
            limits=DecodeLimits(),
            dedup_window_ms={},
            out_of_orderness_ms=OUT_OF_ORDERNESS_MS,
            max_future_ms=MAX_FUTURE_MS,
            live_days=90,
            max_reject_share=1.0,
            reject_window=200,
            send=self._send,
            now_ms=lambda: self.now_ms,
        )

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        self.aside[topic.rpartition(".")[2]] += messages

    async def open(self) -> None:
        self.lane = Lane(self._store, await self._store.claim(0), self._rules)

    async def feed(self, events: Sequence[Happened]) -> None:
        """Let the lane have events as one fetched batch of each topic that they belong to."""
        for source, batch in groupby(sorted(events, key=source_of), key=source_of):
            start = self.lane.claim.positions.get(source, 0)
            happened = list(batch)
            keys = [event.product_id.encode() for event in happened]
            await self.lane.handle(records_of(source, [*map(as_json, happened)], first_offset=start, keys=keys))

    async def features(self) -> dict[str, Sums]:
        """All that stands in Redis, by frequency."""
        claim = self.lane.claim
        found = {}
        for freq in STORED_FREQS:
            noon = naive_bucket(freq, NOON_MS, "UTC")
            around = noon - AROUND[freq], noon + AROUND[freq]
            found[freq] = await cells(self._store, claim, freq, list(SERIES), *around)
        return {
            freq: {
                (*SERIES[name], bucket): tuple(sums)
                for name, rows in found[freq].items()
                for bucket, sums in rows.items()
            }
            for freq in STORED_FREQS
        }


def source_of(event: Happened) -> str:
    if event.action in ORDERS:
        return "orders"
    return "reviews" if event.action is Action.REVIEW else "clicks"


def as_json(event: Happened) -> bytes:
    """The message, its numbers in decimals."""
    message: dict[str, Any] = {"event_time": event.event_time_ms, "product_id": event.product_id}
    source = source_of(event)
    if source == "reviews":
        return json.dumps(message | {"rating": event.rating}).encode()
    message["location_id"] = event.location_id
    if source == "clicks":
        return json.dumps(message | {"action": event.action.name.lower()}).encode()
    message |= {"kind": event.action.name.lower(), "one_off": event.one_off}
    quantity, price = Decimal(event.quantity) / 1000, Decimal(event.unit_price) / 1_000_000
    return f'{json.dumps(message)[:-1]}, "quantity": {quantity}, "unit_price": {price}}}'.encode()


def is_late(event: Happened, watermark_ms: int | None) -> bool:
    """Its day, in its location's time zone, is older than the days kept."""
    return watermark_ms is not None and not stands("1d", event.event_time_ms, event.location_id, watermark_ms)


def stands(freq: str, event_time_ms: int, location: str, watermark_ms: int) -> bool:
    zone = CALENDAR.zone(location)
    return naive_bucket(freq, event_time_ms, zone) >= naive_bucket(freq, watermark_ms, zone) - KEPT[freq]


def standing(sums: Mapping[str, Sums], watermark_ms: int) -> dict[str, Sums]:
    """Without the buckets that have left the retention, which may be dropped at any time and are never read."""
    return {
        freq: {
            (product, location, bucket): row
            for (product, location, bucket), row in sums[freq].items()
            if bucket >= naive_bucket(freq, watermark_ms, CALENDAR.zone(location)) - KEPT[freq]
        }
        for freq in STORED_FREQS
    }


def expected(events: Sequence[Happened]) -> dict[str, Sums]:
    return {freq: naive_sums(events, freq, CALENDAR) for freq in STORED_FREQS}


def in_lane(redis_server: LocalRedis, story: Any) -> Any:
    """Run a coroutine function on a Shop of its own."""

    async def run() -> Any:
        async with open_store(redis_server.url, fresh_namespace(), 1) as store:
            shop = Shop(store)
            await shop.open()
            return await story(shop)

    return asyncio.run(run())


async def feed_in_batches(shop: Shop, events: Sequence[Happened], pauses: Sequence[int | None]) -> int:
    """Feed, cut after each event that a pause follows; then let the lane be idle, for its watermark to be the clock's.
    Returns that watermark, which is the same however the events are ordered and cut."""
    batch: list[Happened] = []
    for event, pause_ms in zip(events, pauses, strict=True):
        batch.append(event)
        if pause_ms is not None:
            await shop.feed(batch)
            batch = []
            shop.now_ms += pause_ms
    await shop.feed(batch)
    shop.now_ms += IDLE_MS
    watermark_ms = shop.now_ms - OUT_OF_ORDERNESS_MS
    assert shop.lane.watermark_ms() == watermark_ms
    return watermark_ms


@pytest.mark.parametrize("most_series", [None, 2], ids=["whole batches", "batches halved by a script's limit"])
@given(data=st.data())
def test_features_are_those_of_all_events_sorted_by_time(
    redis_server: LocalRedis, most_series: int | None, data: st.DataObject
) -> None:
    events = data.draw(IN_TIME)
    disordered = data.draw(st.permutations(events))
    pauses = data.draw(pauses_after(events))

    async def all_of(shop: Shop, watermark_ms: int) -> Any:
        assert shop.aside == {"dlq": [], "late": []}
        items = {name: (item.first_event_ms, item.last_event_ms) for name, item in shop.lane.claim.items.items()}
        return standing(await shop.features(), watermark_ms), items, set(shop.lane.touched("1d")), watermark_ms

    async def as_they_come(shop: Shop) -> Any:
        return await all_of(shop, await feed_in_batches(shop, disordered, pauses))

    async def sorted_at_once(shop: Shop) -> Any:
        await shop.feed(sorted(events))
        shop.now_ms += sum(pause_ms or 0 for pause_ms in pauses)
        return await all_of(shop, await feed_in_batches(shop, [], []))

    with pytest.MonkeyPatch.context() as patch:
        if most_series is not None:
            patch.setattr("worker.lane._MOST_SERIES", most_series)
        found = in_lane(redis_server, as_they_come)
    assert found == in_lane(redis_server, sorted_at_once)

    sums, items, touched, watermark_ms = found
    assert sums == standing(expected(events), watermark_ms)
    times: dict[str, list[int]] = {}
    for event in events:
        if event.action in ORDERS:
            times.setdefault(item_id_of(event.product_id, event.location_id), []).append(event.event_time_ms)
    assert items == {name: (min(found), max(found) // HOUR_MS * HOUR_MS) for name, found in times.items()}
    assert touched == set(items)


@given(data=st.data())
def test_what_still_stands_does_not_depend_on_what_was_too_late_or_too_early(
    redis_server: LocalRedis, data: st.DataObject
) -> None:
    events = data.draw(ANY_TIME)
    pauses = [pause_ms and 0 for pause_ms in data.draw(pauses_after(events))]  # the clock stands still

    async def story(shop: Shop) -> Any:
        watermark_ms = await feed_in_batches(shop, events, pauses)
        return await shop.features(), shop.aside, watermark_ms

    found, aside, watermark_ms = in_lane(redis_server, story)
    counted = [event for event in events if event.event_time_ms <= NOON_MS + MAX_FUTURE_MS]
    assert standing(found, watermark_ms) == standing(expected(counted), watermark_ms)
    assert sorted(m.value for m in aside["dlq"]) == sorted(as_json(e) for e in events if e not in counted)
    gone = [as_json(event) for event in counted if is_late(event, watermark_ms)]
    assert all(message.value in gone for message in aside["late"])


@given(events=ANY_TIME, pauses=st.lists(st.sampled_from(PAUSES_MS), min_size=50, max_size=50))
def test_an_event_is_late_by_the_watermark_that_stood_before_it(
    redis_server: LocalRedis, events: list[Happened], pauses: list[int]
) -> None:
    async def story(shop: Shop) -> Any:
        late, newest_ms = [], 0
        for event, pause_ms in zip(events, pauses, strict=False):
            shop.now_ms += pause_ms
            if pause_ms >= 2_000:
                newest_ms = shop.now_ms
            watermark_ms = newest_ms - OUT_OF_ORDERNESS_MS if newest_ms else None
            assert shop.lane.watermark_ms() == watermark_ms
            await shop.feed([event])
            if event.event_time_ms > shop.now_ms + MAX_FUTURE_MS:
                continue
            if is_late(event, watermark_ms):
                late.append(event)
            else:
                newest_ms = max(newest_ms, min(event.event_time_ms, shop.now_ms))
        return late, shop.aside

    late, aside = in_lane(redis_server, story)
    assert [message.value for message in aside["late"]] == [as_json(event) for event in late]


WATERMARK_MS = NOON_MS - OUT_OF_ORDERNESS_MS
# First millisecond of the oldest bucket that stands at that watermark: 2024-03-15T11:59:55Z, London on UTC.
OLDEST_MS = {
    "5m": NOON_MS - 4 * 5 * 60_000,
    "1h": NOON_MS - 5 * HOUR_MS,
    "1d": NOON_MS - DAY_MS // 2 - 3 * DAY_MS,
}


@pytest.mark.parametrize(
    ("event_time_ms", "corrects"),
    [
        (WATERMARK_MS, ("5m", "1h", "1d")),
        (OLDEST_MS["5m"], ("5m", "1h", "1d")),
        (OLDEST_MS["5m"] - 1, ("1h", "1d")),
        (OLDEST_MS["1h"], ("1h", "1d")),
        (OLDEST_MS["1h"] - 1, ("1d",)),
        (OLDEST_MS["1d"], ("1d",)),
        (OLDEST_MS["1d"] - 1, ()),
    ],
)
def test_a_late_event_corrects_exactly_the_buckets_that_still_stand(
    redis_server: LocalRedis, event_time_ms: int, corrects: tuple[str, ...]
) -> None:
    async def story(shop: Shop) -> None:
        await shop.feed([Happened(NOON_MS, "tea pot")])
        assert shop.lane.watermark_ms() == WATERMARK_MS
        late = Happened(event_time_ms, "mug", quantity=3000)
        await shop.feed([late])
        found = await shop.features()
        for freq in STORED_FREQS:
            own = {cell: row for cell, row in found[freq].items() if cell[0] == "mug"}
            assert own == (naive_sums([late], freq, CALENDAR) if freq in corrects else {})
        assert [m.value for m in shop.aside["late"]] == ([] if corrects else [as_json(late)])
        headers = [dict(message.headers) for message in shop.aside["late"]]
        assert [(h["shelfcast.topic"], h["shelfcast.offset"]) for h in headers] == [(b"orders", b"1")] * len(headers)

    in_lane(redis_server, story)


@pytest.mark.parametrize("ahead_ms", [1, 60_000, MAX_FUTURE_MS])
def test_an_early_event_counts_in_its_own_bucket_and_leaves_the_watermark_behind_now(
    redis_server: LocalRedis, ahead_ms: int
) -> None:
    async def story(shop: Shop) -> None:
        early = Happened(NOON_MS + ahead_ms)
        await shop.feed([early])
        assert await shop.features() == expected([early])
        assert shop.lane.watermark_ms() == NOON_MS - OUT_OF_ORDERNESS_MS
        # What happens now is not late because something was early.
        now = Happened(NOON_MS - KEPT["5m"] * 5 * 60_000)
        await shop.feed([now])
        assert await shop.features() == expected([early, now])
        assert shop.aside == {"dlq": [], "late": []}

    in_lane(redis_server, story)


def test_an_event_too_far_ahead_is_rejected_and_moves_nothing(redis_server: LocalRedis) -> None:
    async def story(shop: Shop) -> None:
        await shop.feed([Happened(NOON_MS + MAX_FUTURE_MS + 1)])
        assert await shop.features() == expected([])
        assert shop.lane.watermark_ms() is None
        assert [dict(m.headers)["shelfcast.reason"] for m in shop.aside["dlq"]] == [b"far_future"]

    in_lane(redis_server, story)
