"""ClusterClient: finds the node of a Redis Cluster that serves a key, and follows keys when slots or masters move.

Routing only, over one plain redis-py client a node; waiting and trying again is the caller's. redis-py's own asyncio
cluster client is not used: while slots move it sends ASKING and the command it is meant for over different connections,
it does not know a node that joined meanwhile, and on every change it closes connections that other calls are using.
"""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.crc import key_slot

Address = tuple[str, int]

# Of one command: to the node that has the slot now, on to where it is moving to, and once more for a move in between.
_MOST_REDIRECTS = 4
_DEFAULT_PORT = 6379
_REDIRECTION = re.compile(r"(MOVED|ASK) \d+ (.*):(\d+)$")


class NotAClusterError(redis_errors.RedisError):
    """The server answers, but not as a node of a cluster."""


class ClusterClient:
    """Commands whose keys share one slot. `url` names one node, or several: redis://user:password@a:7000,b:7000.

    Besides what the node itself replies with, commands raise ConnectionError, TimeoutError or ClusterDownError when no
    node serves the slot just now, TryAgainError while it moves, and NotAClusterError; the first three also mean that
    the map of slots has been asked for anew, so that trying again can succeed.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._options: dict[str, Any] = options | dict(parse_url(_with_hosts(url, _hosts(url)[0])))
        for name in ("host", "port", "db"):
            self._options.pop(name, None)
        self._named: list[Address] = [_address(_with_hosts(url, host)) for host in _hosts(url)]
        self._clients: dict[Address, Any] = {}
        self._masters: dict[int, Address] = {}  # by slot
        self._nodes: set[Address] = set()
        self._map_version = 0
        self._mapping = asyncio.Lock()

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def servers(self) -> dict[str, Any]:
        """A client for each node of the cluster, replicas too, by "Redis host:port"."""
        await self._ask_for_map(self._map_version)
        return {f"Redis {_name(address)}": self._client(address) for address in sorted(self._nodes)}

    async def hget(self, key: str, field: str) -> Any:
        return await self.execute_command("HGET", key, field)

    async def hgetall(self, key: str) -> Any:
        return await self.execute_command("HGETALL", key)

    async def hmget(self, key: str, fields: list[str]) -> Any:
        return await self.execute_command("HMGET", key, *fields)

    async def hset(self, key: str, field: str, value: str) -> Any:
        return await self.execute_command("HSET", key, field, value)

    async def hdel(self, key: str, *fields: str) -> Any:
        return await self.execute_command("HDEL", key, *fields)

    async def eval(self, script: str, key_count: int, *keys_and_arguments: Any) -> Any:
        return await self.execute_command("EVAL", script, key_count, *keys_and_arguments)

    async def evalsha(self, digest: str, key_count: int, *keys_and_arguments: Any) -> Any:
        return await self.execute_command("EVALSHA", digest, key_count, *keys_and_arguments)

    async def execute_command(self, *args: Any) -> Any:
        """Run one command on the master that serves its keys."""
        key = args[3] if args[0] in ("EVAL", "EVALSHA") else args[1]
        slot = key_slot(str(key).encode())
        version = self._map_version
        if slot not in self._masters:
            await self._ask_for_map(version)
        if (address := self._masters.get(slot)) is None:
            raise redis_errors.ClusterDownError(f"no node serves slot {slot}")
        asking = False
        for _ in range(1 + _MOST_REDIRECTS):
            try:
                return await self._send(address, args, asking=asking)
            except redis_errors.AuthenticationError:
                raise
            except (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ClusterDownError, OSError):
                await self._ask_for_map(version, avoid=address)
                raise
            except redis_errors.ResponseError as error:
                redirection = _redirection(error, address)
                if redirection is None:
                    raise
                address, asking = redirection
                if not asking:
                    self._masters[slot] = address
                    self._nodes.add(address)
        raise redis_errors.TryAgainError(f"slot {slot} is moving between nodes")

    async def _send(self, address: Address, args: tuple[Any, ...], *, asking: bool) -> Any:
        client = self._client(address)
        if not asking:
            return await client.execute_command(*args)
        async with client.pipeline(transaction=False) as pipe:  # ASKING holds for the next command of its connection
            pipe.execute_command("ASKING")
            pipe.execute_command(*args)
            _, reply = await pipe.execute(raise_on_error=False)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _ask_for_map(self, version: int, avoid: Address | None = None) -> None:
        """Have a node tell who serves which slot, unless another call has done so since `version`. The nodes of the url
        are asked last: they may be long gone. Leaves the map as it is when no node answers and there is one."""
        async with self._mapping:
            if version != self._map_version:
                return
            known = sorted(self._nodes - {avoid})
            random.shuffle(known)  # one that is cut off from the others must not be asked each time
            error: Exception | None = None
            for address in dict.fromkeys([*known, *self._named, *self._nodes]):
                try:
                    slots = await self._client(address).execute_command("CLUSTER", "SLOTS")
                except redis_errors.AuthenticationError:
                    raise
                except redis_errors.ResponseError as refusal:
                    if "cluster support disabled" in str(refusal):
                        message = f"the Redis at {_name(address)} is not part of a cluster: set redis_cluster to false."
                        raise NotAClusterError(message) from None
                    error = refusal
                except (redis_errors.RedisError, OSError) as failure:
                    error = failure
                else:
                    self._take_map(slots, address)
                    return
            if not self._masters and error is not None:
                raise error

    def _take_map(self, slots: list[Any], told_by: Address) -> None:
        self._masters, self._nodes = {}, set()
        for first, last, *nodes in slots:
            addresses = [(_text(host) or told_by[0], int(port)) for host, port, *_ in nodes]
            self._masters.update(dict.fromkeys(range(first, last + 1), addresses[0]))
            self._nodes.update(addresses)
        self._map_version += 1

    def _client(self, address: Address) -> Any:
        # Clients of nodes that have left are kept until the end: calls may still be waiting for them.
        if address not in self._clients:
            host, port = address
            self._clients[address] = Redis.from_pool(ConnectionPool(host=host, port=port, **self._options))
        return self._clients[address]


def _name(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _hosts(url: str) -> list[str]:
    return urlsplit(url).netloc.rpartition("@")[2].split(",")


def _with_hosts(url: str, hosts: str) -> str:
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{login}{at}{hosts}").geturl()


def _address(url: str) -> Address:
    options = parse_url(url)
    return options.get("host", "localhost"), options.get("port", _DEFAULT_PORT)


def _redirection(error: redis_errors.ResponseError, told_by: Address) -> tuple[Address, bool] | None:
    """Where to, and whether to say ASKING there; None when the error is another. A node that does not know by which
    name it is reached sends no host: it means its own."""
    if isinstance(error, redis_errors.AskError):  # a MovedError is one, too
        return (error.host or told_by[0], error.port), not isinstance(error, redis_errors.MovedError)
    # Older redis-py has these classes for its own cluster client only.
    if found := _REDIRECTION.match(str(error)):
        return (found[2] or told_by[0], int(found[3])), found[1] == "ASK"
    return None


def _text(name: bytes | str | None) -> str:
    name = name.decode() if isinstance(name, bytes) else name or ""
    return "" if name == "?" else name
