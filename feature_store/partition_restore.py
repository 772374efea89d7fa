"""Restore of a partition: all is written under an incarnation that nobody looks at, which `meta` then makes current.

Killed before that, a restore leaves nothing that a worker would take for a partition, and the next one clears away what
it had written. A worker that runs meanwhile is told BehindError by its next write, and claims what was restored.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from feature_store.chunks import pack_sums
from feature_store.features import SOURCE_FEATURES, BucketRows, Deltas
from feature_store.items import Item, ProductState
from feature_store.layout import LAYOUT_VERSION, ForecastSummary, Keys, pack_item, pack_product, pack_summary
from feature_store.redis_calls import RedisCalls
from feature_store.score_state import pack_sums_by_step, unpack_sums_by_step
from feature_store.store_errors import StoreError, StoreRefusedError

_LEASE_MS = 60_000
_RENEW_S = 10.0
_AT_ONCE = 500  # keys in one script
_VALUES_AT_ONCE = 20_000  # values in one script: a moment's work for Redis


class PartitionRestore:
    """One partition being filled. `name` says what with, so that a second run knows what the first has done."""

    def __init__(self, calls: RedisCalls, namespace: str, partition: int, *, name: str, replace: bool) -> None:
        self._calls, self._namespace, self._partition = calls, namespace, partition
        self._token, self._incarnation = secrets.token_hex(8), secrets.token_hex(4)
        self._keys = Keys(namespace, partition, self._incarnation)
        self._name, self._replace = name, replace
        self._accuracy: dict[tuple[str, str], dict[int, list[int]]] = {}  # by frequency and row

    async def begin(self) -> bool:
        """False when this very thing was restored here before: there is nothing left to do.

        Raises:
            StoreRefusedError: the partition holds features, or another restore of it is under way.
        """
        reply = await self._call("begin")
        if reply[0] == b"DONE":
            await self._end(reply[1])
        return bool(reply[0] == b"OK")

    async def add_sums(self, freq: str, series_ids: Sequence[str], rows: BucketRows) -> None:
        """Rows of whole series at one stored frequency, sorted by series and bucket, none twice; `rows.item` is the
        index into `series_ids`."""
        deltas = []
        for source, columns in SOURCE_FEATURES.items():
            values = rows.values[:, columns]
            kept = values.any(axis=1)
            if kept.any():
                deltas.append(Deltas(source, freq, rows.item[kept], rows.bucket[kept], values[kept]))
        if not deltas:
            return
        packed = pack_sums(deltas)
        texts = list(packed.rows)
        for place in packed.large:
            texts[place] = "+" + texts[place]  # see chunks.py
        writes, at = [], 0
        for series, count in zip(packed.series, packed.counts, strict=True):
            pairs = zip(packed.fields[at : at + count], texts[at : at + count], strict=True)
            key = self._keys.sums(series_ids[series])
            writes.append((key, ["HSET", *(part for pair in pairs for part in pair)]))
            at += count
        await self._put(writes)

    async def add_items(self, items: Iterable[Item]) -> None:
        """Items of the partition."""
        await self._put_hash(self._keys.items, {item.item_id: pack_item(item) for item in items})

    async def add_products(self, products: Mapping[str, ProductState]) -> None:
        """States by product_id."""
        packed = {product_id: pack_product(state) for product_id, state in products.items()}
        await self._put_hash(self._keys.products, packed)

    async def add_dirty(self, freq: str, marks: Mapping[str, int]) -> None:
        """Forecasts owed, by item_id."""
        await self._put_hash(self._keys.dirty(freq), {item_id: str(mark) for item_id, mark in marks.items()})

    async def add_forecasts(self, freq: str, forecasts: Mapping[str, ForecastSummary]) -> None:
        """Last forecasts, by item_id."""
        packed = {item_id: pack_summary(summary) for item_id, summary in forecasts.items()}
        await self._put_hash(self._keys.forecasts(freq), packed)

    async def add_calibration(self, freq: str, states: Mapping[str, str]) -> None:
        """What calibration remembers, by item_id, as text."""
        await self._put_hash(self._keys.calibration(freq), states)

    async def add_segments(self, freq: str, levels: Mapping[str, str]) -> None:
        """What calibration remembers of segments, by time zone, as text."""
        await self._put_hash(self._keys.segments(freq), levels)

    async def add_scores(self, freq: str, states: Mapping[str, str]) -> None:
        """What scoring remembers, by item_id, as text."""
        await self._put_hash(self._keys.scores(freq), states)

    async def add_challenges(self, freq: str, states: Mapping[str, str]) -> None:
        """What a challenger said, by item_id, as text."""
        await self._put_hash(self._keys.challenge(freq), states)

    async def add_alerts(self, freq: str, states: Mapping[str, str]) -> None:
        """What alerts remember, by item_id, as text."""
        await self._put_hash(self._keys.alerts(freq), states)

    async def add_alert_levels(self, freq: str, levels: Mapping[str, str]) -> None:
        """How much evidence opens an alert, by name, as text."""
        await self._put_hash(self._keys.alert_levels(freq), levels)

    async def add_accuracy(self, freq: str, row: str, sums: str) -> None:
        """Sums of scores, added to those of the same row that were added before."""
        total = self._accuracy.setdefault((freq, row), {})
        for step, numbers in unpack_sums_by_step(sums).items():
            before = total.get(step, [0] * len(numbers))
            total[step] = [a + b for a, b in zip(before, numbers, strict=True)]
        await self._put_hash(self._keys.accuracy(freq), {row: pack_sums_by_step(total)})

    async def add_accuracy_sent(self, freq: str, sent: Mapping[str, str]) -> None:
        """What was published of them, by window, as text."""
        await self._put_hash(self._keys.accuracy_sent(freq), sent)

    async def add_ids(self, source: str, generation: int, ids: Sequence[str]) -> None:
        """Event ids counted."""
        key = self._keys.ids(source, generation)
        for start in range(0, len(ids), _VALUES_AT_ONCE):
            await self._put([(key, ["SADD", *ids[start : start + _VALUES_AT_ONCE]])])

    async def commit(self, partition_count: int, fields: Mapping[str, str]) -> None:
        """Make what was added the partition; `fields` of its meta beside those that every partition has.

        Raises:
            StoreRefusedError: the partition has come to hold features meanwhile.
            StoreError: this restore took so long that another may have begun.
        """
        meta = {
            **fields,
            "layout": str(LAYOUT_VERSION),
            "partition_count": str(partition_count),
            "incarnation": self._incarnation,
            "owner": self._token,  # nobody has this: whoever held the partition is fenced
            "restored": self._name,
        }
        flat = [part for pair in meta.items() for part in pair]
        reply = await self._call("commit", msgspec.msgpack.encode(flat))
        await self._end(reply[1])

    async def _end(self, past: bytes) -> None:
        """Drop what stands under incarnations that are none any more; only then let the next restore begin."""
        standing = await self._calls.when_back(lambda: self._calls.redis.hget(self._keys.meta, "incarnation"))
        for incarnation in past.decode().split():
            if incarnation.encode() != standing:
                await self._drop(Keys(self._namespace, self._partition, incarnation))
        await self._call("end")

    async def _drop(self, keys: Keys) -> None:
        cursor = b"0"
        while True:
            arguments = [cursor, keys.all_like()]
            cursor, names, _ = await self._calls.run("scan", [keys.meta, f"{keys.tag}:none"], arguments)
            for start in range(0, len(names), _AT_ONCE):
                some = [name.decode() for name in names[start : start + _AT_ONCE]]
                await self._put([(name, ["UNLINK"]) for name in some])
            if cursor == b"0":
                return

    async def _put_hash(self, key: str, fields: Mapping[str, str]) -> None:
        parts = [part for pair in fields.items() for part in pair]
        for start in range(0, len(parts), _VALUES_AT_ONCE):
            await self._put([(key, ["HSET", *parts[start : start + _VALUES_AT_ONCE]])])

    async def _put(self, writes: Sequence[tuple[str, list[str]]]) -> None:
        for start in range(0, len(writes), _AT_ONCE):
            some = writes[start : start + _AT_ONCE]
            packed = msgspec.msgpack.encode([words for _, words in some])
            await self._calls.run("put", [key for key, _ in some], [packed])
        if time.monotonic() - self._renewed_s > _RENEW_S:
            await self._call("renew")

    async def _call(self, verb: str, packed: bytes = b"") -> Any:
        replace = "1" if self._replace else ""
        arguments = [verb, self._token, self._incarnation, _LEASE_MS, replace, self._name, packed]
        reply = await self._calls.run("restore", [self._keys.meta, self._keys.restoring], arguments)
        self._renewed_s = time.monotonic()
        p = self._partition
        if reply[0] == b"STANDS":
            raise StoreRefusedError(
                f"partition {p} of namespace {self._namespace!r} holds features: restore into another namespace, or "
                "say --replace to have them thrown away"
            )
        if reply[0] == b"BUSY":
            raise StoreRefusedError(
                f"another restore of partition {p} is under way; if it was killed, this can begin in "
                f"{int(reply[1]) // 1000 + 1} s"
            )
        if reply[0] == b"LOST":
            raise StoreError(f"partition {p}: the restore was interrupted for too long; run it again")
        return reply
