"""FeatureStore: the only door to Redis. Each method is one script, atomic on Redis and on Redis Cluster.

Every write compares owner, incarnation and positions first, so each event counts once whatever is killed: a worker that
lost its partition is told `FencedError`, one whose Redis was emptied or rolled back `BehindError`. While Redis is away,
calls wait and try again until it is back or the store is closed; nothing is lost, since a batch that was applied before
its reply got lost is recognised by its positions.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import redis.asyncio as redis_asyncio
from numpy.typing import NDArray
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from feature_store.events import item_id_of
from feature_store.features import FEATURES, BucketRows
from feature_store.items import Item, ProductState
from feature_store.layout import (
    LAYOUT_VERSION,
    MAX_EXACT,
    MAX_KEYS,
    STORED_FREQS,
    ForecastSummary,
    Keys,
    SeriesSums,
    pack_hash,
    unpack_sums,
)
from feature_store.outage import Outage
from feature_store.redis_cluster import ClusterClient, NotAClusterError

logger = logging.getLogger(__name__)

_RETRY_FIRST_S, _RETRY_MOST_S = 0.05, 1.0
_AWAY = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.BusyLoadingError,
    redis_errors.ReadOnlyError,
    redis_errors.TryAgainError,
    redis_errors.ClusterDownError,
    redis_errors.MasterDownError,
    redis_errors.OutOfMemoryError,  # raised before a script's first write; passes when memory is freed or added
    OSError,
)
# The same inside a script: Redis before 7 wraps the error of a command in one of its own, and redis-py has no class for
# two of them. They all come before a script's first write.
_AWAY_TEXT = re.compile(r"(^|-)(OOM|READONLY|MISCONF|NOREPLICAS|TRYAGAIN|CLUSTERDOWN|MASTERDOWN) ")
_CLUSTER_NODE = "This Redis is a node of a cluster: set redis_cluster to true."
# What methods that do not wait for Redis raise when it can't be reached or refuses.
REDIS_ERRORS: tuple[type[Exception], ...] = (redis_errors.RedisError, OSError)


class StoreError(Exception):
    """Something is wrong with the feature store that trying again does not mend."""


class StoreRefusedError(StoreError):
    """This Redis, or what stands in it, must not be used; the message names the remedy."""


class SumOverflowError(StoreError):
    """A sum would pass 2^53 and no longer be exact; nothing was written."""


class FencedError(StoreError):
    """Another worker has claimed the partition since."""


class BehindError(StoreError):
    """Redis does not stand where this worker left it: it was emptied or rolled back. Claim again and rebuild."""


class StoreClosedError(StoreError):
    """The store was closed while a call was waiting for Redis."""


class Heads(NamedTuple):
    """Of the last forecast sent: its revision, and the bucket that was running then."""

    revision: int
    running_bucket: int


class _HeadFields(msgspec.Struct):
    revision: int
    running_bucket: int


@dataclass
class Claim:
    """A partition held: the token that proves it, and all that a lane keeps in memory of Redis."""

    partition: int
    owner: str
    incarnation: str
    positions: dict[str, int]
    newest: dict[str, int]
    items: dict[str, Item] = field(default_factory=dict)
    products: dict[str, ProductState] = field(default_factory=dict)
    dirty: dict[str, dict[str, int]] = field(default_factory=dict)
    heads: dict[str, dict[str, Heads]] = field(default_factory=dict)


class Batch(NamedTuple):
    """One atomic step of a lane. `positions` maps topic to (position before, position after); -1 = none yet."""

    positions: Mapping[str, tuple[int, int]]
    newest: Mapping[str, int]
    items: Mapping[str, Item]
    products: Mapping[str, ProductState]
    dirty: Sequence[str]
    sums: Sequence[SeriesSums]


class SeriesRead(NamedTuple):
    """Stored buckets of the series asked for, with what they hold."""

    positions: dict[str, int]
    newest: dict[str, int]
    marks: list[int | None]
    rows: BucketRows  # `item` is the index of the series asked for


class Done(NamedTuple):
    """A forecast acknowledged by the broker. No summary: the item was withdrawn."""

    item_id: str
    mark: int | None
    summary: ForecastSummary | None


class Found(NamedTuple):
    """What stands under an item: the partition's meta, and by frequency its sums (bucket, values) and last forecast."""

    meta: dict[str, str]
    item: Item
    sums: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    forecasts: dict[str, ForecastSummary | None]


class FeatureStore:
    """Features, positions and forecasts owed of all partitions of one namespace."""

    def __init__(
        self,
        url: str,
        *,
        namespace: str,
        partition_count: int,
        forecast_freqs: Sequence[str],
        cluster: bool = False,
    ) -> None:
        # One loop of tries is enough, and `_when_back` tells of outages.
        options: dict[str, Any] = {
            "socket_timeout": 10.0,
            "socket_connect_timeout": 2.0,
            "retry": Retry(NoBackoff(), 0),
        }
        self._in_cluster = cluster
        self._redis: Any = ClusterClient(url, **options) if cluster else redis_asyncio.Redis.from_url(url, **options)
        self._url = url
        self._namespace = namespace
        self._partition_count = partition_count
        self._forecast_freqs = tuple(forecast_freqs)
        self._closed = False
        self._outage = Outage(
            logger,
            "Redis is away (%s): batches are kept and tried again until it is back",
            "Redis is back after %.1f s",
        )

    @property
    def is_away(self) -> bool:
        """Whether a call is waiting for Redis now, as the log has told."""
        return self._outage.is_on

    async def close(self) -> None:
        """Close the connections. Calls still waiting for Redis raise StoreClosedError."""
        self._closed = True
        await self._redis.aclose()

    async def check_server(self) -> list[str]:
        """What makes this Redis unfit, one sentence a finding with its remedy. Empty = fit. Raises OSError-like
        redis errors when it can't be reached."""
        try:
            servers = await self._redis.servers() if self._in_cluster else {"Redis": self._redis}
        except NotAClusterError as error:
            return [str(error)]
        findings = [finding for name, server in servers.items() for finding in await self._unfitness(name, server)]
        if _CLUSTER_NODE in findings:
            return [_CLUSTER_NODE]
        for partition in range(self._partition_count):
            meta = _text_map(_flat(await self._redis.hgetall(Keys(self._namespace, partition).meta)))
            findings += self._refusals(partition, meta)
        return findings

    async def _unfitness(self, name: str, server: Any) -> list[str]:
        findings = []
        try:
            about = await server.info("server")
            mode = about.get("redis_mode") or about.get("server_mode")  # the second is Valkey's word
            if mode == "cluster" and not self._in_cluster:
                findings.append(_CLUSTER_NODE)
            version = about["redis_version"]
            if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
                findings.append(f"{name} {version} is too old: use Redis 6.2 or newer, or Valkey.")
            policy = (await server.config_get("maxmemory-policy")).get("maxmemory-policy")
            if policy not in (None, "noeviction"):
                findings.append(
                    f"{name}: maxmemory-policy is {policy}, which throws features away when memory runs short. "
                    "Set 'maxmemory-policy noeviction'."
                )
        except redis_errors.ResponseError as error:
            logger.warning("%s does not let itself be looked at (%s); check maxmemory-policy by hand", name, error)
        return findings

    def _refusals(self, partition: int, meta: Mapping[str, str]) -> list[str]:
        if not meta:
            return []
        if int(meta["layout"]) > LAYOUT_VERSION:
            return [_layout_refusal(partition, meta["layout"])]
        if int(meta["partition_count"]) != self._partition_count:
            return [_partitions_refusal(partition, meta["partition_count"], self._partition_count)]
        return []

    async def refuse_unfit_server(self) -> None:
        """Wait for Redis if it is away, then raise StoreRefusedError when it must not be used; names each remedy."""
        findings = await self._when_back(self.check_server)
        if findings:
            raise StoreRefusedError(" ".join(findings))

    async def peek_positions(self, partition: int) -> dict[str, int]:
        """Positions as they stand, without claiming. Empty when the partition has none."""
        meta = await self._when_back(lambda: self._redis.hgetall(Keys(self._namespace, partition).meta))
        return _numbers(_text_map(_flat(meta)), "position:")

    async def claim(self, partition: int) -> Claim:
        """Take the partition over: whoever held it is fenced from now on.

        Raises:
            StoreRefusedError: stored by a newer layout, or for another number of partitions.
        """
        owner, incarnation = secrets.token_hex(8), secrets.token_hex(4)
        meta_key = Keys(self._namespace, partition).meta
        arguments = [owner, LAYOUT_VERSION, self._partition_count, incarnation]
        reply = await self._run("claim", [meta_key], arguments)
        if reply[0] == b"LAYOUT":
            raise StoreRefusedError(_layout_refusal(partition, reply[1].decode()))
        if reply[0] == b"PARTITIONS":
            raise StoreRefusedError(_partitions_refusal(partition, reply[1].decode(), self._partition_count))
        meta = _text_map(reply[1])
        claim = Claim(partition, owner, meta["incarnation"], _numbers(meta, "position:"), _numbers(meta, "newest:"))
        await self._load(claim)
        return claim

    async def _load(self, claim: Claim) -> None:
        keys = self._keys(claim)
        for item_id, raw in (await self._hash(keys.items)).items():
            claim.items[item_id] = msgspec.json.decode(raw, type=Item)
        for product_id, raw in (await self._hash(keys.products)).items():
            claim.products[product_id] = msgspec.json.decode(raw, type=ProductState)
        for freq in self._forecast_freqs:
            claim.dirty[freq] = {item_id: int(mark) for item_id, mark in (await self._hash(keys.dirty(freq))).items()}
            heads = {
                item_id: msgspec.json.decode(raw, type=_HeadFields)
                for item_id, raw in (await self._hash(keys.forecasts(freq))).items()
            }
            claim.heads[freq] = {item_id: Heads(h.revision, h.running_bucket) for item_id, h in heads.items()}

    async def _hash(self, key: str) -> dict[str, bytes]:
        reply = await self._when_back(lambda: self._redis.hgetall(key))
        flat = _flat(reply)
        return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def apply(self, claim: Claim, batch: Batch) -> int:
        """Add a batch and move its positions, or nothing. Returns the sequence that marks the touched items.

        Raises:
            FencedError, BehindError: nothing was written; see the classes.
            SumOverflowError: see the class.
            StoreError: the batch touches too many keys.
        """
        if not any(after > before for before, after in batch.positions.values()):
            raise ValueError("a batch that moves no position would count twice when its reply gets lost")
        # Of the topics that stay too: Redis may have been rolled back to before the last batch of one of those.
        positions = {topic: (stay, stay) for topic, stay in claim.positions.items()} | dict(batch.positions)
        keys = self._keys(claim)
        names = [keys.meta, keys.items, keys.products, *(keys.dirty(freq) for freq in self._forecast_freqs)]
        names += [keys.sums(sums.freq, sums.series_id) for sums in batch.sums]
        if len(names) > MAX_KEYS:
            raise StoreError(f"a batch touches {len(names)} keys, the limit of one script is {MAX_KEYS}")
        arguments = {
            "owner": claim.owner,
            "incarnation": claim.incarnation,
            "positions": [[topic, before, after] for topic, (before, after) in positions.items()],
            "newest": list(batch.newest.items()),
            "items": pack_hash({name: _json(item) for name, item in batch.items.items()}),
            "products": pack_hash({name: _json(state) for name, state in batch.products.items()}),
            "dirty": list(batch.dirty),
            "dirty_freqs": len(self._forecast_freqs),
            "max_exact": MAX_EXACT,
            "features": len(FEATURES),
            "sums": [[sums.oldest_kept, sums.most_kept, *sums.rows] for sums in batch.sums],
        }
        reply = await self._run("apply", names, [msgspec.msgpack.encode(arguments)])
        if reply[0] == b"OVERFLOW":
            raise SumOverflowError(
                f"a sum in {reply[1].decode()} would pass 2^53 and no longer be exact; nothing was written"
            )
        _raise_if_not_owner(reply[0], claim)
        return int(reply[1])

    async def read(
        self, claim: Claim, freq: str, items: Sequence[str], series: Sequence[tuple[str, str]]
    ) -> SeriesRead:
        """Sums of many series in one round trip, with the positions that say which events are in them.

        Args:
            claim: the partition held.
            freq: forecast frequency whose marks are read.
            items: item_ids whose marks are wanted, in the order of `SeriesRead.marks`.
            series: (stored freq, series_id) pairs, at most MAX_KEYS - 2; `SeriesRead.rows.item` counts in their order.

        Raises:
            FencedError, BehindError: see the classes.
        """
        keys = self._keys(claim)
        names = [keys.meta, keys.dirty(freq), *(keys.sums(*pair) for pair in series)]
        arguments = {"owner": claim.owner, "incarnation": claim.incarnation, "items": list(items)}
        applied = dict(claim.positions)
        reply = await self._run("read", names, [msgspec.msgpack.encode(arguments)])
        _raise_if_not_owner(reply[0], claim)
        meta = _text_map(reply[1])
        stored = _numbers(meta, "position:")
        if any(stored.get(topic, -1) < position for topic, position in applied.items()):
            raise _behind(claim)
        marks = [None if mark is None else int(mark) for mark in reply[2]]
        rows = BucketRows(*unpack_sums(reply[3:]))
        return SeriesRead(stored, _numbers(meta, "newest:"), marks, rows)

    async def forecasts_done(self, claim: Claim, freq: str, done: Sequence[Done]) -> None:
        """Keep what the broker has acknowledged; clear the marks of items that nothing has touched since."""
        keys = self._keys(claim)
        entries = [
            [
                d.item_id,
                "" if d.mark is None else str(d.mark),
                _json(d.summary) if d.summary else "",
            ]
            for d in done
        ]
        arguments = {"owner": claim.owner, "incarnation": claim.incarnation, "done": entries}
        names = [keys.meta, keys.dirty(freq), keys.forecasts(freq)]
        reply = await self._run("forecasts_done", names, [msgspec.msgpack.encode(arguments)])
        _raise_if_not_owner(reply[0], claim)

    async def look_up(self, partition: int, product_id: str, location_id: str) -> Found | None:
        """What stands under an item, without claiming its partition; None when it has had no orders."""
        meta = _text_map(_flat(await self._redis.hgetall(Keys(self._namespace, partition).meta)))
        keys = Keys(self._namespace, partition, meta.get("incarnation", ""))
        item_id = item_id_of(product_id, location_id)
        raw = await self._redis.hget(keys.items, item_id)
        if raw is None:
            return None
        found = Found(meta, msgspec.json.decode(raw, type=Item), {}, {})
        for freq in STORED_FREQS:
            _, buckets, values = unpack_sums([_flat(await self._redis.hgetall(keys.sums(freq, item_id)))])
            order = np.argsort(buckets)
            found.sums[freq] = (buckets[order], values[order])
        for freq in self._forecast_freqs:
            summary = await self._redis.hget(keys.forecasts(freq), item_id)
            found.forecasts[freq] = summary and msgspec.json.decode(summary, type=ForecastSummary)
        return found

    def _keys(self, claim: Claim) -> Keys:
        return Keys(self._namespace, claim.partition, claim.incarnation)

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        source, digest = _SCRIPTS[script]

        async def call() -> Any:
            try:
                return await self._redis.evalsha(digest, len(keys), *keys, *arguments)
            except redis_errors.NoScriptError:
                # EVAL runs the source and caches it, on whichever cluster node holds the keys.
                return await self._redis.eval(source, len(keys), *keys, *arguments)

        return await self._when_back(call)

    async def _when_back(self, call: Any) -> Any:
        """Call, and call again with growing pauses while Redis is away. Logs an outage once at each end."""
        pause, broken_before = _RETRY_FIRST_S, False
        with self._outage.call() as wait:
            while not self._closed:
                try:
                    return await call()
                except redis_errors.AuthenticationError as error:
                    # A ConnectionError to redis-py, but waiting can't mend it.
                    raise StoreRefusedError(
                        f"Redis refuses user or password ({error}): check them in redis_url"
                    ) from error
                except (*_AWAY, redis_errors.ResponseError) as error:
                    if not isinstance(error, _AWAY) and not _AWAY_TEXT.search(str(error)):
                        raise
                    # A connection that broke while nobody used it is made anew: one such error is no outage yet.
                    if broken_before or not isinstance(error, redis_errors.ConnectionError):
                        wait(error)
                    broken_before = True
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
                pause = min(2 * pause, _RETRY_MOST_S)
            raise StoreClosedError("the feature store was closed while Redis was away")


def _read_script(name: str) -> tuple[str, str]:
    source = (Path(__file__).parent / f"{name}.lua").read_text(encoding="utf-8")
    return source, hashlib.sha1(source.encode()).hexdigest()  # noqa: S324 - Redis names scripts by SHA-1


_SCRIPTS = {name: _read_script(name) for name in ("claim", "apply", "read", "forecasts_done")}


def _json(value: msgspec.Struct) -> str:
    """As text: the MessagePack reader in Redis does not know the binary type."""
    return msgspec.json.encode(value).decode()


def _flat(reply: Any) -> list[bytes]:
    if isinstance(reply, dict):
        return [part for pair in reply.items() for part in pair]
    return list(reply)


def _text_map(flat: Sequence[bytes]) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _numbers(meta: Mapping[str, str], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): int(value) for name, value in meta.items() if name.startswith(prefix)}


def _raise_if_not_owner(status: bytes, claim: Claim) -> None:
    if status == b"FENCED":
        raise FencedError(f"partition {claim.partition} has been claimed by another worker")
    if status == b"BEHIND":
        raise _behind(claim)


def _behind(claim: Claim) -> BehindError:
    return BehindError(f"partition {claim.partition}: Redis was emptied or rolled back since it was claimed")


def _layout_refusal(partition: int, stored: str) -> str:
    return (
        f"partition {partition} was stored by layout {stored}, this version knows up to {LAYOUT_VERSION}: "
        "run the newer shelfcast, or choose another namespace."
    )


def _partitions_refusal(partition: int, stored: str, configured: int) -> str:
    return (
        f"partition {partition} was stored for {stored} partitions, the topics now have {configured}: products would "
        "change lanes. Go back to the old number, or choose another namespace and read the topics from the start."
    )
