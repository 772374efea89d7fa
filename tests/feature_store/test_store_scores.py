"""What scoring remembers: added up exactly, once, by its owner alone, and kept by snapshots."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.accuracy_store import AccuracyRead, Gone, Rows
from feature_store.items import Item
from feature_store.score_state import (
    ItemScores,
    RowName,
    pack_row_name,
    pack_scores,
    pack_sums_by_step,
    unpack_row_name,
    unpack_scores,
    unpack_sums_by_step,
)
from feature_store.snapshot_files import About, SnapshotWriter
from feature_store.snapshots import RestoreRules, load_snapshot, save_partition
from feature_store.store import Additions, Claim, Done, FeatureStore, FencedError, Remembered
from tests.feature_store.stores import LossyWire, apply, batch, fresh_namespace, open_store, summary

ORDERS = "orders"
DAY = RowName(20_000, "1", "all")
MUGS = RowName(20_000, "1", "category:mugs and pots")
_WANTED = Remembered(scores=True)


def state(revision: int) -> ItemScores:
    return ItemScores(20_000, revision, [["1", "mugs"]], [19_999, 3_000], msgspec.Raw(b"[]"), msgspec.Raw(b"[]"))


def done(name: str, revision: int) -> Done:
    return Done(name, None, msgspec.structs.replace(summary(), revision=revision), scores=state(revision))


def added(*sums: int, step: int = 1) -> Additions:
    return Additions(scored={DAY: {step: sums}})


async def _rows(store: FeatureStore, claim: Claim) -> Rows:
    return (await store.accuracy().read(claim, "1d")).rows


async def test_sums_add_up_exactly_step_by_step(each_redis_url: str) -> None:
    huge = 2**53 - 9  # of which cjson would write 14 digits
    async with open_store(each_redis_url, fresh_namespace()) as store:
        claim = await store.claim(0)
        await store.forecasts_done(
            claim, "1d", [done("mug", 1)], Additions(scored={DAY: {7: [1, -5, huge]}, MUGS: {1: [1]}})
        )
        await store.forecasts_done(claim, "1d", [done("pot", 1)], Additions(scored={DAY: {1: [4, 0, 0], 7: [2, 3, 8]}}))
        assert await _rows(store, claim) == {DAY: {7: [3, -2, 2**53 - 1], 1: [4, 0, 0]}, MUGS: {1: [1]}}
        await store.forecasts_done(claim, "1d", [done("jug", 1)], added(0, 0, 2**53, step=7))
        assert (await _rows(store, claim))[DAY][7][2] == 2**53, "a sum stops where it would no longer be exact"
        assert await store.accuracy().peek(0, "1d") == await _rows(store, claim)
        assert await store.accuracy().peek(0, "1h") == {}
        assert await store.accuracy().peek(1, "1d") == {}, "nothing stands there"


async def test_they_are_added_once_though_the_reply_got_lost(each_redis_url: str) -> None:
    host, _, port = each_redis_url.removeprefix("redis://").partition("/")[0].partition(":")
    async with LossyWire(host, int(port)) as wire, open_store(wire.url, fresh_namespace()) as store:
        claim = await store.claim(0)
        await store.forecasts_done(claim, "1d", [done("mug", 1)], added(1))
        wire.lose_next_reply()
        await store.forecasts_done(claim, "1d", [done("mug", 2)], added(2))
        assert wire.lost == 1
        assert await _rows(store, claim) == {DAY: {1: [3]}}
        # Nothing is to be remembered of the item: its summary alone tells.
        wire.lose_next_reply()
        bare = Done("mug", None, msgspec.structs.replace(summary(), revision=3))
        await store.forecasts_done(claim, "1d", [bare], added(4))
        assert await _rows(store, claim) == {DAY: {1: [7]}}


async def test_who_was_fenced_adds_nothing_and_a_withdrawn_item_is_forgotten(each_redis_url: str) -> None:
    async with open_store(each_redis_url, fresh_namespace()) as store:
        old = await store.claim(0)
        await store.forecasts_done(old, "1d", [done("mug", 1)], added(1))
        claim = await store.claim(0)
        with pytest.raises(FencedError):
            await store.forecasts_done(old, "1d", [done("pot", 1)], added(1))
        with pytest.raises(FencedError):
            await store.accuracy().note_sent(old, "1d", {"w": "1"}, Gone([DAY]))
        assert await store.accuracy().peek_item(0, "1d", "mug") == state(1)
        await store.forecasts_done(claim, "1d", [Done("mug", None, None)])
        read = await store.read(claim, "1d", ["mug", "pot"], "1d", [], 0, 0, _WANTED)
        assert (read.scores, read.calibrations) == ([None, None], [])
        assert await store.accuracy().read(claim, "1d") == AccuracyRead({DAY: {1: [1]}}, {})


async def test_what_was_published_is_noted_and_what_is_long_past_goes(each_redis_url: str) -> None:
    async with open_store(each_redis_url, fresh_namespace()) as store:
        claim, accuracy = await store.claim(0), store.accuracy()
        await store.forecasts_done(claim, "1d", [done("mug", 1)], Additions(scored={DAY: {1: [1]}, MUGS: {1: [1]}}))
        await accuracy.note_sent(claim, "1d", {"w": "1 a", "v": "2 b"})
        await accuracy.note_sent(claim, "1d", {"w": "2 c"}, Gone([MUGS], ["v"]))
        assert await accuracy.read(claim, "1d") == AccuracyRead({DAY: {1: [1]}}, {"w": "2 c"})


async def test_a_snapshot_keeps_all_of_it(each_redis_url: str, tmp_path: Path) -> None:
    source, target = fresh_namespace(), fresh_namespace()
    async with open_store(each_redis_url, source) as store, open_store(each_redis_url, target) as other:
        writer = SnapshotWriter(tmp_path / "snapshot")
        for p in range(store.partition_count):
            claim, name = await store.claim(p), f"mug{p}"
            await apply(store, claim, batch(claim, {ORDERS: 1}, items={name: Item(name, name, "", 1, 2)}, dirty=[name]))
            await store.forecasts_done(claim, "1d", [done(name, 1)], added(10**p))
            await store.accuracy().note_sent(claim, "1d", {"w": str(p)})
            assert await save_partition(store, writer, p) is not None
        writer.close(About(source, store.partition_count, store.forecast_freqs, {}, chosen=False))
        await load_snapshot(other, tmp_path / "snapshot", RestoreRules(partition_of=lambda _: 0))
        for p in range(other.partition_count):
            claim = await other.claim(p)
            assert await other.accuracy().read(claim, "1d") == AccuracyRead({DAY: {1: [10**p]}}, {"w": str(p)})
            assert (await other.read(claim, "1d", [f"mug{p}"], "1d", [], 0, 0, _WANTED)).scores == [state(1)]
    async with open_store(each_redis_url, fresh_namespace(), partition_count=3) as fewer:
        await load_snapshot(fewer, tmp_path / "snapshot", RestoreRules(partition_of=lambda _: 1))
        read = [await fewer.accuracy().read(await fewer.claim(p), "1d") for p in range(3)]
        # Whose they were nobody can tell: it is their total that counts.
        assert [r.rows for r in read] == [{DAY: {1: [1_001]}}, {DAY: {1: [10]}}, {DAY: {1: [100]}}]
        assert [r.sent for r in read] == [{}, {}, {}]
        assert (await fewer.read(await fewer.claim(1), "1d", ["mug3"], "1d", [], 0, 0, _WANTED)).scores == [state(1)]


async def test_a_copy_made_while_scores_come_in_holds_what_belongs_together(each_redis_url: str) -> None:
    async with open_store(each_redis_url, fresh_namespace()) as store:
        claim = await store.claim(0)
        await apply(store, claim, batch(claim, {ORDERS: 1}, dirty=["mug"]))
        await store.forecasts_done(claim, "1d", [done("mug", 1)], added(1))
        stop = asyncio.Event()

        async def score() -> int:
            revision = 1
            while not stop.is_set():
                revision += 1
                await store.forecasts_done(claim, "1d", [done("mug", revision)], added(1))
            return revision

        scoring = asyncio.create_task(score())
        seen = set()
        for _ in range(5):
            copy = await store.copy_partition(0)
            assert copy is not None
            item = unpack_scores(copy.scores["1d"]["mug"])
            assert unpack_sums_by_step(copy.accuracy["1d"][pack_row_name(DAY)]) == {1: [item.revision]}
            seen.add(item.revision)
            while (now := await store.accuracy().peek_item(0, "1d", "mug")) is None or now.revision <= item.revision:
                await asyncio.sleep(0.001)  # writers that were held back go on a moment later
        stop.set()
        assert max(seen) <= await scoring
        assert len(seen) == 5


@given(st.integers(0, 40_000), st.text("0123456789abc", min_size=1), st.text())
def test_names_of_rows_read_back_as_they_were_written(day: int, version: str, segment: str) -> None:
    assert unpack_row_name(pack_row_name(RowName(day, version, segment))) == RowName(day, version, segment)


def test_states_stand_in_redis_as_they_ever_did() -> None:
    text = '[20000,3,[["1","mugs"]],[19999,3000],[[20000,[[1,0,1000,300,-18,2]]]],[["1",1,19992,4,5]]]'
    kept, sums = msgspec.Raw(b"[[20000,[[1,0,1000,300,-18,2]]]]"), msgspec.Raw(b'[["1",1,19992,4,5]]')
    whole = ItemScores(20_000, 3, [["1", "mugs"]], [19_999, 3_000], kept, sums)
    assert (pack_scores(whole), unpack_scores(text)) == (text, whole)
    assert pack_sums_by_step({7: [1, -2], 1: [3, 4]}) == "[[1,3,4],[7,1,-2]]"
