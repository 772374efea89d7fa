"""SilenceWatch on a real Redis: it listens to all partitions, waits for what is behind, and opens and closes once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import msgspec

from feature_store.store import FeatureStore
from tests.worker.records import records_of
from tests.worker.test_lane_and_scheduler import Shop
from worker.aside import Message
from worker.lane import Lane
from worker.schemas import Alert
from worker.silence import SilenceRules, Stream
from worker.silence_watch import Partition, SilenceWatch, WatchRules

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_STREAM = Stream("clicks", "clicks")


class KilledError(Exception):
    """The worker is gone at once."""


class ListeningShop(Shop):
    """Two partitions; clicks on both, thirty an hour by day in all, and what Kafka says of their ends."""

    def __init__(self, url: str, namespace: str) -> None:
        super().__init__(url)
        self.store = FeatureStore(url, namespace=namespace, partition_count=2, forecast_freqs=("1d",))
        self.rules = dataclasses.replace(self.rules, sources={"clicks": "clicks"})
        self.now_ms += 22 * _DAY_MS
        self.behind: dict[Partition, int] = {}  # records that are in Kafka alone
        self.marks: set[Partition] = set()  # partitions whose last offset is no record
        self.kill_sends = False
        self.alerts: list[Alert] = []
        self.lanes: list[Lane] = []

    async def begin(self) -> None:
        self.lanes = [Lane(self.store, await self.store.claim(p), self.rules) for p in range(2)]
        first_ms = self.now_ms - 22 * _DAY_MS
        times = [
            first_ms + hour * _HOUR_MS + n * _HOUR_MS // 15
            for hour in range(22 * 24)
            for n in range(15)
            if 8 <= (first_ms // _HOUR_MS + hour) % 24 < 20
        ]
        for lane in self.lanes:
            await self.click(lane, *(time_ms for time_ms in times if time_ms < self.now_ms))
        self.new_watch()

    def new_watch(self) -> None:
        """As a new worker has it."""
        silence = SilenceRules(900_000, 6 * _HOUR_MS, "UTC")
        rules = WatchRules([_STREAM], [_STREAM, Stream("reviews", "reviews")], "alerts", "1d", 2, silence, lambda _: ())
        self.watch = SilenceWatch(rules, self.store.streams())

    async def click(self, lane: Lane, *times_ms: int) -> None:
        events = [{"event_time": time_ms, "product_id": "mug", "action": "view"} for time_ms in times_ms]
        await lane.handle(records_of("clicks", events, first_offset=lane.claim.positions.get("clicks", 0)))

    async def look(self, after_ms: int = 0) -> list[str]:
        """States of what was said since the last look."""
        self.now_ms += after_ms
        self.alerts.clear()
        await self.watch.look_live(self.lanes[0], self.now_ms, self._ends, self._holds_record)
        return [alert.episode_state for alert in self.alerts]

    async def _ends(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        at = {p: lane.claim.positions["clicks"] for p, lane in enumerate(self.lanes)}
        return {(t, p): at[p] + self.behind.get((t, p), 0) + ((t, p) in self.marks) for t, p in partitions}

    async def _holds_record(self, partition: Partition, position: int) -> bool:
        return self.behind.get(partition, 0) > 0

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        if self.kill_sends:
            raise KilledError
        await super()._send(topic, partition, messages)
        self.alerts += [msgspec.json.decode(m.value or b"", type=Alert) for m in messages]


async def test_silence_of_both_partitions_is_one_alert_and_of_one_is_none(redis_url: str) -> None:
    shop = ListeningShop(redis_url, "silent")
    await shop.begin()
    assert await shop.look(12 * 60_000) == []  # shorter than a quarter of an hour
    await shop.click(shop.lanes[1], shop.now_ms)
    assert await shop.look(20 * 60_000) == []  # one of ten clicks may well be missing for so long
    assert await shop.look(60 * 60_000) == ["open"]
    (alert,) = shop.alerts
    assert (alert.kind, alert.subject, alert.channel, alert.item_id) == ("stream_silent", "clicks", "clicks", "")
    assert alert.window_start == shop.now_ms - 80 * 60_000
    assert alert.expected == 40.0
    assert await shop.look(1_000) == []
    for lane in shop.lanes:
        await shop.click(lane, shop.now_ms)
    assert await shop.look(1_000) == ["close"]
    assert shop.alerts[0].alert_id == alert.alert_id
    assert await shop.look(1_000) == []
    await shop.store.close()


async def test_what_is_behind_is_not_silent_but_a_transactions_mark_is_no_record(redis_url: str) -> None:
    shop = ListeningShop(redis_url, "behind")
    await shop.begin()
    shop.behind["clicks", 1] = 7
    assert await shop.look(3 * _HOUR_MS) == []
    shop.behind.clear()
    shop.marks = {("clicks", 0), ("clicks", 1)}
    assert await shop.look() == ["open"]
    await shop.store.close()


async def test_a_kill_before_it_was_sent_leaves_the_alert_to_the_next_worker(redis_url: str) -> None:
    shop = ListeningShop(redis_url, "killed")
    await shop.begin()
    shop.kill_sends = True
    try:
        await shop.look(3 * _HOUR_MS)
    except KilledError:
        shop.kill_sends = False
    await shop.click(shop.lanes[0], shop.now_ms)  # nothing is to be seen any more when the next one comes
    shop.lanes = [Lane(shop.store, await shop.store.claim(p), shop.rules) for p in range(2)]
    shop.new_watch()
    assert await shop.look(1_000) == ["open", "close"]
    assert [alert.sequence for alert in shop.alerts] == [1, 2]
    assert len({alert.alert_id for alert in shop.alerts}) == 1
    assert shop.lanes[0].claim.untold == {}
    assert (await shop.store.claim(0)).untold == {}
    await shop.store.close()


async def test_a_worker_without_the_first_lane_says_nothing(redis_url: str) -> None:
    shop = ListeningShop(redis_url, "other")
    await shop.begin()
    shop.now_ms += 3 * _HOUR_MS
    await shop.watch.look_live(None, shop.now_ms, shop._ends, shop._holds_record)
    assert shop.alerts == []
    await shop.store.close()
