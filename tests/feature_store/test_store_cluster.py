"""A store on a real Redis Cluster of every kind found: slots move and masters die, and each event counts once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from feature_store.layout import Keys
from feature_store.snapshot_files import About, SnapshotWriter
from feature_store.snapshots import RestoreRules, load_snapshot, save_partition
from feature_store.store import BehindError, Claim, Done, FeatureStore, FencedError, StoreRefusedError
from tests.feature_store.stores import (
    FREQS,
    Noticed,
    apply,
    batch,
    fresh_namespace,
    open_store,
    row,
    summary,
    sums,
    units,
)
from worker.local_cluster import LocalRedisCluster, LocalRedisNode
from worker.local_stack import LocalRedis, redis_binaries

TOPIC = "shop.orders.v1"
PARTITIONS = 9
PATIENCE_S = 60.0  # long enough for a machine that is slow at times; nothing waits for it when all is well


@pytest.fixture(scope="module", params=list(redis_binaries()) or ["missing"])
def a_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedisCluster]:
    with LocalRedisCluster(tmp_path_factory.mktemp("cluster"), binary=redis_binaries()[request.param]) as cluster:
        yield cluster


@pytest.fixture
def cluster(a_cluster: LocalRedisCluster) -> LocalRedisCluster:
    """With all its nodes; its data are those of the tests before."""
    a_cluster.start()
    return a_cluster


class Shop:
    """A namespace of its own on a cluster."""

    def __init__(self, cluster: LocalRedisCluster, store: FeatureStore, namespace: str) -> None:
        self.cluster, self.store, self._namespace = cluster, store, namespace

    def slot(self, partition: int) -> int:
        return self.cluster.slot_of(Keys(self._namespace, partition).meta)

    def master(self, partition: int) -> LocalRedisNode:
        return self.cluster.owner_of(self.slot(partition))


@asynccontextmanager
async def open_shop(cluster: LocalRedisCluster, url: str = "") -> AsyncIterator[Shop]:
    namespace = fresh_namespace()
    store = FeatureStore(
        url or cluster.url, namespace=namespace, partition_count=PARTITIONS, forecast_freqs=FREQS, cluster=True
    )
    try:
        yield Shop(cluster, store, namespace)
    finally:
        await store.close()


async def sell(store: FeatureStore, claim: Claim, to: int, *series: str) -> None:
    """Move the position to `to` and count one unit in each series."""
    await apply(store, claim, batch(claim, {TOPIC: to}, [sums(name, row(7, 1)) for name in series], dirty=series))


async def test_partitions_on_all_masters_are_claimed_applied_read_and_done(cluster: LocalRedisCluster) -> None:
    async with open_shop(cluster) as shop:
        assert len({shop.master(partition).name for partition in range(PARTITIONS)}) == 3
        for partition in range(PARTITIONS):
            claim = await shop.store.claim(partition)
            await sell(shop.store, claim, 1, "mug", "pot")
            (mark,) = (await shop.store.claim(partition)).dirty["1h"].keys() & {"mug"}
            claim = await shop.store.claim(partition)
            done = Done(mark, claim.dirty["1h"][mark], summary())
            await shop.store.forecasts_done(claim, "1h", [done])
            again = await shop.store.claim(partition)
            assert again.dirty == {"1h": {"pot": claim.dirty["1h"]["pot"]}, "1d": claim.dirty["1d"]}
            assert again.heads["1h"]["mug"].revision == 1
            assert await units(shop.store, again, "mug") == {7: 1}
            assert await shop.store.peek_positions(partition) == {TOPIC: 1}


async def test_a_call_waits_while_its_slot_is_half_moved(cluster: LocalRedisCluster) -> None:
    async with open_shop(cluster) as shop:
        claim, other = await shop.store.claim(0), await shop.store.claim(1)
        names = [f"item{n}" for n in range(30)]
        await sell(shop.store, claim, 1, *names)
        move = cluster.begin_move(shop.slot(0))
        move.move_keys(15)
        with Noticed() as noticed:
            waiting = asyncio.create_task(sell(shop.store, claim, 2, *names))
            await noticed.in_call(waiting)
            assert shop.store.is_away
            await sell(shop.store, other, 1, "mug")  # partitions whose slots stay go on
            assert not waiting.done()
            move.finish()
            await waiting
        assert not shop.store.is_away
        assert [await units(shop.store, claim, name) for name in names] == [{7: 2}] * 30


async def test_a_slot_that_has_moved_but_for_its_last_word_is_read_and_written(cluster: LocalRedisCluster) -> None:
    """All keys are with the new master, which is not the owner yet: requests have to ask for leave on the connection
    that they come by, however many there are."""
    async with open_shop(cluster) as shop:
        claim = await shop.store.claim(0)
        await shop.store.forecasts_done(claim, "1h", [Done("mug", None, summary())])
        await asyncio.gather(*(shop.store.peek_positions(0) for _ in range(8)))  # open several connections
        move = cluster.begin_move(shop.slot(0))
        while move.move_keys():
            pass
        for _ in range(3):
            found = await asyncio.gather(*(shop.store.peek_positions(0) for _ in range(8)))
            assert found == [{}] * 8
        assert (await shop.store.claim(0)).heads["1h"]["mug"].revision == 1
        move.finish()
        await sell(shop.store, await shop.store.claim(0), 1, "mug")


async def test_a_slot_may_move_to_a_master_that_joined_later(tmp_path: Path) -> None:
    with LocalRedisCluster(tmp_path) as cluster:
        async with open_shop(cluster) as shop:
            claim = await shop.store.claim(0)
            await sell(shop.store, claim, 1, "mug")
            move = cluster.begin_move(shop.slot(0), await asyncio.to_thread(cluster.add_master))
            while move.move_keys():
                pass
            assert await shop.store.peek_positions(0) == {TOPIC: 1}
            move.finish()
            await sell(shop.store, claim, 2, "mug")
            assert await units(shop.store, claim, "mug") == {7: 2}


async def test_calls_wait_for_the_failover_and_the_new_master_learns_the_scripts(cluster: LocalRedisCluster) -> None:
    async with open_shop(cluster) as shop:
        claim = await shop.store.claim(0)
        await sell(shop.store, claim, 1, "mug")
        master = shop.master(0)
        cluster.wait_until_copied(master)
        for replica in cluster.replicas_of(master):
            replica.call("SCRIPT", "FLUSH")
        await asyncio.to_thread(master.kill)
        with Noticed() as noticed:
            waiting = asyncio.create_task(sell(shop.store, claim, 2, "mug"))
            await noticed.in_call(waiting)
            await waiting
        assert await units(shop.store, claim, "mug") == {7: 2}


async def test_writes_that_die_with_their_master_are_noticed_and_made_again(cluster: LocalRedisCluster) -> None:
    async with open_shop(cluster) as shop:
        claim = await shop.store.claim(0)
        await sell(shop.store, claim, 1, "mug")
        master = shop.master(0)
        cut_off_replicas(cluster, master)
        for position in (2, 3):
            await sell(shop.store, claim, position, "mug")  # acknowledged, and known to the master alone
        await asyncio.to_thread(cluster.fail_over, master)
        with pytest.raises(BehindError):
            await sell(shop.store, claim, 4, "mug")
        claim = await shop.store.claim(0)
        assert claim.positions == {TOPIC: 1}
        for position in (2, 3, 4):
            await sell(shop.store, claim, position, "mug")
        assert await units(shop.store, claim, "mug") == {7: 4}


async def test_writes_of_one_topic_that_died_are_noticed_by_whoever_asks_next(cluster: LocalRedisCluster) -> None:
    async with open_shop(cluster) as shop:
        claim = await shop.store.claim(0)
        await sell(shop.store, claim, 1, "mug")
        await apply(shop.store, claim, batch(claim, {"shop.clicks.v1": 1}))
        master = shop.master(0)
        cut_off_replicas(cluster, master)
        await sell(shop.store, claim, 2, "mug")
        await asyncio.to_thread(cluster.fail_over, master)
        with pytest.raises(BehindError):  # orders fell back, and it is clicks that come
            await shop.store.apply(claim, batch(claim, {"shop.clicks.v1": 2}))
        with pytest.raises(BehindError):  # or nothing comes, and forecasts are made
            await units(shop.store, claim, "mug")


def cut_off_replicas(cluster: LocalRedisCluster, master: LocalRedisNode) -> None:
    """Let the replicas of a master hear nothing more from it, and still take over when it dies."""
    cluster.wait_until_copied(master)
    for replica in cluster.replicas_of(master):
        replica.call("CONFIG", "SET", "masteruser", "nobody")
        replica.call("CONFIG", "SET", "masterauth", "wrong")
    master.call("CLIENT", "KILL", "TYPE", "replica")


class Till:
    """Sells in one partition without end, as a lane does: what it sells at a position is always the same."""

    def __init__(self, store: FeatureStore, partition: int) -> None:
        self._store, self._partition = store, partition
        self.position = 0
        self.went_back = 0
        self._until = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def close(self) -> Claim:
        """Stop selling. Returns the claim held last."""
        self._until.set()
        return await self.task

    def sold_at(self, position: int) -> list[str]:
        return random.Random(1000 * position + self._partition).sample([f"item{n}" for n in range(40)], 5)

    async def _run(self) -> Claim:
        while True:
            claim = await self._store.claim(self._partition)
            stored = claim.positions.get(TOPIC, 0)
            self.went_back += stored < self.position
            self.position = stored
            try:
                while not self._until.is_set():
                    await sell(self._store, claim, self.position + 1, *self.sold_at(self.position))
                    self.position += 1
                return claim
            except (BehindError, FencedError):
                continue

    def truth(self) -> Counter[str]:
        """Units by series."""
        return Counter(name for position in range(self.position) for name in self.sold_at(position))


async def advance(tills: list[Till], by: int = 10) -> None:
    """Wait until each till has sold some more."""
    goals = [till.position + by for till in tills]
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while any(till.position < goal for till, goal in zip(tills, goals, strict=True)):
        assert asyncio.get_running_loop().time() < deadline, f"{[t.position for t in tills]} of {goals} were sold"
        for till in tills:
            if till.task.done():
                raise AssertionError("a till was closed") from till.task.exception()
        await asyncio.sleep(0.01)


async def test_each_event_counts_once_through_failovers_and_slot_moves(cluster: LocalRedisCluster) -> None:
    async with open_shop(cluster) as shop:
        tills = [Till(shop.store, partition) for partition in range(PARTITIONS)]
        await advance(tills)
        for partition in range(3):  # slots move in slow motion
            move = cluster.begin_move(shop.slot(partition))
            while await asyncio.to_thread(move.move_keys, 5):
                await advance(tills[3:], 1)
            move.finish()
        await advance(tills)
        for partition in (0, 4):  # masters die, one of them with writes that no replica has
            master = shop.master(partition)
            if partition == 4:
                cut_off_replicas(cluster, master)
                await advance(tills)
            await asyncio.to_thread(cluster.fail_over, master)
            await advance(tills)
            await asyncio.to_thread(cluster.start)
        await asyncio.to_thread(cluster.stop)  # all at once
        await asyncio.to_thread(cluster.start)
        await advance(tills)
        claims = [await till.close() for till in tills]

        for till, claim in zip(tills, claims, strict=True):
            truth = till.truth()
            assert {name: await units(shop.store, claim, name) for name in truth} == {
                name: {7: sold} for name, sold in truth.items()
            }
        assert tills[4].went_back


async def test_calls_wait_while_the_whole_cluster_is_down(tmp_path: Path) -> None:
    with LocalRedisCluster(tmp_path) as cluster:
        async with open_shop(cluster) as shop:
            claim = await shop.store.claim(0)
            await sell(shop.store, claim, 1, "mug")
            await asyncio.to_thread(cluster.stop)
            with Noticed() as noticed:
                waiting = asyncio.create_task(sell(shop.store, claim, 2, "mug"))
                await noticed.in_call(waiting)
                await asyncio.to_thread(cluster.start)
                try:
                    await waiting
                except BehindError:  # what had not reached the disk when the cluster was killed
                    assert (await shop.store.claim(0)).positions == {}
                else:
                    assert await units(shop.store, claim, "mug") == {7: 2}


async def test_any_node_of_the_url_will_do(cluster: LocalRedisCluster) -> None:
    async with open_shop(cluster, f"redis://127.0.0.1:9,{cluster.nodes[4].address}") as shop:
        await sell(shop.store, await shop.store.claim(0), 1, "mug")


async def test_every_node_is_looked_at_before_the_cluster_is_used(cluster: LocalRedisCluster) -> None:
    async with open_shop(cluster) as shop:
        assert await shop.store.check_server() == []
        for node in (cluster.nodes[2], cluster.nodes[4]):
            node.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            (finding,) = await shop.store.check_server()
            assert finding.startswith(f"Redis {node.address}: maxmemory-policy is allkeys-lru")
            node.call("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_a_single_server_taken_for_a_cluster_is_refused_and_the_other_way_round(
    cluster: LocalRedisCluster, redis_server: LocalRedis
) -> None:
    async with open_shop(cluster, redis_server.url) as shop:
        with pytest.raises(StoreRefusedError, match="not part of a cluster: set redis_cluster to false"):
            await shop.store.refuse_unfit_server()
    async with open_store(cluster.url) as store:
        with pytest.raises(StoreRefusedError, match="a node of a cluster: set redis_cluster to true"):
            await store.refuse_unfit_server()


async def test_a_wrong_password_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    with LocalRedisCluster(tmp_path) as cluster:
        for node in cluster.nodes:
            node.call("CONFIG", "SET", "requirepass", "secret")
        async with open_shop(cluster, cluster.url.replace("//", "//:wrong@")) as shop:
            with pytest.raises(StoreRefusedError, match="password"):
                await shop.store.claim(0)
        async with open_shop(cluster, cluster.url.replace("//", "//:secret@")) as shop:
            await shop.store.claim(0)


async def test_partitions_are_saved_and_restored_on_a_cluster_while_their_slot_moves(
    cluster: LocalRedisCluster, tmp_path: Path
) -> None:
    series = [f"item{n}" for n in range(40)]
    async with open_shop(cluster) as shop, open_shop(cluster) as other:
        claim = await shop.store.claim(0)
        await sell(shop.store, claim, 1, *series)
        move = cluster.begin_move(shop.slot(0))
        move.move_keys(20)
        copying = asyncio.create_task(shop.store.copy_partition(0))
        with Noticed() as noticed:  # half of the keys are elsewhere: a copy waits until they are together
            await noticed.in_call(copying)
        move.finish()
        copy = await copying
        assert copy is not None
        assert set(copy.sums) == set(series)
        writer = SnapshotWriter(tmp_path / "saved")
        assert await save_partition(shop.store, writer, 0) is not None
        writer.close(About("shop", PARTITIONS, FREQS, {}, chosen=False))
        await load_snapshot(other.store, tmp_path / "saved", RestoreRules(partition_of=lambda _: 0))
        there = await other.store.claim(0)
        assert there.positions == {TOPIC: 1}
        assert await units(other.store, there, "item7") == {7: 1}
