"""A cluster of real servers of every kind found, looked at with plain commands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.errors import LocalStackError
from worker.local_cluster import LocalRedisCluster
from worker.local_stack import redis_binaries


@pytest.fixture(scope="module", params=list(redis_binaries()) or ["missing"])
def a_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedisCluster]:
    with LocalRedisCluster(tmp_path_factory.mktemp("cluster"), binary=redis_binaries()[request.param]) as cluster:
        yield cluster


@pytest.fixture
def cluster(a_cluster: LocalRedisCluster) -> LocalRedisCluster:
    """With all its nodes, emptied."""
    a_cluster.start()
    for node in a_cluster.nodes:
        if node.info("INFO", "replication")["role"] == "master":
            node.call("FLUSHALL")
    return a_cluster


def test_three_masters_share_the_slots_and_each_has_a_replica(cluster: LocalRedisCluster) -> None:
    masters = {cluster.owner_of(slot).name for slot in range(0, 16_384, 100)}
    assert len(masters) == 3
    replicas = [cluster.replicas_of(node) for node in cluster.nodes if node.name in masters]
    assert sorted(len(found) for found in replicas) == [1, 1, 1]


def test_a_key_lives_where_its_slot_does_and_comes_along_when_it_moves(cluster: LocalRedisCluster) -> None:
    slot = cluster.slot_of("{shop:0}:a")
    before = cluster.owner_of(slot)
    for name in "abc":
        before.call("SET", f"{{shop:0}}:{name}", f"£{name}")
    move = cluster.begin_move(slot)
    assert move.move_keys(2) == 2
    left = before.call("CLUSTER", "GETKEYSINSLOT", slot, 10)
    assert len(left) == 1
    with pytest.raises(LocalStackError, match="ASK"):  # half moved: the old master sends on to the new one
        before.call("GET", "{shop:0}:none")
    move.finish()
    after = cluster.owner_of(slot)
    assert after is not before
    assert [after.call("GET", f"{{shop:0}}:{name}") for name in "abc"] == ["£a", "£b", "£c"]
    with pytest.raises(LocalStackError, match=f"MOVED {slot} {after.address}"):
        before.call("GET", "{shop:0}:a")


def test_a_replica_takes_over_from_a_killed_master_which_comes_back_as_replica(cluster: LocalRedisCluster) -> None:
    slot = cluster.slot_of("key")
    old = cluster.owner_of(slot)
    (replica,) = cluster.replicas_of(old)
    old.call("SET", "key", "kept")
    cluster.wait_until_copied(old)
    cluster.fail_over(old)
    assert cluster.owner_of(slot) is replica
    assert replica.call("GET", "key") == "kept"
    cluster.start()
    assert cluster.replicas_of(replica) == [old]


def test_a_new_master_joins_without_slots_and_can_be_given_some(tmp_path: Path) -> None:
    with LocalRedisCluster(tmp_path) as cluster:
        slot = cluster.slot_of("key")
        cluster.owner_of(slot).call("SET", "key", "kept")
        new = cluster.add_master()
        cluster.begin_move(slot, new).finish()
        cluster.wait_until_well()
        assert cluster.owner_of(slot) is new
        assert new.call("GET", "key") == "kept"


def test_stopped_and_started_again_it_is_the_same_cluster(tmp_path: Path) -> None:
    cluster = LocalRedisCluster(tmp_path)
    with cluster:
        slot = cluster.slot_of("key")
        cluster.owner_of(slot).call("SET", "key", "kept")
    assert not any(node.is_running for node in cluster.nodes)
    with cluster:
        assert cluster.owner_of(slot).call("GET", "key") == "kept"
