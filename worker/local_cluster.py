"""A Redis Cluster on this machine, three masters with a replica each, from the binary that LocalRedis uses.

with LocalRedisCluster(directory) as cluster:
    slot = cluster.slot_of("{shop:0}:meta")
    cluster.fail_over(cluster.owner_of(slot))
    move = cluster.begin_move(slot)
    while move.move_keys(10): ...  # what is asked meanwhile meets the half-moved slot
    move.finish()
"""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from worker.errors import LocalStackError
from worker.local_server import FIRST_PORT, HOST, PORT_COUNT
from worker.local_stack import LocalRedis

_SLOTS = 16_384
_MASTERS, _REPLICAS = 3, 3
_BUS = 10_000  # nodes talk to each other at their port and this
# A master silent for this long is replaced. Shorter ones mistake a busy small machine's pauses for deaths.
_NODE_TIMEOUT_MS = 2_000
_PATIENCE_S = 60.0


class LocalRedisNode(LocalRedis):
    """One server of a cluster. Killed and started again it comes back as what the others have made of it."""

    def __init__(self, directory: Path, name: str, binary: Path | None) -> None:
        self.name = name  # type: ignore[misc]
        super().__init__(directory, binary=binary)

    def call(self, *arguments: str | int) -> Any:
        """Send one command. Strings come back as str, arrays as lists. Raises LocalStackError on Redis' own errors,
        OSError when the node does not answer."""
        # By hand: redis-py has its home in feature_store/store.py, and redis-cli is in no wheel of ours for sure.
        with socket.create_connection((HOST, self.port), timeout=10) as connection:
            parts = [str(argument).encode() for argument in arguments]
            request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
            connection.sendall(request)
            reply = _read_reply(connection.makefile("rb"))
        if isinstance(reply, _Refusal):
            raise LocalStackError(f"{self.name} refused {' '.join(map(str, arguments[:6]))}: {reply}")
        return reply

    def info(self, *command: str) -> dict[str, str]:
        """A reply of lines "name:value", as those of INFO and CLUSTER INFO."""
        lines = [line.partition(":") for line in self.call(*command).splitlines()]
        return {name: value for name, _, value in lines}

    @property
    def node_id(self) -> str:
        """The node's name among the nodes."""
        return str(self.call("CLUSTER", "MYID"))

    def _command(self) -> list[str]:
        options = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(_NODE_TIMEOUT_MS),
            # A replica takes over however long ago it heard from its master, so that tests can make one lag behind.
            "cluster-replica-validity-factor": "0",
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
        }
        return super()._command() + [text for name, value in options.items() for text in (f"--{name}", value)]

    def _ports(self) -> list[int]:
        return [self.port, self.port + _BUS]

    def _choose_ports(self) -> None:
        super()._choose_ports()
        while self.port + _BUS >= FIRST_PORT + PORT_COUNT:
            super()._choose_ports()


class SlotMove:
    """A slot on its way from one master to another, its keys as many at a time as the caller likes."""

    def __init__(self, slot: int, source: LocalRedisNode, target: LocalRedisNode, nodes: list[LocalRedisNode]) -> None:
        self._slot, self._source, self._target, self._nodes = slot, source, target, nodes
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)

    def move_keys(self, most: int = 100) -> int:
        """Move up to that many keys. Returns how many were moved: 0 = none is left."""
        keys = self._source.call("CLUSTER", "GETKEYSINSLOT", self._slot, most)
        if keys:
            self._source.call("MIGRATE", HOST, self._target.port, "", 0, 10_000, "KEYS", *keys)
        return len(keys)

    def finish(self) -> None:
        """Move what is left and give the slot to its new master; all nodes know at once."""
        target_id = self._target.node_id
        while self.move_keys():
            pass
        # The new master first: should the old one forget the slot before anyone has it, requests go in circles.
        for node in [self._target, self._source, *self._nodes]:
            if node.info("INFO", "replication")["role"] == "master":
                node.call("CLUSTER", "SETSLOT", self._slot, "NODE", target_id)


class LocalRedisCluster:
    """Six servers; blocking throughout, one caller at a time. `binary` as for LocalRedis."""

    def __init__(self, directory: Path, *, binary: Path | None = None) -> None:
        self._directory, self._binary = directory, binary
        self.nodes = [self._new_node(n) for n in range(_MASTERS + _REPLICAS)]
        self._masters = _MASTERS

    @property
    def url(self) -> str:
        """Of one node; a client finds the others by it."""
        return self.nodes[0].url

    def start(self) -> None:
        """Start the nodes that do not run, form the cluster if there is none; returns when all is well."""
        try:
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.wait_until_ready()
            if all(node.info("CLUSTER", "INFO")["cluster_known_nodes"] == "1" for node in self.nodes):
                self._form()
            self.wait_until_well()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill all nodes: one asked politely would have the others wait for it."""
        for node in self.nodes:
            node.kill()

    def slot_of(self, key: str) -> int:
        """The slot that a key is in."""
        return int(self._running()[0].call("CLUSTER", "KEYSLOT", key))

    def owner_of(self, slot: int) -> LocalRedisNode:
        """The master that serves a slot, as a running node sees it."""
        for first, last, port in _owners(self._running()[0]):
            if first <= slot <= last:
                return self._at(port)
        raise LocalStackError(f"no node serves slot {slot}")

    def replicas_of(self, master: LocalRedisNode) -> list[LocalRedisNode]:
        """The running replicas of a running master."""
        lines = [line.split() for line in master.call("CLUSTER", "REPLICAS", master.node_id)]
        ports = {_port_of(line[1]) for line in lines}
        return [node for node in self._running() if node.port in ports]

    def fail_over(self, master: LocalRedisNode) -> None:
        """Kill a master; returns when a replica has taken over and all other nodes know. `start` brings it back."""
        master.kill()
        self._wait_until(
            lambda: all(master.port not in _ports_of_owners(node) for node in self._running()) and self._is_well(),
            f"{master.name} was killed, but no replica has taken over",
        )

    def wait_until_copied(self, master: LocalRedisNode) -> None:
        """Wait until the replicas of a master have all that it has now."""
        written = int(master.info("INFO", "replication")["master_repl_offset"])
        self._wait_until(
            lambda: all(
                int(replica.info("INFO", "replication").get("slave_repl_offset", -1)) >= written
                for replica in self.replicas_of(master)
            ),
            f"the replicas of {master.name} do not keep up",
        )

    def add_master(self) -> LocalRedisNode:
        """Have one more node join, which serves no slot until one is moved to it."""
        node = self._new_node(len(self.nodes))
        self.nodes.append(node)
        node.start()
        self.nodes[0].call("CLUSTER", "MEET", HOST, node.port)
        self._wait_until(lambda: all(map(self._knows_all, self._running())), "the new node did not meet the others")
        self._masters += 1
        self.wait_until_well()
        return node

    def begin_move(self, slot: int, target: LocalRedisNode | None = None) -> SlotMove:
        """Begin to move a slot to another master, any other one unless told which."""
        source = self.owner_of(slot)
        if target is None:
            target = next(self._at(port) for _, _, port in _owners(source) if port != source.port)
        return SlotMove(slot, source, target, self._running())

    def wait_until_well(self) -> None:
        """Wait until all running nodes agree who serves which slot, and the replicas among them are up to date."""
        self._wait_until(self._is_well, "the cluster did not get well")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _new_node(self, n: int) -> LocalRedisNode:
        return LocalRedisNode(self._directory, f"redis-node-{n}", self._binary)

    def _form(self) -> None:
        masters, replicas = self.nodes[:_MASTERS], self.nodes[_MASTERS:]
        for n, master in enumerate(masters):
            master.call("CLUSTER", "SET-CONFIG-EPOCH", n + 1)  # masters of one epoch would quarrel at first
            slots = range(n * _SLOTS // _MASTERS, (n + 1) * _SLOTS // _MASTERS)
            master.call("CLUSTER", "ADDSLOTS", *slots)
        for node in self.nodes[1:]:
            self.nodes[0].call("CLUSTER", "MEET", HOST, node.port)
        self._wait_until(lambda: all(map(self._knows_all, self.nodes)), "the nodes did not meet")
        for master, replica in zip(masters, replicas, strict=True):
            replica.call("CLUSTER", "REPLICATE", master.node_id)

    def _knows_all(self, node: LocalRedisNode) -> bool:
        known = node.call("CLUSTER", "NODES").splitlines()
        return len(known) == len(self.nodes) and not any("handshake" in line for line in known)

    def _is_well(self) -> bool:
        running = self._running()
        owners, roles = [_owners(node) for node in running], [_roles(node) for node in running]
        return (
            all(view == owners[0] for view in owners)
            and sum(last - first + 1 for first, last, _ in owners[0]) == _SLOTS
            and all(view == roles[0] for view in roles)
            and {node.port for node in running} <= roles[0].keys()
            # A replica that has not been told of its master yet takes itself for one without slots.
            and sum(role == "master" for role in roles[0].values()) == self._masters
            and all(node.info("CLUSTER", "INFO")["cluster_state"] == "ok" for node in running)
            and all(node.info("INFO", "replication").get("master_link_status", "up") == "up" for node in running)
        )

    def _wait_until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise self._running()[0].failure(f"is one of a cluster that failed: {otherwise} in {_PATIENCE_S:g} s")
            time.sleep(0.05)

    def _running(self) -> list[LocalRedisNode]:
        return [node for node in self.nodes if node.is_running]

    def _at(self, port: int) -> LocalRedisNode:
        return next(node for node in self.nodes if node.port == port)


def _owners(node: LocalRedisNode) -> list[tuple[int, int, int]]:
    """(first slot, last slot, port of their master) as a node sees it."""
    return sorted((entry[0], entry[1], entry[2][1]) for entry in node.call("CLUSTER", "SLOTS"))


def _roles(node: LocalRedisNode) -> dict[int, str]:
    """By port "master", or the node_id of the master it copies, of all nodes that live, as a node sees them."""
    lines = [line.split() for line in node.call("CLUSTER", "NODES").splitlines()]
    living = [line for line in lines if "fail" not in line[2] and line[7] == "connected"]
    return {_port_of(line[1]): "master" if "master" in line[2] else line[3] for line in living}


def _port_of(address: str) -> int:
    return int(address.partition("@")[0].rpartition(":")[2])


def _ports_of_owners(node: LocalRedisNode) -> set[int]:
    return {port for _, _, port in _owners(node)}


class _Refusal(str):
    """An error that Redis replied with."""


def _read_reply(stream: BinaryIO) -> Any:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the connection was closed in the middle of a reply")
    kind, rest = line[:1], line[1:-2].decode()
    match kind:
        case b"+":
            return rest
        case b"-":
            return _Refusal(rest)
        case b":":
            return int(rest)
        case b"$":
            size = int(rest)
            return None if size < 0 else stream.read(size + 2)[:-2].decode()
        case b"*":
            return [_read_reply(stream) for _ in range(int(rest))]
    raise ConnectionError(f"not a reply of Redis: {line!r}")
