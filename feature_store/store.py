"""FeatureStore: the only door to Redis. Each method but those that copy a whole partition is one atomic script.

Every write compares owner, incarnation and positions first, so each event counts once whatever is killed: a worker that
lost its partition is told `FencedError`, one whose Redis was emptied or rolled back `BehindError`. While Redis is away,
calls wait and try again until it is back or the store is closed; nothing is lost, since a batch that was applied before
its reply got lost is recognised by its positions.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from feature_store.accuracy_store import AccuracyStore
from feature_store.alert_state import unpack_untold
from feature_store.backfill_marks import BackfillMarks
from feature_store.chunks import chunk_fields, pack_sums, unpack_hash
from feature_store.events import item_id_of
from feature_store.features import SOURCES
from feature_store.fitness import (
    CLUSTER_NODE,
    layout_refusal,
    partition_findings,
    partitions_refusal,
    servers_findings,
)
from feature_store.layout import (
    LAYOUT_VERSION,
    MAX_KEYS,
    Keys,
    unpack_head,
    unpack_item,
    unpack_product,
    unpack_summary,
)
from feature_store.model_choices import ModelChoices
from feature_store.partition_copy import PartitionCopier, PartitionCopy
from feature_store.partition_restore import PartitionRestore
from feature_store.redis_calls import REDIS_ERRORS, RedisCalls, flat
from feature_store.redis_cluster import NotAClusterError
from feature_store.script_arguments import apply_arguments, forecasts_done_arguments, forecasts_done_keys
from feature_store.script_replies import (
    WantedChunks,
    behind,
    ids_by_source,
    numbers,
    raise_if_not_owner,
    series_read,
    text_map,
)
from feature_store.seen_ids import plan_ids
from feature_store.store_errors import (
    BehindError,
    DuplicateEventsError,
    FencedError,
    StoreClosedError,
    StoreError,
    StoreRefusedError,
    SumOverflowError,
)
from feature_store.store_types import (
    NO_ADDITIONS,
    NOTHING_REMEMBERED,
    Additions,
    BackfillTable,
    Batch,
    Claim,
    Done,
    Found,
    Heads,
    Remembered,
    SeriesRead,
)
from feature_store.stream_store import StreamStore

__all__ = [
    "NO_ADDITIONS",
    "REDIS_ERRORS",
    "Additions",
    "BackfillTable",
    "Batch",
    "BehindError",
    "Claim",
    "Done",
    "DuplicateEventsError",
    "FeatureStore",
    "FencedError",
    "Found",
    "Heads",
    "Remembered",
    "SeriesRead",
    "StoreClosedError",
    "StoreError",
    "StoreRefusedError",
    "SumOverflowError",
]


_HELD_FIRST_S, _HELD_MOST_S = 0.005, 0.1


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
        self._calls = RedisCalls(url, cluster=cluster)
        self._namespace = namespace
        self._partition_count = partition_count
        self._forecast_freqs = tuple(forecast_freqs)

    @property
    def namespace(self) -> str:
        """Prefix of all keys."""
        return self._namespace

    @property
    def partition_count(self) -> int:
        """Partitions of every keyed topic."""
        return self._partition_count

    @property
    def forecast_freqs(self) -> tuple[str, ...]:
        """Frequencies of which forecasts and marks are kept."""
        return self._forecast_freqs

    @property
    def is_away(self) -> bool:
        """Whether a call is waiting for Redis now, as the log has told."""
        return self._calls.is_away

    async def close(self) -> None:
        """Close the connections. Calls still waiting for Redis raise StoreClosedError."""
        await self._calls.close()

    async def check_server(self, *, may_be_filled: bool = False) -> list[str]:
        """What makes this Redis unfit, one sentence a finding with its remedy. Empty = fit. Raises OSError-like
        redis errors when it can't be reached. `may_be_filled`: a table that is not all in the features is none."""
        redis = self._calls.redis
        try:
            servers = await self._calls.servers()
        except NotAClusterError as error:
            return [str(error)]
        findings = await servers_findings(servers, in_cluster=self._calls.in_cluster)
        if CLUSTER_NODE in findings:
            return findings
        for partition in range(self._partition_count):
            meta = text_map(flat(await redis.hgetall(Keys(self._namespace, partition).meta)))
            findings += partition_findings(partition, meta, self._partition_count, may_be_filled=may_be_filled)
        return findings

    async def ping(self) -> None:
        """Raise one of REDIS_ERRORS when Redis does not answer; the methods below would wait for it."""
        for server in (await self._calls.servers()).values():
            await server.ping()

    async def refuse_unfit_server(self) -> None:
        """Wait for Redis if it is away, then raise StoreRefusedError when it must not be used; names each remedy."""
        findings = await self._calls.when_back(self.check_server)
        if findings:
            raise StoreRefusedError(" ".join(findings))

    async def peek_positions(self, partition: int) -> dict[str, int]:
        """Positions as they stand, without claiming. Empty when the partition has none."""
        meta = await self._hash(Keys(self._namespace, partition).meta)
        return numbers({name: value.decode() for name, value in meta.items()}, "position:")

    async def claim(self, partition: int) -> Claim:
        """Take the partition over: whoever held it is fenced from now on.

        Raises:
            StoreRefusedError: stored by another layout, or for another number of partitions.
        """
        owner, incarnation = secrets.token_hex(8), secrets.token_hex(4)
        meta_key = Keys(self._namespace, partition).meta
        arguments = [owner, LAYOUT_VERSION, self._partition_count, incarnation]
        reply = await self._calls.run("claim", [meta_key], arguments)
        if reply[0] == b"LAYOUT":
            raise StoreRefusedError(layout_refusal(partition, reply[1].decode()))
        if reply[0] == b"PARTITIONS":
            raise StoreRefusedError(partitions_refusal(partition, reply[1].decode(), self._partition_count))
        meta = text_map(reply[1])
        claim = Claim(partition, owner, meta["incarnation"], numbers(meta, "position:"), numbers(meta, "newest:"))
        claim.generations = {source: {int(g) for g in meta.get(f"ids:{source}", "").split()} for source in SOURCES}
        claim.before = numbers(meta, "before:")
        await self._load(claim)
        return claim

    async def _load(self, claim: Claim) -> None:
        keys = self._keys(claim)
        for item_id, raw in (await self._hash(keys.items)).items():
            claim.items[item_id] = unpack_item(item_id, raw)
        for product_id, raw in (await self._hash(keys.products)).items():
            claim.products[product_id] = unpack_product(raw)
        claim.untold = {name: unpack_untold(raw) for name, raw in (await self._hash(keys.untold)).items()}
        names = {item_id: item_id for item_id in claim.items}  # one string for each item, however often it stands
        for freq in self._forecast_freqs:
            marks, forecasts = await self._hash(keys.dirty(freq)), await self._hash(keys.forecasts(freq))
            oldest_first = sorted((int(mark), item_id) for item_id, mark in marks.items())
            claim.dirty[freq] = {names.get(item_id, item_id): mark for mark, item_id in oldest_first}
            claim.heads[freq] = {
                names.get(item_id, item_id): Heads(*unpack_head(raw)) for item_id, raw in forecasts.items()
            }

    async def _hash(self, key: str) -> dict[str, bytes]:
        parts = flat(await self._calls.when_back(lambda: self._calls.redis.hgetall(key)))
        return {name.decode(): value for name, value in zip(parts[::2], parts[1::2], strict=True)}

    async def apply(self, claim: Claim, batch: Batch) -> int:
        """Add a batch and move its positions, or nothing. Returns the sequence that marks the touched items.

        Raises:
            FencedError, BehindError, DuplicateEventsError, SumOverflowError: nothing was written; see the classes.
            StoreError: the batch touches too many keys.
        """
        if not any(after > before for before, after in batch.positions.values()):
            raise ValueError("a batch that moves no position would count twice when its reply gets lost")
        # Of the topics that stay too: Redis may have been rolled back to before the last batch of one of those.
        positions = {topic: (stay, stay) for topic, stay in claim.positions.items()} | dict(batch.positions)
        keys = self._keys(claim)
        packed = pack_sums(batch.sums)
        ids = plan_ids(batch.event_ids, batch.oldest_generation, claim.generations, keys)
        names = [keys.meta, keys.items, keys.products, *(keys.dirty(freq) for freq in self._forecast_freqs)]
        names += [*ids.keys, *(keys.sums(batch.series[series]) for series in packed.series)]
        most = len(names) + 1  # keys.changed is added while a snapshot is made
        if most > MAX_KEYS:
            raise StoreError(f"a batch touches {most} keys, the limit of one script is {MAX_KEYS}")
        arguments = apply_arguments(claim, batch, positions, packed, ids)
        arguments["dirty_freqs"] = len(self._forecast_freqs)
        reply = await self._write("apply", claim, names, arguments)
        if reply[0] == b"DUPLICATES":
            raise DuplicateEventsError(ids_by_source(reply[1:]))
        if reply[0] == b"OVERFLOW":
            raise SumOverflowError(
                f"a sum in {reply[1].decode()} would pass 2^53 and no longer be exact; nothing was written"
            )
        raise_if_not_owner(reply[0], claim)
        claim.generations.update(ids.generations)
        return int(reply[1])

    async def read(  # noqa: PLR0913 - what is asked for, of whom, and from when to when
        self,
        claim: Claim,
        freq: str,
        items: Sequence[str],
        stored: str,
        series: Sequence[str],
        first_bucket: int,
        last_bucket: int,
        remembered: Remembered = NOTHING_REMEMBERED,
    ) -> SeriesRead:
        """Sums of many series in one round trip, with the positions that say which events are in them.

        Args:
            claim: the partition held.
            freq: forecast frequency whose marks are read.
            items: item_ids whose marks are wanted, in the order of `SeriesRead.marks`.
            stored: stored frequency whose sums are read.
            series: series_ids, at most MAX_KEYS - 10; `SeriesRead.rows.item` counts in their order.
            first_bucket, last_bucket: both included; rows of buckets a little outside may come with them.
            remembered: what is wanted too of what calibration, scoring and alerts remember.

        Raises:
            FencedError, BehindError: see the classes.
        """
        keys = self._keys(claim)
        kinds = (keys.calibration, keys.scores, keys.alerts)
        states = [key(freq) for key, is_wanted in zip(kinds, remembered, strict=True) if is_wanted]
        names = [
            keys.meta,
            keys.dirty(freq),
            keys.segments(freq),
            keys.alert_levels(freq),
            *states,
            *map(keys.sums, series),
        ]
        first_chunk, chunks, fields = chunk_fields(stored, first_bucket, last_bucket)
        arguments = {
            "owner": claim.owner,
            "incarnation": claim.incarnation,
            "items": list(items),
            "fields": fields,
            "sources": len(SOURCES),
            "states": len(states),
            "segments": remembered.calibration,
            "levels": remembered.alerts,
        }
        applied = dict(claim.positions)
        reply = await self._calls.run("read", names, [msgspec.msgpack.encode(arguments)])
        raise_if_not_owner(reply[0], claim)
        found = series_read(reply, items, WantedChunks(stored, first_chunk, chunks), remembered)
        if any(found.positions.get(topic, -1) < position for topic, position in applied.items()):
            raise behind(claim)
        return found

    async def forecasts_done(
        self, claim: Claim, freq: str, done: Sequence[Done], additions: Additions = NO_ADDITIONS
    ) -> None:
        """Keep what the broker has acknowledged; clear the marks of items that nothing has touched since. `additions`
        are added to what calibration has learnt in the same bucket, and to the sums of scores."""
        keys = self._keys(claim)
        arguments = forecasts_done_arguments(claim, freq, done, additions)
        names = forecasts_done_keys(keys, freq)
        reply = await self._write("forecasts_done", claim, names, arguments)
        raise_if_not_owner(reply[0], claim)

    async def _write(self, script: str, claim: Claim, names: Sequence[str], arguments: Mapping[str, Any]) -> Any:
        """Run a script that writes. While a snapshot of the partition is made, have it note what it writes, and wait
        for the moment in which the partition stands still."""
        packed, pause_s = msgspec.msgpack.encode(arguments), _HELD_FIRST_S
        while True:
            keys = [*names, self._keys(claim).changed] if claim.is_copied else names
            reply = await self._calls.run(script, keys, [packed, int(claim.is_copied)])
            if reply[0] == b"COPIED":
                claim.is_copied = True
            elif reply[0] == b"HELD":
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _HELD_MOST_S)
            else:
                claim.is_copied = len(reply) > len(("OK", "sequence")) and reply[0] == b"OK"
                return reply

    async def look_up(self, partition: int, product_id: str, location_id: str) -> Found | None:
        """What stands under an item or a series, without claiming its partition; None when nothing does."""
        redis = self._calls.redis
        meta = text_map(flat(await redis.hgetall(Keys(self._namespace, partition).meta)))
        keys = Keys(self._namespace, partition, meta.get("incarnation", ""))
        item_id = item_id_of(product_id, location_id)
        raw = await redis.hget(keys.items, item_id)
        chunks = flat(await redis.hgetall(keys.sums(item_id)))
        if raw is None and not chunks:
            return None
        sums = {freq: rows[1:] for freq, rows in unpack_hash(chunks).items()}
        found = Found(meta, None if raw is None else unpack_item(item_id, raw), sums, {})
        for freq in self._forecast_freqs:
            summary = await redis.hget(keys.forecasts(freq), item_id)
            found.forecasts[freq] = unpack_summary(summary) if summary else None
        return found

    def backfill_marks(self) -> BackfillMarks:
        """Which tables features were filled from."""
        return BackfillMarks(self._calls, self._namespace)

    def accuracy(self) -> AccuracyStore:
        """Sums of scores, and what was published of them."""
        return AccuracyStore(self._calls, self._namespace, self._write)

    def choices(self) -> ModelChoices:
        """Versions of models that workers are to use."""
        return ModelChoices(self._calls, self._namespace)

    def streams(self) -> StreamStore:
        """What is known of whole streams, and the alerts that are on their way."""
        return StreamStore(self._calls, self._namespace, self._write)

    async def copy_partition(self, partition: int) -> PartitionCopy | None:
        """The partition as it stands at one moment, while its lane goes on; None when nothing does. See PartitionCopier
        for what is raised."""
        return await PartitionCopier(self._calls, self._namespace, partition, self._forecast_freqs).copy()

    def restore_partition(self, partition: int, *, name: str, replace: bool = False) -> PartitionRestore:
        """Fill a partition; `name` says what with."""
        return PartitionRestore(self._calls, self._namespace, partition, name=name, replace=replace)

    def _keys(self, claim: Claim) -> Keys:
        return Keys(self._namespace, claim.partition, claim.incarnation)
