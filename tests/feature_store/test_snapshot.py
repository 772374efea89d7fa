"""Snapshots: a copy at one moment of a partition that is written to, as files, and brought back. On a real Redis; what
is expected is kept beside, as plain dicts of what was written."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feature_store.events import CalendarEntry
from feature_store.items import Item, ProductState
from feature_store.partition_copy import PartitionCopier
from feature_store.partition_restore import PartitionRestore
from feature_store.snapshot_files import Snapshot, SnapshotError, SnapshotWriter
from feature_store.snapshots import calendar_entries, load_snapshot
from feature_store.store import BehindError, StoreRefusedError
from tests.feature_store.snapshot_book import ORDERS, PRODUCTS, Book, rules, save, saved_cells, stored_cells
from tests.feature_store.stores import (
    FREQS,
    by_hand,
    fresh_namespace,
    open_store,
)


async def keys_of(url: str, namespace: str, partition: int = 0) -> set[str]:
    async with by_hand(url) as client:
        return {key async for key in client.scan_iter(f"{{{namespace}:{partition}}}:*")}


async def test_copies_of_a_partition_that_is_written_to_hold_what_their_positions_say(
    each_redis_url: str, tmp_path: Path
) -> None:
    async with open_store(each_redis_url) as store, open_store(each_redis_url) as other:
        claim = await store.claim(0)
        book, stop = Book(store, claim), asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                await book.step()

        writing = asyncio.create_task(write())
        positions = []
        for n in range(6):
            folder = tmp_path / str(n)
            (saved,) = await save(other, folder)
            position = saved.positions[ORDERS]
            positions.append(position)
            snapshot = Snapshot.open(folder)
            snapshot.verify()
            assert saved_cells(snapshot) == book.cells_at(position)
            items = {item[0]: Item(*item) for some in snapshot.rows(0, "items") for item in some}
            assert items == book.of(position, "items")
            products = {name: state for some in snapshot.rows(0, "products") for name, state in some}
            states = {name: msgspec.json.decode(state, type=ProductState) for name, state in products.items()}
            assert states == book.of(position, "products")
            ids: dict[tuple[str, int], set[str]] = defaultdict(set)
            for source, generation, event_id in (one for some in snapshot.rows(0, "event_ids") for one in some):
                ids[source, generation].add(event_id)
            assert ids == book.ids_at(position)
            marks = {item: mark for some in snapshot.rows(0, "dirty") for freq, item, mark in some if freq == "1d"}
            assert marks == book.marks_at(position)
            hourly = {item: mark for some in snapshot.rows(0, "dirty") for freq, item, mark in some if freq == "1h"}
            revisions = {row[1]: row[3] for some in snapshot.rows(0, "forecasts") for row in some}
            done = {item: mark for item, mark in marks.items() if item not in hourly}
            assert {item: revisions[item] for item in done} == done, "a mark was cleared without its forecast"
            assert hourly == {item: mark for item, mark in marks.items() if item in hourly}
            assert done
        stop.set()
        await writing
        assert positions == sorted(set(positions)), "nothing was written between the copies"
        assert positions[0] < positions[-1] <= len(book.steps)
        keys = await keys_of(each_redis_url, "shop")
        assert not any(key.endswith((":changed", ":restoring")) for key in keys)


async def test_a_copy_is_read_again_when_writers_were_let_go_too_early(
    each_redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        book = Book(store, await store.claim(0))
        for _ in range(20):
            await book.step()
        end = PartitionCopier._end
        interrupted: list[bool] = []

        async def late_end(self: PartitionCopier) -> bool:
            if not interrupted:
                await client.hset("{shop:0}:meta", "held_until", 1)  # as if this had taken longer than was granted
                await book.step()
            is_whole = await end(self)
            interrupted.append(is_whole)
            return is_whole

        monkeypatch.setattr(PartitionCopier, "_end", late_end)
        (saved,) = await save(store, tmp_path / "s")
        assert interrupted == [False, True]
        assert saved.positions == {ORDERS: 21}
        assert saved_cells(Snapshot.open(tmp_path / "s")) == book.cells_at(21)


async def test_writers_wait_while_a_partition_is_held_and_then_go_on(
    each_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await store.claim(0)
        book = Book(store, claim)
        await book.step()
        far = 2**50
        await client.hset("{shop:0}:meta", mapping={"copy": "x", "copy_until": far, "held_until": far})
        told, run = asyncio.Event(), store._calls.run

        async def listen(*arguments: Any) -> Any:
            reply = await run(*arguments)
            if reply[0] == b"HELD":
                told.set()
            return reply

        monkeypatch.setattr(store._calls, "run", listen)
        step = asyncio.create_task(book.step())
        await told.wait()
        await store.read(claim, "1h", [], "1h", [], 0, 0)  # who only reads does not wait
        assert await store.peek_positions(0) == {ORDERS: 1}
        assert not step.done()
        await client.hdel("{shop:0}:meta", "held_until")
        await step
        assert await store.peek_positions(0) == {ORDERS: 2}


async def test_a_copy_that_was_killed_is_waited_for_and_leaves_nothing_behind(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        book = Book(store, await store.claim(0))
        await book.step()
        killed = PartitionCopier(store._calls, "shop", 0, FREQS)
        killed._incarnation = (await client.hget("{shop:0}:meta", "incarnation")) or ""
        killed._keys = type(killed._keys)("shop", 0, killed._incarnation)
        await killed._step("begin")
        await book.step()
        with pytest.raises(StoreRefusedError, match="another snapshot of partition 0"):
            await store.copy_partition(0)
        assert await client.pttl(killed._keys.changed) > 0
        await client.hset("{shop:0}:meta", "copy_until", 1)  # its time is over
        await book.step()
        copy = await store.copy_partition(0)
        assert copy is not None
        assert copy.meta["position:" + ORDERS] == "3"
        assert "copy" not in (await client.hgetall("{shop:0}:meta"))


async def test_nothing_stands_in_a_partition_that_was_never_claimed(each_redis_url: str, tmp_path: Path) -> None:
    async with open_store(each_redis_url) as store:
        assert await save(store, tmp_path / "s", (3,)) == []
        assert Snapshot.open(tmp_path / "s").manifest.partitions == {}


async def test_a_restored_partition_is_what_was_saved_and_goes_on_from_its_positions(
    each_redis_url: str, tmp_path: Path
) -> None:
    there = fresh_namespace()
    async with open_store(each_redis_url) as store, open_store(each_redis_url, there) as other:
        claim = await store.claim(0)
        book = Book(store, claim)
        for _ in range(120):
            await book.step()
        await save(store, tmp_path / "s")
        restored = await load_snapshot(other, tmp_path / "s", rules())
        assert (restored.partitions, restored.positions_kept) == ([0], True)
        before, after = await store.claim(0), await other.claim(0)
        assert after.incarnation != before.incarnation
        for name in ("positions", "newest", "items", "products", "dirty", "heads", "generations"):
            assert getattr(after, name) == getattr(before, name), name
        series = list(book.of(120, "items"))
        assert await stored_cells(other, after, series) == book.cells_at(120)
        for name in list(before.heads["1h"])[:5]:
            item = before.items[name]
            here, shown = [await s.look_up(0, item.product_id, item.location_id) for s in (store, other)]
            assert shown is not None
            assert here is not None
            assert shown.forecasts == here.forecasts
            assert shown.forecasts["1h"] is not None
        # The next steps come out as they would have there.
        book._claim = before
        further = Book(other, after, products=PRODUCTS)
        further.steps, further._random = list(book.steps), book._random
        for _ in range(30):
            await further.step()
        assert await stored_cells(other, after, list(further.of(150, "items"))) == further.cells_at(150)
        assert calendar_entries(tmp_path / "s") == (CalendarEntry(3, 9),)


async def test_a_partition_that_holds_features_is_refused_unless_it_may_be_replaced(
    each_redis_url: str, tmp_path: Path
) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        book = Book(store, claim)
        for _ in range(5):
            await book.step()
        await save(store, tmp_path / "s")
        await book.step()
        with pytest.raises(StoreRefusedError, match="--replace"):
            await load_snapshot(store, tmp_path / "s", rules())
        assert (await store.peek_positions(0)) == {ORDERS: 6}
        await load_snapshot(store, tmp_path / "s", rules(replace=True))
        with pytest.raises(BehindError):
            await book.step()
        after = await store.claim(0)
        assert after.positions == {ORDERS: 5}
        assert await stored_cells(store, after, list(book.of(6, "items"))) == book.cells_at(5)
        keys = await keys_of(each_redis_url, "shop")
        assert {key.split(":")[2] for key in keys} == {"meta", after.incarnation}


async def test_a_restore_that_was_killed_leaves_no_features_and_the_next_one_clears_it_away(
    each_redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = fresh_namespace()
    async with open_store(each_redis_url) as store, open_store(each_redis_url, there) as other:
        book = Book(store, await store.claim(0))
        for _ in range(30):
            await book.step()
        await save(store, tmp_path / "s")

        class KilledError(Exception):
            pass

        async def die(*_: Any) -> None:
            raise KilledError

        for name in ("add_items", "add_ids", "commit"):
            with monkeypatch.context() as patch:
                patch.setattr(PartitionRestore, name, die)
                with pytest.raises(KilledError):
                    await load_snapshot(other, tmp_path / "s", rules())
            assert await other.peek_positions(0) == {}
            assert await other.copy_partition(0) is None
            with pytest.raises(StoreRefusedError, match="another restore of partition 0"):
                await load_snapshot(other, tmp_path / "s", rules())
            async with by_hand(each_redis_url) as client:
                await client.hset(f"{{{there}:0}}:restoring", "until", 1)  # its time is over
        with monkeypatch.context() as patch:  # killed when all was done but for clearing away
            patch.setattr(PartitionRestore, "_end", die)
            with pytest.raises(KilledError):
                await load_snapshot(other, tmp_path / "s", rules())
        claim = await other.claim(0)
        assert claim.positions == {ORDERS: 30}
        async with by_hand(each_redis_url) as client:
            await client.hset(f"{{{there}:0}}:restoring", "until", 1)
        book._store, book._claim = other, claim
        await book.step()  # a worker has gone on meanwhile
        again = await load_snapshot(other, tmp_path / "s", rules())
        assert (again.partitions, again.before) == ([], [0])
        assert await stored_cells(other, claim, list(book.of(31, "items"))) == book.cells_at(31)
        keys = await keys_of(each_redis_url, there)
        assert {key.split(":")[2] for key in keys} == {"meta", claim.incarnation}


async def test_a_worker_that_counts_first_is_not_overwritten(
    each_redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = fresh_namespace()
    async with open_store(each_redis_url) as store, open_store(each_redis_url, there) as other:
        book = Book(store, await store.claim(0))
        await book.step()
        await save(store, tmp_path / "s")
        commit = PartitionRestore.commit

        async def late_commit(self: PartitionRestore, *arguments: Any) -> None:
            await Book(other, await other.claim(0)).step()
            await commit(self, *arguments)

        monkeypatch.setattr(PartitionRestore, "commit", late_commit)
        with pytest.raises(StoreRefusedError, match="holds features"):
            await load_snapshot(other, tmp_path / "s", rules())
        assert await other.peek_positions(0) == {ORDERS: 1}
        assert len((await other.claim(0)).items) > 0


@pytest.mark.parametrize(("source", "target"), [(2, 3), (3, 1)])
async def test_products_are_dealt_out_anew_over_another_number_of_partitions(
    each_redis_url: str, tmp_path: Path, source: int, target: int
) -> None:
    def placed(count: int) -> Callable[[str], int]:
        return lambda product: PRODUCTS.index(product) % count

    there = fresh_namespace()
    async with (
        open_store(each_redis_url, "shop", source) as store,
        open_store(each_redis_url, there, target) as other,
    ):
        books = {}
        for p in range(source):
            books[p] = Book(
                store, await store.claim(p), seed=p, products=[x for x in PRODUCTS if placed(source)(x) == p]
            )
            for _ in range(40 + 30 * p):
                await books[p].step()
        await save(store, tmp_path / "s", tuple(range(source)))
        restored = await load_snapshot(other, tmp_path / "s", rules(partition_of=placed(target), before={"orders": 9}))
        assert not restored.positions_kept
        expected, found = Counter[tuple[str, str, int, int]](), Counter[tuple[str, str, int, int]]()
        items: dict[str, Item] = {}
        for book in books.values():
            expected += book.cells_at(len(book.steps))
            items |= book.of(len(book.steps), "items")
        for p in range(target):
            claim = await other.claim(p)
            assert claim.positions == {}
            assert claim.before == {"orders": 9}
            assert set(claim.items) == {name for name, item in items.items() if placed(target)(item.product_id) == p}
            assert claim.newest["orders"] == max(len(book.steps) for book in books.values())
            found += await stored_cells(other, claim, list(claim.items))
            copy = await other.copy_partition(p)
            assert copy is not None
            wanted: Mapping[Any, set[str]] = defaultdict(set)
            for book in books.values():
                for generation, ids in book.ids_at(len(book.steps)).items():
                    wanted[generation].update(ids)
            assert {g: {one.decode() for one in ids} for g, ids in copy.ids.items()} == wanted
        assert found == expected
        with pytest.raises(SnapshotError, match="at once"):
            await load_snapshot(other, tmp_path / "s", rules(replace=True), [0])


async def test_a_snapshot_of_another_layout_is_restored_by_the_names_of_things(
    each_redis_url: str, tmp_path: Path
) -> None:
    there = fresh_namespace()
    async with open_store(each_redis_url) as store, open_store(each_redis_url, there) as other:
        book = Book(store, await store.claim(0))
        await book.step()
        await save(store, tmp_path / "s")
        manifest = tmp_path / "s" / "manifest.json"
        text = manifest.read_text()
        assert '"layout_version": 2' in text
        manifest.write_text(text.replace('"layout_version": 2', '"layout_version": 7'))
        await load_snapshot(other, tmp_path / "s", rules())
        claim = await other.claim(0)
        assert await stored_cells(other, claim, list(claim.items)) == book.cells_at(1)
        manifest.write_text(text.replace('"format_version": 1', '"format_version": 2'))
        with pytest.raises(SnapshotError, match="newer shelfcast"):
            Snapshot.open(tmp_path / "s")


async def test_what_would_mean_something_else_is_refused_or_left_out(each_redis_url: str, tmp_path: Path) -> None:
    there = fresh_namespace()
    async with open_store(each_redis_url) as store, open_store(each_redis_url, there) as other:
        await Book(store, await store.claim(0)).step()
        await save(store, tmp_path / "s", time_zone="Europe/London", dedup_window_ms={"orders": 50})
        with pytest.raises(SnapshotError, match="Set time_zone as it was"):
            await load_snapshot(other, tmp_path / "s", rules(meaning={"time_zone": "UTC"}))
        meaning = {"time_zone": "Europe/London", "dedup_window_ms": {"orders": 60}}
        restored = await load_snapshot(other, tmp_path / "s", rules(meaning=meaning, keep_positions=False))
        assert restored.ids_left_out == ["orders"]
        claim = await other.claim(0)
        assert claim.generations["orders"] == set()
        assert claim.positions == {}
        assert claim.newest == {"orders": 1, "clock": 1}


async def test_a_damaged_or_unfinished_snapshot_is_refused(each_redis_url: str, tmp_path: Path) -> None:
    async with open_store(each_redis_url) as store:
        await Book(store, await store.claim(0)).step()
        SnapshotWriter(tmp_path / "killed")
        with pytest.raises(SnapshotError, match=r"killed\.partial was left by one that was killed"):
            Snapshot.open(tmp_path / "killed")
        await save(store, tmp_path / "killed")
        assert not (tmp_path / "killed.partial").exists()
        with pytest.raises(SnapshotError, match="exists"):
            SnapshotWriter(tmp_path / "killed")
        table = tmp_path / "killed" / "partition-00000" / "sums.parquet"
        table.write_bytes(table.read_bytes()[:-1] + b"x")
        with pytest.raises(SnapshotError, match=r"sums\.parquet is missing or not what the manifest says"):
            await load_snapshot(store, tmp_path / "killed", rules(replace=True))
