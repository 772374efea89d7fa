"""StreamStore: what is known of whole streams, partition by partition. Handed out by FeatureStore."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.alert_state import Untold, pack_alerts
from feature_store.lane_totals import hour_fields, hourly_counts
from feature_store.layout import Keys, pack_hash
from feature_store.redis_calls import RedisCalls, flat
from feature_store.script_replies import numbers, raise_if_not_owner, text_map
from feature_store.store_types import Claim

STREAM_NOTE = "stream "  # names of notes of streams begin so

# script, claim, keys, arguments -> reply, once the script has written
Write = Callable[[str, Claim, Sequence[str], Mapping[str, Any]], Awaitable[Any]]


class Peeked(NamedTuple):
    """A partition as it stands, whoever has it: its incarnation, next offsets by topic, and newest event times by
    source."""

    incarnation: str
    positions: dict[str, int]
    newest: dict[str, int]


class StreamStore:
    """Waits for Redis while it is away, as FeatureStore does. Notes stand beside those of published accuracy."""

    def __init__(self, calls: RedisCalls, namespace: str, write: Write) -> None:
        self._calls, self._namespace, self._write = calls, namespace, write

    async def peek(self, partition: int) -> Peeked | None:
        """Without claiming; None when nothing stands there."""
        redis, key = self._calls.redis, Keys(self._namespace, partition).meta
        meta = text_map(flat(await self._calls.when_back(lambda: redis.hgetall(key))))
        if "incarnation" not in meta:
            return None
        return Peeked(meta["incarnation"], numbers(meta, "position:"), numbers(meta, "newest:"))

    async def hours(
        self, partition: int, incarnation: str, series: str, hours: tuple[int, int]
    ) -> dict[str, NDArray[np.int64]]:
        """Events by source in these hours, both included, of one of the series of lane_totals.py: int64 (hour,)."""
        redis, key = self._calls.redis, Keys(self._namespace, partition, incarnation).sums(series)
        fields = hour_fields(*hours)
        texts = await self._calls.when_back(lambda: redis.hmget(key, fields))
        return hourly_counts(fields, texts, *hours)

    async def notes(self, claim: Claim, freq: str, names: Sequence[str]) -> dict[str, str]:
        """What was noted under some names."""
        redis, key = self._calls.redis, self._keys(claim).accuracy_sent(freq)
        found = await self._calls.when_back(lambda: redis.hmget(key, list(names)))
        return {name: text.decode() for name, text in zip(names, found, strict=True) if text is not None}

    async def note(self, claim: Claim, freq: str, notes: Mapping[str, str], untold: Mapping[str, Untold]) -> None:
        """Note something, with the alerts that are to be sent of it.

        Raises:
            FencedError, BehindError: nothing was written; see the classes.
        """
        keys = self._keys(claim)
        arguments = {
            "owner": claim.owner,
            "incarnation": claim.incarnation,
            "freq": freq,
            "sent": pack_hash(notes),
            "gone": [],
            "gone_windows": [],
            "untold": pack_hash({name: pack_alerts(one) for name, one in untold.items()}),
        }
        names = [keys.meta, keys.accuracy(freq), keys.accuracy_sent(freq), keys.untold]
        reply = await self._write("accuracy_sent", claim, names, arguments)
        raise_if_not_owner(reply[0], claim)

    async def told(self, claim: Claim, names: Collection[str]) -> None:
        """Forget alerts that Kafka has. Whoever holds the partition now may have sent them too: no harm is done."""
        key, redis = self._keys(claim).untold, self._calls.redis
        await self._calls.when_back(lambda: redis.hdel(key, *names))
        for name in names:
            claim.untold.pop(name, None)

    def _keys(self, claim: Claim) -> Keys:
        return Keys(self._namespace, claim.partition, claim.incarnation)
