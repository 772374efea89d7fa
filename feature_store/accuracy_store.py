"""AccuracyStore: sums of scores by partition, and what was published of them. Handed out by FeatureStore."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from feature_store.alert_state import Untold, pack_alerts
from feature_store.layout import Keys, pack_hash
from feature_store.redis_calls import RedisCalls, flat
from feature_store.score_state import (
    ItemChallenge,
    ItemScores,
    RowName,
    SumsByStep,
    pack_row_name,
    unpack_challenge,
    unpack_row_name,
    unpack_scores,
    unpack_sums_by_step,
)
from feature_store.script_arguments import challenged_arguments, forecasts_done_keys
from feature_store.script_replies import raise_if_not_owner
from feature_store.store_types import Claim

Rows = dict[RowName, dict[int, list[int]]]
# script, claim, keys, arguments -> reply, once the script has written
Write = Callable[[str, Claim, Sequence[str], Mapping[str, Any]], Awaitable[Any]]


class AccuracyRead(NamedTuple):
    """Sums by row and step, and by window what was noted when it was published."""

    rows: Rows
    sent: dict[str, str]


class Gone(NamedTuple):
    """Rows, and windows or other notes, that are dropped."""

    rows: Collection[RowName] = ()
    windows: Collection[str] = ()


NOTHING_GONE = Gone()
NOTHING_UNTOLD: Mapping[str, Untold] = MappingProxyType({})


class AccuracyStore:
    """Waits for Redis while it is away, as FeatureStore does."""

    def __init__(self, calls: RedisCalls, namespace: str, write: Write) -> None:
        self._calls, self._namespace, self._write = calls, namespace, write

    async def read(self, claim: Claim, freq: str) -> AccuracyRead:
        """All that stands of a partition that is held."""
        keys = Keys(self._namespace, claim.partition, claim.incarnation)
        sent = await self._hash(keys.accuracy_sent(freq))
        return AccuracyRead(await self._rows(keys, freq), {name: text.decode() for name, text in sent.items()})

    async def note_sent(
        self,
        claim: Claim,
        freq: str,
        sent: Mapping[str, str],
        gone: Gone = NOTHING_GONE,
        untold: Mapping[str, Untold] = NOTHING_UNTOLD,
    ) -> None:
        """Note what was published and what alerts are about to be sent, and drop rows and windows of days long past.

        Raises:
            FencedError, BehindError: nothing was written; see the classes.
        """
        keys = Keys(self._namespace, claim.partition, claim.incarnation)
        arguments = {
            "owner": claim.owner,
            "incarnation": claim.incarnation,
            "freq": freq,
            "sent": pack_hash(sent),
            "gone": [pack_row_name(name) for name in gone.rows],
            "gone_windows": list(gone.windows),
            "untold": pack_hash({name: pack_alerts(one) for name, one in untold.items()}),
        }
        names = [keys.meta, keys.accuracy(freq), keys.accuracy_sent(freq), keys.untold]
        reply = await self._write("accuracy_sent", claim, names, arguments)
        raise_if_not_owner(reply[0], claim)

    async def read_challenges(self, claim: Claim, freq: str, item_ids: Sequence[str]) -> list[ItemChallenge | None]:
        """What is remembered of a challenger's forecasts of items."""
        key, redis = Keys(self._namespace, claim.partition, claim.incarnation).challenge(freq), self._calls.redis
        found = await self._calls.when_back(lambda: redis.hmget(key, list(item_ids))) if item_ids else []
        return [unpack_challenge(value) if value else None for value in found]

    async def challenged(
        self, claim: Claim, freq: str, states: Mapping[str, ItemChallenge], scored: Mapping[RowName, SumsByStep]
    ) -> None:
        """Remember a challenger's forecasts by item_id, and add to the sums.

        Raises:
            FencedError, BehindError: nothing was written; see the classes.
        """
        keys = Keys(self._namespace, claim.partition, claim.incarnation)
        arguments = challenged_arguments(claim, freq, states, scored)
        reply = await self._write("forecasts_done", claim, forecasts_done_keys(keys, freq), arguments)
        raise_if_not_owner(reply[0], claim)

    async def peek(self, partition: int, freq: str) -> Rows:
        """Sums as they stand, without claiming; empty when the partition has none."""
        keys = await self._standing_keys(partition)
        return {} if keys is None else await self._rows(keys, freq)

    async def peek_item(self, partition: int, freq: str, item_id: str) -> ItemScores | None:
        """What is remembered of an item, without claiming."""
        keys = await self._standing_keys(partition)
        if keys is None:
            return None
        redis = self._calls.redis
        value = await self._calls.when_back(lambda: redis.hget(keys.scores(freq), item_id))
        return unpack_scores(value) if value else None

    async def _standing_keys(self, partition: int) -> Keys | None:
        redis, meta = self._calls.redis, Keys(self._namespace, partition).meta
        incarnation = await self._calls.when_back(lambda: redis.hget(meta, "incarnation"))
        return None if incarnation is None else Keys(self._namespace, partition, incarnation.decode())

    async def _rows(self, keys: Keys, freq: str) -> Rows:
        found = await self._hash(keys.accuracy(freq))
        return {unpack_row_name(name): unpack_sums_by_step(text) for name, text in found.items()}

    async def _hash(self, key: str) -> dict[str, bytes]:
        parts = flat(await self._calls.when_back(lambda: self._calls.redis.hgetall(key)))
        return {name.decode(): value for name, value in zip(parts[::2], parts[1::2], strict=True)}
