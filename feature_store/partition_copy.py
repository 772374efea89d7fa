"""Copy of a partition as it stands at one moment, taken while its lane goes on writing.

Everything is read while it changes; writers note what they write meanwhile (apply.lua, forecasts_done.lua), and that is
read again until it is little. For the last of it writers are held back, for the time of a few round trips. A copy
during which the hold ran out, the incarnation changed or the server did is not used: it is begun anew.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from feature_store.items import Item, ProductState
from feature_store.layout import Keys, unpack_item, unpack_product
from feature_store.redis_calls import RedisCalls, flat
from feature_store.store_errors import StoreError, StoreRefusedError

logger = logging.getLogger(__name__)

_LEASE_MS = 60_000  # without a word from the one who copies, the partition is written to as ever after this time
_RENEW_S = 10.0
_HOLD_MS = 2_000
_LITTLE = 200  # names changed: what is read while writers wait
_MOST_ROUNDS = 8  # of reading again what has changed; then writers are held back however much it is
_MOST_TRIES = 5
_AT_ONCE = 200  # hashes in one script
_T = TypeVar("_T")


@dataclass
class PartitionCopy:
    """What stands in a partition; everything by the names it has in `layout`."""

    partition: int
    meta: dict[str, str]
    items: dict[str, Item] = field(default_factory=dict)
    products: dict[str, ProductState] = field(default_factory=dict)
    dirty: dict[str, dict[str, int]] = field(default_factory=dict)  # by frequency and item_id
    forecasts: dict[str, dict[str, bytes]] = field(default_factory=dict)  # the same, see layout.unpack_summary
    calibration: dict[str, dict[str, bytes]] = field(default_factory=dict)  # the same, see calibration_state
    segments: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by frequency and time zone
    scores: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by frequency and item_id, see score_state
    challenges: dict[str, dict[str, bytes]] = field(default_factory=dict)  # the same
    alerts: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by frequency and item_id, see alert_state
    alert_levels: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by frequency and name, the same
    accuracy: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by frequency and row, the same
    accuracy_sent: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by frequency and window
    ids: dict[tuple[str, int], set[bytes]] = field(default_factory=dict)  # by source and generation
    sums: dict[str, list[bytes]] = field(default_factory=dict)  # by series_id, flat hash of chunks
    held_s: float = 0.0  # for how long writers were held back

    @property
    def sequence(self) -> int:
        """Scripts applied so far."""
        return int(self.meta["sequence"])


class _CopyLostError(Exception):
    """What was read does not belong together: begin anew."""


class PartitionCopier:
    """Copies one partition; `freqs` are those whose marks and forecasts are copied."""

    def __init__(self, calls: RedisCalls, namespace: str, partition: int, freqs: Sequence[str]) -> None:
        self._calls, self._namespace, self._partition, self._freqs = calls, namespace, partition, tuple(freqs)
        self._token = secrets.token_hex(8)
        self._keys = Keys(namespace, partition)

    async def copy(self) -> PartitionCopy | None:
        """The partition at one moment; None when nothing stands there.

        Raises:
            StoreRefusedError: another copy of the partition is under way.
            StoreError: the partition could not be copied as a whole; the message says why.
        """
        why = ""
        for _ in range(_MOST_TRIES):
            incarnation = await self._calls.when_back(lambda: self._calls.redis.hget(self._keys.meta, "incarnation"))
            if incarnation is None:
                return None
            self._keys = Keys(self._namespace, self._partition, incarnation.decode())
            self._incarnation = incarnation.decode()
            try:
                return await self._copy_once()
            except _CopyLostError as lost:
                why = str(lost)
                logger.warning("partition %d: %s; copying begins anew", self._partition, why)
        raise StoreError(
            f"partition {self._partition} could not be copied: {why}. Run the command again when Redis is less busy"
        )

    async def _copy_once(self) -> PartitionCopy:
        """1. Have writers note what they write.
        2. Read all.
        3. Read again what was written meanwhile, until that is little.
        4. Hold writers back, read the rest, let them go; when they were let go too early, from 3.
        """
        await self._step("begin")  # 1
        copy = PartitionCopy(self._partition, {})
        await self._read_all(copy)  # 2
        for attempt in range(_MOST_TRIES):
            for _ in range(_MOST_ROUNDS):  # 3
                changed, _ = await self._step("take")
                await self._read_changed(copy, changed)
                if len(changed) <= _LITTLE:
                    break
            held_since = time.monotonic()
            changed, copy.meta = await self._step("hold", hold_ms=_HOLD_MS << attempt)  # 4
            await self._read_changed(copy, changed)
            if await self._end():
                copy.held_s = time.monotonic() - held_since
                self._drop_past_ids(copy)
                return copy
        raise _CopyLostError("what changes is more than can be read while writers wait")

    async def _step(self, verb: str, hold_ms: int = 0) -> tuple[list[str], dict[str, str]]:
        reply = await self._call(verb, hold_ms)
        if reply[0] == b"BUSY":
            raise StoreRefusedError(
                f"another snapshot of partition {self._partition} is being made; if it was killed, this can begin in "
                f"{int(reply[1]) // 1000 + 1} s"
            )
        if reply[0] != b"OK":
            raise _CopyLostError("Redis was emptied or rolled back, or was silent for too long, meanwhile")
        self._renewed_s = time.monotonic()
        parts = [part.decode() for part in reply[2]]
        return [name.decode() for name in reply[1]], dict(zip(parts[::2], parts[1::2], strict=True))

    async def _end(self) -> bool:
        reply = await self._call("end", 0)
        if reply[0] == b"GONE":
            raise _CopyLostError("the copy took longer than Redis granted it")
        return bool(reply[0] == b"OK")

    async def _call(self, verb: str, hold_ms: int) -> Any:
        arguments = [verb, self._token, self._incarnation, _LEASE_MS, hold_ms]
        return await self._calls.run("copy", [self._keys.meta, self._keys.changed], arguments)

    async def _renew(self, copy: PartitionCopy) -> None:
        """Say that this copy is alive, when it has not for a while. What has changed so far is read then."""
        if time.monotonic() - self._renewed_s > _RENEW_S:
            changed, _ = await self._step("take")
            await self._read_changed(copy, changed)

    async def _read_all(self, copy: PartitionCopy) -> None:
        keys = self._keys
        prefix, ids_prefix = keys.sums(""), keys.all_like("ids:")[:-1]
        found = [name.decode() for name in await self._scan(keys.all_like(), "")]
        names = [name for name in found if name.startswith(prefix)]
        for some in _parts(names, _AT_ONCE):
            for name, parts in zip(some, await self._calls.run("hashes", some, []), strict=True):
                copy.sums[name.removeprefix(prefix)] = flat(parts)
            await self._renew(copy)
        for item_id, raw in await self._hash(keys.items):
            copy.items[item_id] = unpack_item(item_id, raw)
        for product_id, raw in await self._hash(keys.products):
            copy.products[product_id] = unpack_product(raw)
        for freq in self._freqs:
            for kept, key in (*self._by_item(copy, freq), *self._by_name(copy, freq).values()):
                kept.update(await self._hash(key))
            copy.dirty[freq] = {item_id: int(mark) for item_id, mark in await self._hash(keys.dirty(freq))}
            await self._renew(copy)
        for name in [name for name in found if name.startswith(ids_prefix)]:
            copy.ids[self._generation(name)] = set(await self._scan("", name))
            await self._renew(copy)

    def _by_item(self, copy: PartitionCopy, freq: str) -> list[tuple[dict[str, bytes], str]]:
        """Hashes by item_id, beside the keys that they are copied from."""
        kinds = (
            (copy.forecasts, self._keys.forecasts),
            (copy.calibration, self._keys.calibration),
            (copy.scores, self._keys.scores),
            (copy.challenges, self._keys.challenge),
            (copy.alerts, self._keys.alerts),
        )
        return [(by_freq.setdefault(freq, {}), key(freq)) for by_freq, key in kinds]

    def _by_name(self, copy: PartitionCopy, freq: str) -> dict[str, tuple[dict[str, bytes], str]]:
        """Other hashes, by the letter under which writers note a field that has changed."""
        kinds = {
            "l": (copy.segments, self._keys.segments),
            "v": (copy.alert_levels, self._keys.alert_levels),
            "r": (copy.accuracy, self._keys.accuracy),
            "w": (copy.accuracy_sent, self._keys.accuracy_sent),
        }
        return {letter: (by_freq.setdefault(freq, {}), key(freq)) for letter, (by_freq, key) in kinds.items()}

    async def _scan(self, pattern: str, key: str) -> list[bytes]:
        """Names of keys, or members of a set. Each that is there from beginning to end is found."""
        for _ in range(_MOST_TRIES):
            cursor, found, server = b"0", set[bytes](), None
            while True:
                keys = [self._keys.meta, key or f"{self._keys.tag}:none"]
                cursor, names, run_id = await self._calls.run("scan", keys, [cursor, pattern])
                if run_id != (server := server or run_id):
                    break
                found.update(names)
                if cursor == b"0":
                    return list(found)
        raise _CopyLostError("the partition went from server to server")

    def _generation(self, name: str) -> tuple[str, int]:
        source, _, generation = name.removeprefix(self._keys.all_like("ids:")[:-1]).rpartition(":")
        return source, int(generation)

    async def _hash(self, key: str) -> list[tuple[str, bytes]]:
        parts = flat(await self._calls.when_back(lambda: self._calls.redis.hgetall(key)))
        return [(name.decode(), value) for name, value in zip(parts[::2], parts[1::2], strict=True)]

    async def _read_changed(self, copy: PartitionCopy, changed: Iterable[str]) -> None:
        """Bring the copy up to what stands now under the names that writers have noted, see apply.lua."""
        by_kind: dict[str, list[str]] = {kind: [] for kind in "sipdfelrwv"}
        for name in changed:
            by_kind[name[0]].append(name[1:])
        prefix = self._keys.sums("")
        for some in _parts(by_kind["s"], _AT_ONCE):
            for name, parts in zip(some, await self._calls.run("hashes", some, []), strict=True):
                copy.sums[name.removeprefix(prefix)] = flat(parts)
        for item_id, raw in await self._fields(self._keys.items, by_kind["i"]):
            copy.items[item_id] = unpack_item(item_id, raw)
        for product_id, raw in await self._fields(self._keys.products, by_kind["p"]):
            copy.products[product_id] = unpack_product(raw)
        await self._read_changed_forecasts(copy, by_kind)
        for name in by_kind["e"]:
            key, _, event_id = name.partition(" ")
            copy.ids.setdefault(self._generation(key), set()).add(event_id.encode())

    async def _read_changed_forecasts(self, copy: PartitionCopy, by_kind: Mapping[str, Sequence[str]]) -> None:
        for freq in self._freqs:
            item_ids = [name.partition(" ")[2] for name in by_kind["f"] if name.startswith(f"{freq} ")]
            named = {
                letter: [name.partition(" ")[2] for name in by_kind[letter] if name.startswith(f"{freq} ")]
                for letter in "lrwv"
            }
            changed = [(kept, key, item_ids) for kept, key in self._by_item(copy, freq)]
            changed += [(kept, key, named[letter]) for letter, (kept, key) in self._by_name(copy, freq).items()]
            for kept, key, names in changed:
                for name in names:
                    kept.pop(name, None)  # withdrawn, unless it is found again
                kept.update(await self._fields(key, names))
            marks, marked = copy.dirty.setdefault(freq, {}), list({*item_ids, *by_kind["d"]})
            for item_id in marked:
                marks.pop(item_id, None)  # no longer owed, unless it is found again
            found = await self._fields(self._keys.dirty(freq), marked)
            marks.update((item_id, int(mark)) for item_id, mark in found)

    async def _fields(self, key: str, names: Sequence[str]) -> list[tuple[str, bytes]]:
        found = []
        for some in _parts(names, _AT_ONCE):
            values = await self._calls.run("hashes", [key], some)
            found += [(name, value) for name, value in zip(some, values, strict=True) if value is not None]
        return found

    def _drop_past_ids(self, copy: PartitionCopy) -> None:
        """Ids of generations that stand no longer: apply.lua has dropped them meanwhile."""
        prefix = "ids:"
        standing = {
            (name.removeprefix(prefix), int(generation))
            for name, generations in copy.meta.items()
            if name.startswith(prefix)
            for generation in generations.split()
        }
        copy.ids = {generation: ids for generation, ids in copy.ids.items() if generation in standing}
        copy.sums = {series: parts for series, parts in copy.sums.items() if parts}


def _parts(names: Sequence[_T], most: int) -> Iterator[list[_T]]:
    rest = iter(names)
    while some := list(islice(rest, most)):
        yield some
