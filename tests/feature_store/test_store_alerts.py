"""What alerts remember: written with the forecasts, once, by the owner alone, and kept by snapshots."""

from __future__ import annotations

from pathlib import Path

from feature_store.alert_state import AlertLevels, Episode, ItemAlerts
from feature_store.items import Item
from feature_store.snapshot_files import About, SnapshotWriter
from feature_store.snapshots import RestoreRules, load_snapshot, save_partition
from feature_store.store import Additions, Claim, Done, FeatureStore, Remembered
from tests.feature_store.stores import LossyWire, apply, batch, fresh_namespace, open_store, summary
from worker.alert_levels import added

_ALERTS = Remembered(alerts=True)


def state(bucket: int) -> ItemAlerts:
    episode = Episode(0, "a1", 2, 5, 9, 1, 7_250)
    return ItemAlerts(bucket, 3, [-1, 250], "f1", [1_000] * 9, [0, 1_200], [0, 2], [5, 21], [episode], 1, 0)


def done(name: str, bucket: int) -> Done:
    return Done(name, None, summary(revision=bucket), alerts=state(bucket))


async def remembered(store: FeatureStore, claim: Claim) -> tuple[list[ItemAlerts | None], dict[str, AlertLevels]]:
    read = await store.read(claim, "1h", ["mug", "pot"], "1h", [], 0, 0, _ALERTS)
    return read.alerts, read.alert_levels


async def test_levels_of_a_day_add_up_once_though_the_reply_got_lost(each_redis_url: str) -> None:
    host, _, port = each_redis_url.removeprefix("redis://").partition("/")[0].partition(":")
    async with LossyWire(host, int(port)) as wire, open_store(wire.url, fresh_namespace()) as store:
        claim = await store.claim(0)
        expected: AlertLevels | None = None
        for number, (name, day) in enumerate([("mug", 7), ("pot", 7), ("mug", 8), ("pot", 7)], start=1):
            own = AlertLevels(day, 40, 3, [1, number])
            if name == "pot":
                wire.lose_next_reply()
            await store.forecasts_done(claim, "1h", [done(name, number)], Additions(levels={"items": own}))
            expected = added(expected, own)
        assert wire.lost == 2
        assert await remembered(store, claim) == ([state(3), state(4)], {"items": expected})
        await store.forecasts_done(claim, "1h", [Done("mug", None, None)])
        assert (await remembered(store, claim))[0] == [None, state(4)]


async def test_a_snapshot_keeps_it(each_redis_url: str, tmp_path: Path) -> None:
    source, target = fresh_namespace(), fresh_namespace()
    levels = {"items": AlertLevels(7, 40, 3, [1, 12])}
    async with open_store(each_redis_url, source) as store, open_store(each_redis_url, target) as other:
        claim = await store.claim(0)
        await apply(store, claim, batch(claim, {"orders": 1}, items={"mug": Item("mug", "mug", "", 1, 2)}))
        await store.forecasts_done(claim, "1h", [done("mug", 7)], Additions(levels=levels))
        writer = SnapshotWriter(tmp_path / "snapshot")
        assert await save_partition(store, writer, 0) is not None
        writer.close(About(source, store.partition_count, store.forecast_freqs, {}, chosen=False))
        await load_snapshot(other, tmp_path / "snapshot", RestoreRules(partition_of=lambda _: 0))
        assert await remembered(other, await other.claim(0)) == ([state(7), None], levels)
