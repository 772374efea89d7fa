"""BackfillMarks: from which tables a partition's features were filled, or are being filled. Handed out by
FeatureStore."""

from __future__ import annotations

from typing import Any

from feature_store.fitness import backfill_refusal
from feature_store.layout import Keys
from feature_store.redis_calls import RedisCalls
from feature_store.script_replies import raise_if_not_owner
from feature_store.store_errors import StoreRefusedError
from feature_store.store_types import BackfillTable, Claim


class BackfillMarks:
    """Waits for Redis while it is away, as FeatureStore does."""

    def __init__(self, calls: RedisCalls, namespace: str) -> None:
        self._calls, self._namespace = calls, namespace

    async def begin(self, claim: Claim, table: BackfillTable) -> bool:
        """Mark that the partition's features are being filled from a table. False when that was done before, to its
        end; begun again after a kill it is gone on with.

        Raises:
            StoreRefusedError: filled from another table of the source before, or live events were counted already.
            FencedError, BehindError: see the classes.
        """
        reply = await self._mark("begin", claim, table)
        if reply[0] in (b"OTHER", b"LIVE"):
            raise StoreRefusedError(backfill_refusal(reply[0], claim.partition, table))
        if reply[0] != b"DONE" and table.before_ms is not None:
            claim.before[table.source] = table.before_ms
        return bool(reply[0] != b"DONE")

    async def end(self, claim: Claim, table: BackfillTable) -> None:
        """Mark that all rows of the table are in the features."""
        await self._mark("end", claim, table)

    async def _mark(self, verb: str, claim: Claim, table: BackfillTable) -> Any:
        before = "" if table.before_ms is None else table.before_ms
        arguments = [verb, claim.owner, claim.incarnation, table.source, table.digest, before, table.live_topic]
        reply = await self._calls.run("backfill", [Keys(self._namespace, claim.partition).meta], arguments)
        raise_if_not_owner(reply[0], claim)
        return reply
