"""RedisCalls: commands and scripts on one Redis or Redis Cluster, tried again until it is back.

While Redis is away, calls wait and try again until it is back or the connection is closed. An outage is logged once at
each end.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as redis_asyncio
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from feature_store.outage import Outage
from feature_store.redis_cluster import ClusterClient
from feature_store.store_errors import StoreClosedError, StoreRefusedError

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
# What methods that do not wait for Redis raise when it can't be reached or refuses.
REDIS_ERRORS: tuple[type[Exception], ...] = (redis_errors.RedisError, OSError)
ResponseError = redis_errors.ResponseError


class RedisCalls:
    """`redis` is the client itself, for calls that do not wait."""

    def __init__(self, url: str, *, cluster: bool) -> None:
        # One loop of tries is enough, and `when_back` tells of outages.
        options: dict[str, Any] = {
            "socket_timeout": 10.0,
            "socket_connect_timeout": 2.0,
            "retry": Retry(NoBackoff(), 0),
        }
        self.in_cluster = cluster
        self.redis: Any = ClusterClient(url, **options) if cluster else redis_asyncio.Redis.from_url(url, **options)
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

    async def servers(self) -> dict[str, Any]:
        """Clients of the server, or of all nodes of the cluster, by name."""
        return dict(await self.redis.servers()) if self.in_cluster else {"Redis": self.redis}

    async def close(self) -> None:
        """Close the connections. Calls still waiting for Redis raise StoreClosedError."""
        self._closed = True
        await self.redis.aclose()

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run one of the scripts beside this file, by its name."""
        source, digest = _SCRIPTS[script]

        async def call() -> Any:
            try:
                return await self.redis.evalsha(digest, len(keys), *keys, *arguments)
            except redis_errors.NoScriptError:
                # EVAL runs the source and caches it, on whichever cluster node holds the keys.
                return await self.redis.eval(source, len(keys), *keys, *arguments)

        return await self.when_back(call)

    async def when_back(self, call: Any) -> Any:
        """Call, and call again with growing pauses while Redis is away."""
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


_SCRIPTS = {path.stem: _read_script(path.stem) for path in Path(__file__).parent.glob("*.lua")}


def flat(reply: Any) -> list[bytes]:
    """A hash as the flat list field, value, …: clients give a mapping or a list."""
    if isinstance(reply, dict):
        return [part for pair in reply.items() for part in pair]
    return list(reply)
