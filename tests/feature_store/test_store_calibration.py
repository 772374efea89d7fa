"""What calibration remembers: added up exactly, once, by its owner alone, and kept by snapshots."""

import asyncio
from pathlib import Path

import pytest

from feature_store.calibration_state import (
    ItemCalibration,
    PastForecast,
    SegmentLevels,
    unpack_item_calibration,
    unpack_segment_levels,
)
from feature_store.items import Item
from feature_store.snapshot_files import About, SnapshotWriter
from feature_store.snapshots import RestoreRules, load_snapshot, save_partition
from feature_store.store import Additions, Claim, Done, FeatureStore, FencedError, Remembered
from tests.feature_store.stores import LossyWire, apply, batch, fresh_namespace, open_store, summary
from worker.calibration import SEGMENTS, added

ORDERS = "orders"
_LEVELS = [500_000] * SEGMENTS * 19
_SCALES = [-700_000] * SEGMENTS


def learnt(bucket: int, count: int) -> SegmentLevels:
    return SegmentLevels(bucket, _LEVELS, _SCALES, [count] * SEGMENTS, [count * 9_999] * SEGMENTS * 19)


def state(bucket: int) -> ItemCalibration:
    return ItemCalibration(-120_000, bucket, [PastForecast(bucket, 3, 1_500, [0, 100, 250])])


def done(name: str, bucket: int) -> Done:
    return Done(name, None, summary(), state(bucket))


async def test_ranks_of_one_bucket_add_up_and_a_later_bucket_takes_their_place(each_redis_url: str) -> None:
    async with open_store(each_redis_url, fresh_namespace()) as store:
        claim = await store.claim(0)
        expected: SegmentLevels | None = None
        steps = [("mug", learnt(7, 40_000_000)), ("pot", learnt(7, 2)), ("jug", learnt(8, 3)), ("cup", learnt(7, 5))]
        for name, one in steps:
            additions = Additions({"Europe/Lisbon": one, "UTC": one})
            await store.forecasts_done(claim, "1d", [done(name, one.bucket)], additions)
            expected = added(expected, one)
            read = await store.read(claim, "1d", ["pot", name], "1d", [], 0, 0, remembered=Remembered(calibration=True))
            assert read.segments == {"Europe/Lisbon": expected, "UTC": expected}
            assert read.calibrations[1] == state(one.bucket)
        unasked = await store.read(claim, "1d", ["mug"], "1d", [], 0, 0)
        assert (unasked.calibrations, unasked.segments) == ([], {})
        other_freq = await store.read(claim, "1h", ["mug"], "1d", [], 0, 0, remembered=Remembered(calibration=True))
        assert (other_freq.calibrations, other_freq.segments) == ([None], {})


async def test_what_was_learnt_is_added_once_though_the_reply_got_lost(each_redis_url: str) -> None:
    host, _, port = each_redis_url.removeprefix("redis://").partition("/")[0].partition(":")
    async with LossyWire(host, int(port)) as wire, open_store(wire.url, fresh_namespace()) as store:
        claim = await store.claim(0)
        await store.forecasts_done(claim, "1d", [done("mug", 7)], Additions({"UTC": learnt(7, 1)}))
        wire.lose_next_reply()
        await store.forecasts_done(claim, "1d", [done("pot", 7)], Additions({"UTC": learnt(7, 2)}))
        assert wire.lost == 1
        read = await store.read(claim, "1d", ["mug"], "1d", [], 0, 0, remembered=Remembered(calibration=True))
        assert read.segments == {"UTC": learnt(7, 3)}


async def test_who_was_fenced_teaches_nothing_and_a_withdrawn_item_is_forgotten(each_redis_url: str) -> None:
    async with open_store(each_redis_url, fresh_namespace()) as store:
        old = await store.claim(0)
        await store.forecasts_done(old, "1d", [done("mug", 7)], Additions({"UTC": learnt(7, 1)}))
        claim = await store.claim(0)
        with pytest.raises(FencedError):
            await store.forecasts_done(old, "1d", [done("pot", 7)], Additions({"UTC": learnt(7, 1)}))
        await store.forecasts_done(claim, "1d", [Done("mug", None, None)])
        read = await store.read(claim, "1d", ["mug", "pot"], "1d", [], 0, 0, remembered=Remembered(calibration=True))
        assert (read.calibrations, read.segments) == ([None, None], {"UTC": learnt(7, 1)})


async def test_a_snapshot_keeps_it(each_redis_url: str, tmp_path: Path) -> None:
    source, target = fresh_namespace(), fresh_namespace()
    async with open_store(each_redis_url, source) as store, open_store(each_redis_url, target) as other:
        claim = await store.claim(0)
        item = Item("mug", "mug", "", 1, 2)
        await apply(store, claim, batch(claim, {ORDERS: 1}, items={"mug": item}, dirty=["mug"]))
        await store.forecasts_done(claim, "1d", [done("mug", 7)], Additions({"UTC": learnt(7, 1)}))
        writer = SnapshotWriter(tmp_path / "snapshot")
        assert await save_partition(store, writer, 0) is not None
        writer.close(About(source, store.partition_count, store.forecast_freqs, {}, chosen=False))
        await load_snapshot(other, tmp_path / "snapshot", RestoreRules(partition_of=lambda _: 0))
        assert await _remembered(other, await other.claim(0)) == ([state(7)], {"UTC": learnt(7, 1)})
    async with open_store(each_redis_url, fresh_namespace(), partition_count=2) as fewer:
        await load_snapshot(fewer, tmp_path / "snapshot", RestoreRules(partition_of=lambda _: 1))
        # Other items share a lane now: what each sold is known, what they sold together is learnt anew.
        assert await _remembered(fewer, await fewer.claim(1)) == ([state(7)], {})


async def _remembered(
    store: FeatureStore, claim: Claim
) -> tuple[list[ItemCalibration | None], dict[str, SegmentLevels]]:
    read = await store.read(claim, "1d", ["mug"], "1d", [], 0, 0, remembered=Remembered(calibration=True))
    return read.calibrations, read.segments


async def test_a_copy_made_while_calibration_learns_holds_what_belongs_together(each_redis_url: str) -> None:
    """The item's bucket and the segment's are written by one script: a copy never has one without the other."""
    async with open_store(each_redis_url, fresh_namespace()) as store:
        claim = await store.claim(0)
        await apply(store, claim, batch(claim, {ORDERS: 1}, dirty=["mug"]))
        await store.forecasts_done(claim, "1d", [done("mug", 0)], Additions({"UTC": learnt(0, 1)}))
        stop = asyncio.Event()

        async def learn() -> int:
            bucket = 0
            while not stop.is_set():
                bucket += 1
                await store.forecasts_done(claim, "1d", [done("mug", bucket)], Additions({"UTC": learnt(bucket, 1)}))
            return bucket

        learning = asyncio.create_task(learn())
        seen = set()
        for _ in range(5):
            copy = await store.copy_partition(0)
            assert copy is not None
            item = unpack_item_calibration(copy.calibration["1d"]["mug"])
            assert item.bucket == unpack_segment_levels(copy.segments["1d"]["UTC"]).bucket
            seen.add(item.bucket)
        stop.set()
        assert max(seen) <= await learning
        assert len(seen) > 1
