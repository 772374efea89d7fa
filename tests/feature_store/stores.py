"""Stores on a real Redis, batches for them, and a wire that can lose a reply."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Self

import numpy as np
import redis.asyncio as redis_asyncio

from feature_store.features import FEATURES, SOURCE_FEATURES, Deltas
from feature_store.items import Item, ProductState
from feature_store.layout import STORED_FREQS, EventIds, ForecastSummary
from feature_store.store import Batch, Claim, FeatureStore

FREQS = ("1h", "1d")
KEEP_ALL = np.iinfo(np.int64).min
_counter = itertools.count()


def fresh_namespace() -> str:
    """One that no other test uses, on a Redis that is not emptied in between."""
    return f"shop{next(_counter)}"


@asynccontextmanager
async def open_store(url: str, namespace: str = "shop", partition_count: int = 4) -> AsyncIterator[FeatureStore]:
    store = FeatureStore(url, namespace=namespace, partition_count=partition_count, forecast_freqs=FREQS)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def by_hand(url: str) -> AsyncIterator[Any]:
    """A plain client, to look at what stands there and to do what no worker does."""
    client = redis_asyncio.Redis.from_url(url, decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def server_setting(url: str, name: str, value: str) -> AsyncIterator[None]:
    """A server setting that is put back afterwards."""
    async with by_hand(url) as client:
        before = (await client.config_get(name))[name]
        await client.config_set(name, value)
        try:
            yield
        finally:
            await client.config_set(name, before)


def row(bucket: int, units: int) -> list[int]:
    """A bucket with units only."""
    return [bucket, units] + [0] * (len(FEATURES) - 1)


class Added(NamedTuple):
    """What a step adds to one series at one frequency: rows as `row` makes them."""

    freq: str
    series_id: str
    rows: Sequence[list[int]]
    oldest_kept: int


def sums(series_id: str, *rows: list[int], freq: str = "1h", oldest_kept: int = KEEP_ALL) -> Added:
    return Added(freq, series_id, rows, oldest_kept)


def by_source(added: Sequence[Added], series: Sequence[str]) -> list[Deltas]:
    """The rows as columns, source by source; a source whose features are all zero in a row has none."""
    out = []
    for freq, (source, columns) in itertools.product(STORED_FREQS, SOURCE_FEATURES.items()):
        rows = sorted(
            (series.index(a.series_id), r[0], r[1:][columns]) for a in added if a.freq == freq for r in a.rows
        )
        rows = [r for r in rows if any(r[2])]
        if rows:
            numbers, buckets, values = zip(*rows, strict=True)
            out.append(Deltas(source, freq, np.array(numbers), np.array(buckets), np.array(values)))
    return out


def batch(
    claim: Claim,
    after: Mapping[str, int],
    added: Sequence[Added] = (),
    *,
    dirty: Sequence[str] = (),
    items: Mapping[str, Item] | None = None,
    products: Mapping[str, ProductState] | None = None,
    newest: Mapping[str, int] | None = None,
    event_ids: Sequence[EventIds] = (),
    oldest_generation: Mapping[str, int] | None = None,
) -> Batch:
    """A step from where the claim stands to the positions `after`."""
    positions = {topic: (claim.positions.get(topic, -1), offset) for topic, offset in after.items()}
    series = list(dict.fromkeys(a.series_id for a in added))
    oldest = {freq: np.full(len(series), KEEP_ALL) for freq in STORED_FREQS}
    for a in added:
        oldest[a.freq][series.index(a.series_id)] = a.oldest_kept
    return Batch(
        positions,
        newest or {},
        items or {},
        products or {},
        dirty,
        series,
        by_source(added, series),
        oldest,
        event_ids,
        oldest_generation or {},
    )


async def apply(store: FeatureStore, claim: Claim, step: Batch) -> int:
    """Apply, and remember the positions as a lane does."""
    sequence = await store.apply(claim, step)
    claim.positions.update({topic: after for topic, (_, after) in step.positions.items()})
    return sequence


async def cells(
    store: FeatureStore, claim: Claim, freq: str, series: Sequence[str], first: int = 0, last: int = 2_500
) -> dict[str, dict[int, list[int]]]:
    """What stands under some series from one bucket to another: bucket -> sums."""
    found = (await store.read(claim, FREQS[0], [], freq, series, first, last)).rows
    out: dict[str, dict[int, list[int]]] = {name: {} for name in series}
    for at, bucket, values in zip(found.item.tolist(), found.bucket.tolist(), found.values.tolist(), strict=True):
        if first <= bucket <= last:
            before = out[series[at]].get(bucket, [0] * len(values))
            out[series[at]][bucket] = [old + new for old, new in zip(before, values, strict=True)]
    return out


async def units(store: FeatureStore, claim: Claim, series_id: str, freq: str = "1h") -> dict[int, int]:
    """Units by bucket of one series."""
    return {bucket: values[0] for bucket, values in (await cells(store, claim, freq, [series_id]))[series_id].items()}


def summary(revision: int = 1) -> ForecastSummary:
    return ForecastSummary(
        "f", revision, 480_000, 1, 2, "m", "1", False, mean=[1.25, 0.0], q10=[0.5, 0], q50=[1, 0], q90=[2, 0.07]
    )


class LossyWire:
    """Stands between a store and Redis. `lose_next_reply` cuts the connection once Redis has answered, so that what
    was asked for has happened and the one who asked does not know."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._lose = False
        self.lost = 0
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def lose_next_reply(self) -> None:
        self._lose = True

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        from_redis, to_redis = await asyncio.open_connection(*self._address)
        asking = asyncio.create_task(_pump(reader, to_redis))
        try:
            while reply := await from_redis.read(65_536):
                if self._lose:
                    self._lose = False
                    self.lost += 1
                    break
                writer.write(reply)
                await writer.drain()
        except OSError:
            pass
        finally:
            to_redis.close()
            writer.close()
            await asking
            self._connections.discard(task)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while request := await reader.read(65_536):
            writer.write(request)
            await writer.drain()
    writer.close()


class Noticed(logging.Handler):
    """Tells when the store has noticed that Redis is away, so that a test can wait for that and not for a time."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._away = asyncio.Event()

    def __enter__(self) -> Self:
        logging.getLogger("feature_store.redis_calls").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("feature_store.redis_calls").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if "is away" in record.getMessage():
            self._loop.call_soon_threadsafe(self._away.set)

    async def in_call(self, call: asyncio.Task[Any]) -> None:
        """Returns once the store has noticed; raises what the call raised if it ended instead of waiting."""
        away = asyncio.create_task(self._away.wait())
        await asyncio.wait([call, away], return_when=asyncio.FIRST_COMPLETED)
        if call.done():
            away.cancel()
            raise AssertionError(f"the call ended while Redis was away: {call.result()}")
