"""The scripts, on every Redis and Valkey found."""

import pytest

from feature_store.chunks import CHUNK
from feature_store.items import Item, ProductState
from feature_store.layout import LAYOUT_VERSION, MAX_EXACT, MAX_KEYS, EventIds
from feature_store.store import BehindError, Done, FencedError, StoreError, StoreRefusedError
from tests.feature_store.stores import (
    apply,
    batch,
    by_hand,
    cells,
    open_store,
    row,
    server_setting,
    summary,
    sums,
    units,
)

ORDERS, CLICKS = "shop.orders.v1", "shop.clicks.v1"


async def test_a_new_partition_is_empty_and_remembers_who_claimed_it(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        assert await store.peek_positions(0) == {}
        claim = await store.claim(0)
        assert (claim.positions, claim.newest, claim.items, claim.products) == ({}, {}, {}, {})
        assert (claim.dirty, claim.heads) == ({"1h": {}, "1d": {}}, {"1h": {}, "1d": {}})
        again = await store.claim(0)
        assert again.incarnation == claim.incarnation
        assert again.owner != claim.owner
        assert (await store.claim(1)).incarnation != claim.incarnation


async def test_whoever_held_a_partition_is_fenced_by_the_next_claim(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, open_store(each_redis_url) as other:
        old = await store.claim(0)
        new = await other.claim(0)
        step = batch(old, {ORDERS: 1}, [sums("mug", row(7, 1))], dirty=["mug"])
        with pytest.raises(FencedError):
            await store.apply(old, step)
        with pytest.raises(FencedError):
            await store.read(old, "1h", [], "1h", [], 0, 0)
        with pytest.raises(FencedError):
            await store.forecasts_done(old, "1h", [Done("mug", None, summary())])
        assert await store.peek_positions(0) == {}
        assert await units(other, new, "mug") == {}
        assert (await other.claim(0)).heads["1h"] == {}


async def test_apply_adds_exactly_what_it_is_given(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        one, other = [7, 1, -2, 3, 4, 5, 6, 7, 8], [7, 10, 20, 30, -40, 50, 60, 70, MAX_EXACT - 9]
        await apply(store, claim, batch(claim, {ORDERS: 5}, [sums("mug", one, row(8, 5)), sums("pot", row(7, 2))]))
        await apply(store, claim, batch(claim, {ORDERS: 9}, [sums("mug", other), sums("mug", row(7, 9), freq="1d")]))
        assert await cells(store, claim, "1h", ["mug", "pot", "jug"]) == {
            "mug": {7: [11, 18, 33, -36, 55, 66, 77, MAX_EXACT - 1], 8: row(8, 5)[1:]},
            "pot": {7: row(7, 2)[1:]},
            "jug": {},
        }
        assert await units(store, claim, "mug", "1d") == {7: 9}


async def test_what_was_applied_is_there_for_the_next_owner(each_redis_url: str) -> None:
    mug = Item("mug@york", "mug", "york", 5, 6)
    state = ProductState(title="Müg", stock={"york": (1, 2, 3)})
    async with open_store(each_redis_url) as store:
        claim = await store.claim(2)
        step = batch(
            claim,
            {ORDERS: 3, CLICKS: 1},
            dirty=["mug@york"],
            items={mug.item_id: mug},
            products={"mug": state},
            newest={"orders": 1_710_504_000_001},
        )
        sequence = await apply(store, claim, step)
        await store.forecasts_done(claim, "1d", [Done("mug@york", None, summary(revision=4))])
        found = await store.claim(2)
        assert found.positions == await store.peek_positions(2) == {ORDERS: 3, CLICKS: 1}
        assert found.newest == {"orders": 1_710_504_000_001}
        assert (found.items, found.products) == ({mug.item_id: mug}, {"mug": state})
        assert found.dirty == {"1h": {"mug@york": sequence}, "1d": {"mug@york": sequence}}
        assert found.heads == {"1h": {}, "1d": {"mug@york": (4, 480_000)}}
        shown = await store.look_up(2, "mug", "york")
        assert shown is not None
        assert (shown.item, shown.forecasts) == (mug, {"1h": None, "1d": summary(revision=4)})
        assert await store.look_up(2, "mug", "") is None


async def test_a_batch_applied_twice_counts_once_and_tells_the_same_sequence(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        for n in (1, 2, 3):
            step = batch(claim, {ORDERS: n, CLICKS: 5 * n}, [sums("mug", row(7, 10))], dirty=["mug"])
            first = await store.apply(claim, step)
            assert await store.apply(claim, step) == first
            claim.positions.update({ORDERS: n, CLICKS: 5 * n})
        assert await units(store, claim, "mug") == {7: 30}
        assert (await store.claim(0)).dirty["1h"] == {"mug": first}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({ORDERS: -1}, {ORDERS: 8}),
        ({ORDERS: 4}, {ORDERS: 8}),
        ({ORDERS: 6}, {ORDERS: 8}),
        ({ORDERS: 5, CLICKS: 0}, {ORDERS: 8, CLICKS: 1}),
        ({ORDERS: 4, CLICKS: -1}, {ORDERS: 5, CLICKS: 1}),  # one as it would be afterwards, one as before
    ],
)
async def test_a_position_that_is_not_the_expected_one_writes_nothing(
    each_redis_url: str, before: dict[str, int], after: dict[str, int]
) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        await apply(store, claim, batch(claim, {ORDERS: 5}, [sums("mug", row(7, 1))]))
        step = batch(claim, {}, [sums("mug", row(7, 1))], dirty=["mug"])
        step = step._replace(positions={topic: (before[topic], after[topic]) for topic in before})
        with pytest.raises(BehindError):
            await store.apply(claim, step)
        assert await store.peek_positions(0) == {ORDERS: 5}
        assert await units(store, claim, "mug") == {7: 1}


@pytest.mark.parametrize("positions", [{}, {ORDERS: (5, 5)}])
async def test_a_batch_that_moves_no_position_is_refused(
    each_redis_url: str, positions: dict[str, tuple[int, int]]
) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        with pytest.raises(ValueError, match="position"):
            await store.apply(claim, batch(claim, {}, [sums("mug", row(7, 1))])._replace(positions=positions))


async def test_an_emptied_redis_is_noticed_and_leftovers_are_not_added_to(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await store.claim(0)
        await apply(store, claim, batch(claim, {ORDERS: 5}, [sums("mug", row(7, 1))], dirty=["mug"]))
        await client.delete("{shop:0}:meta")  # as if all else had been restored from elsewhere
        for call in (
            store.apply(claim, batch(claim, {ORDERS: 6}, [sums("mug", row(7, 1))])),
            store.read(claim, "1h", ["mug"], "1h", ["mug"], 7, 7),
            store.forecasts_done(claim, "1h", [Done("mug", 1, summary())]),
        ):
            with pytest.raises(BehindError):
                await call
        anew = await store.claim(0)
        assert anew.incarnation != claim.incarnation
        with pytest.raises(BehindError):  # to the old owner it is not only fenced: what it remembers is gone
            await store.apply(claim, batch(claim, {ORDERS: 6}, [sums("mug", row(7, 1))]))
        assert (anew.positions, anew.items, anew.dirty["1h"]) == ({}, {}, {})
        await apply(store, anew, batch(anew, {ORDERS: 5}, [sums("mug", row(7, 1))]))
        assert await units(store, anew, "mug") == {7: 1}
        await client.flushall()
        with pytest.raises(BehindError):
            await store.apply(anew, batch(anew, {ORDERS: 6}))
        assert await client.keys() == []


async def test_a_redis_restored_from_the_past_is_noticed(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await store.claim(0)
        await apply(store, claim, batch(claim, {ORDERS: 5}))
        past = await client.hgetall("{shop:0}:meta")
        await apply(store, claim, batch(claim, {ORDERS: 9}))
        await client.delete("{shop:0}:meta")
        await client.hset("{shop:0}:meta", mapping=past)
        with pytest.raises(BehindError):
            await store.apply(claim, batch(claim, {ORDERS: 12}))


@pytest.mark.parametrize("sign", [1, -1])
async def test_a_sum_that_would_no_longer_be_exact_writes_nothing_at_all(each_redis_url: str, sign: int) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        await apply(store, claim, batch(claim, {ORDERS: 1}, [sums("mug", row(7, sign * (MAX_EXACT - 2)))]))
        harmless, over = sums("jug", row(7, 1)), sums("mug", row(8, 1), row(7, 2 * sign))
        with pytest.raises(StoreError, match=r"sums:mug.*2\^53"):
            await store.apply(claim, batch(claim, {ORDERS: 2}, [harmless, over], dirty=["mug"]))
        assert await store.peek_positions(0) == {ORDERS: 1}
        assert await cells(store, claim, "1h", ["jug", "mug"]) == {
            "jug": {},
            "mug": {7: row(7, sign * (MAX_EXACT - 2))[1:]},
        }
        assert (await store.claim(0)).dirty["1h"] == {}


async def test_a_script_touches_as_many_keys_as_the_limit_and_no_more(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        others = 3 + 2 + 1  # meta, items, products, two sets of marks, and what a snapshot is told
        most = [sums(f"item{i}", row(7, i + 1)) for i in range(MAX_KEYS - others)]
        with pytest.raises(StoreError, match=f"{MAX_KEYS + 1} keys"):
            await store.apply(claim, batch(claim, {ORDERS: 1}, [*most, sums("mug", row(7, 1))]))
        assert await store.peek_positions(0) == {}
        marked = [f"item{i}" for i in range(5000)]  # more fields than one HSET takes
        await apply(store, claim, batch(claim, {ORDERS: 1}, most, dirty=marked))
        assert await units(store, claim, "item1993") == {7: 1994}
        assert len((await store.claim(0)).dirty["1d"]) == 5000
        claim = await store.claim(0)
        assert len((await store.read(claim, "1h", marked, "1h", [], 0, 0)).marks) == 5000


async def test_chunks_that_left_the_retention_go_when_the_series_gets_a_new_one(each_redis_url: str) -> None:
    day, hour, five = CHUNK["1d"], CHUNK["1h"], CHUNK["5m"]
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)

        async def add(n: int, bucket: int, oldest_kept: int) -> dict[int, int]:
            await apply(store, claim, batch(claim, {ORDERS: n}, [sums("mug", row(bucket, 1), oldest_kept=oldest_kept)]))
            return await units(store, claim, "mug")

        others = [sums("mug", row(1, 1), freq="1d"), sums("mug", row(1, 1), freq="5m"), sums("pot", row(1, 1))]
        await apply(store, claim, batch(claim, {ORDERS: 1}, others))
        await apply(store, claim, batch(claim, {CLICKS: 1}, [sums("mug", [3, 0, 0, 0, 0, 6, 0, 0, 0])]))
        await add(2, hour - 1, 0)
        await add(3, hour, 0)
        last = hour - 1
        # No new chunk: nothing is looked through.
        assert await add(4, 2 * hour - 1, 2 * hour) == {3: 0, last: 1, hour: 1, 2 * hour - 1: 1}
        # Of the first chunk one bucket is still kept, so all of it stands.
        assert await add(5, 2 * hour, hour - 1) == {3: 0, last: 1, hour: 1, 2 * hour - 1: 1, 2 * hour: 1}
        assert await add(6, 3 * hour, hour) == {hour: 1, 2 * hour - 1: 1, 2 * hour: 1, 3 * hour: 1}
        assert await add(7, 30 * hour, 29 * hour) == {30 * hour: 1}
        # Nothing was said of other frequencies; other series are none of its business.
        assert await units(store, claim, "mug", "1d") == await units(store, claim, "mug", "5m") == {1: 1}
        assert await units(store, claim, "pot") == {1: 1}
        day_gone = [sums("mug", row(2, 1), freq="1d", oldest_kept=day), sums("mug", row(five, 1), freq="5m")]
        await apply(store, claim, batch(claim, {ORDERS: 8}, day_gone))
        assert await units(store, claim, "mug", "1d") == {}
        assert await units(store, claim, "mug", "5m") == {1: 1, five: 1}


async def test_a_forecast_done_clears_a_mark_only_if_nothing_came_since(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        first = await apply(store, claim, batch(claim, {ORDERS: 1}, dirty=["mug", "pot"]))
        seen = await store.read(claim, "1h", ["mug", "jug", "pot"], "1h", [], 0, 0)
        assert seen.marks == [first, None, first]
        second = await apply(store, claim, batch(claim, {ORDERS: 2}, dirty=["pot"]))
        assert second > first
        done = [Done("mug", first, summary(5)), Done("pot", first, summary(6)), Done("jug", None, summary(7))]
        for _ in range(2):  # the second time as after a lost reply
            await store.forecasts_done(claim, "1h", done)
        found = await store.claim(0)
        assert found.dirty == {"1h": {"pot": second}, "1d": {"mug": first, "pot": second}}
        assert {item: head.revision for item, head in found.heads["1h"].items()} == {"mug": 5, "pot": 6, "jug": 7}
        assert found.heads["1d"] == {}


async def test_an_item_withdrawn_has_no_forecast_any_more(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        mark = await apply(store, claim, batch(claim, {ORDERS: 1}, dirty=["mug"]))
        await store.forecasts_done(claim, "1h", [Done("mug", None, summary())])
        await store.forecasts_done(claim, "1h", [Done("mug", mark, None)])
        found = await store.claim(0)
        assert (found.heads["1h"], found.dirty["1h"]) == ({}, {})


async def test_a_read_tells_which_events_its_sums_hold(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        for n in (1, 2):
            step = batch(claim, {ORDERS: n}, [sums("mug", row(7, 10)), sums("pot", row(8, 1))], newest={"orders": n})
            await apply(store, claim, step)
            read = await store.read(claim, "1d", [], "1h", ["pot", "none", "mug", "pot"], 7, 8)
            assert (read.positions, read.newest) == ({ORDERS: n}, {"orders": n})
            rows = read.rows
            assert list(zip(rows.item.tolist(), rows.bucket.tolist(), strict=True)) == [(0, 8), (2, 7), (3, 8)]
            assert rows.values[:, 0].tolist() == [n, 10 * n, n]


async def test_a_read_brings_the_chunks_that_overlap_its_buckets_and_no_others(each_redis_url: str) -> None:
    size = CHUNK["1h"]
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        everywhere = sums("mug", *(row(bucket, bucket + 1) for bucket in range(10 * size)))
        await apply(store, claim, batch(claim, {ORDERS: 1}, [everywhere, sums("mug", row(size, 1), freq="5m")]))
        for first, last, chunks in (
            (0, 0, [0]),
            (size - 1, size, [0, 1]),
            (3 * size, 4 * size - 1, [3]),
            (8 * size + 1, 99 * size, [8, 9]),
            (10 * size, 11 * size, []),
            (1, 0, [0]),
            (size, 0, []),
        ):
            rows = (await store.read(claim, "1h", [], "1h", ["mug"], first, last)).rows
            expected = [bucket for chunk in chunks for bucket in range(chunk * size, (chunk + 1) * size)]
            assert rows.bucket.tolist() == expected
            assert rows.values[:, 0].tolist() == [bucket + 1 for bucket in expected]


async def test_scripts_that_redis_forgot_are_sent_again(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await store.claim(0)
        for n in (1, 2, 3):
            await client.script_flush()
            await apply(store, claim, batch(claim, {ORDERS: n}, [sums("mug", row(7, 1))]))
        await client.script_flush()
        assert await units(store, claim, "mug") == {7: 3}


async def test_a_fit_redis_is_not_refused(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        await store.claim(0)
        assert await store.check_server() == []
        await store.refuse_unfit_server()


async def test_a_redis_that_throws_keys_away_is_refused(each_redis_url: str) -> None:
    async with server_setting(each_redis_url, "maxmemory-policy", "allkeys-lru"), open_store(each_redis_url) as store:
        with pytest.raises(StoreRefusedError, match=r"allkeys-lru.*maxmemory-policy noeviction"):
            await store.refuse_unfit_server()


@pytest.mark.parametrize(
    ("stored", "remedy"), [(LAYOUT_VERSION + 1, "run the newer shelfcast"), (LAYOUT_VERSION - 1, "another namespace")]
)
async def test_what_another_layout_stored_is_refused(each_redis_url: str, stored: int, remedy: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        await store.claim(1)
        await client.hset("{shop:1}:meta", "layout", stored)
        for call in (store.claim(1), store.refuse_unfit_server()):
            with pytest.raises(StoreRefusedError, match=f"layout {stored}.*{remedy}"):
                await call


async def test_another_number_of_partitions_is_refused(each_redis_url: str) -> None:
    async with open_store(each_redis_url, partition_count=4) as store:
        await store.claim(1)
    async with open_store(each_redis_url, partition_count=8) as store:
        for call in (store.claim(1), store.refuse_unfit_server()):
            with pytest.raises(StoreRefusedError, match="4 partitions, the topics now have 8"):
                await call
    async with open_store(each_redis_url, namespace="other", partition_count=8) as store:
        await store.refuse_unfit_server()
        await store.claim(1)


async def test_what_stands_in_redis_reads_well_and_never_expires(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await store.claim(0)
        item = Item("mug", "mug", "", 5, 6)
        step = batch(claim, {ORDERS: 1}, [sums("mug", [1_000_007, 2500, 0, 0, 0, 3, 0, 0, 0])], dirty=["mug"])
        step = step._replace(items={"mug": item}, event_ids=[EventIds("orders", 12, ["a", "é b"])])
        await apply(store, claim, step)
        prefix = f"{{shop:0}}:{claim.incarnation}"
        place = 1_000_007 % CHUNK["1h"]
        assert await client.hgetall(f"{prefix}:sums:mug") == {
            f"ho{1_000_007 // CHUNK['1h']}": f"{place}:2500,0,0,0;",
            f"hc{1_000_007 // CHUNK['1h']}": f"{place}:3,0;",
        }
        assert await client.hgetall(f"{prefix}:items") == {"mug": '["mug","",5,6]'}
        assert await client.smembers(f"{prefix}:ids:orders:12") == {"a", "é b"}
        assert await client.hget("{shop:0}:meta", "ids:orders") == "12"
        names = await client.keys()
        assert {await client.ttl(name) for name in names} == {-1}
        assert all(name.startswith("{shop:0}:") for name in names)
