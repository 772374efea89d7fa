"""Programs that `ingest` times: our worker and the peers. Each starts, tells when how much is stored, and what."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import redis

from benchmarks.program import Program
from benchmarks.shop import Cells
from feature_store.features import FEATURES
from feature_store.store import FeatureStore
from worker.local_server import LocalServer
from worker.local_worker import LocalWorker
from worker.settings import Settings, load_settings
from worker.transport import murmur2_partition

BUCKET_MS = {"5m": 300_000, "1h": 3_600_000, "1d": 86_400_000}  # days too: the shop's zone is UTC
_PARTS_OF_ONE = {"units": 1000, "returned_units": 1000, "revenue": 10_000}  # thousandths; millionths to whole cents
_POLL_S = 0.005
_LOOK_UPS = 64  # at once


class Contestant(ABC):
    """A program that reads what is in its topics. Blocking throughout."""

    server: LocalServer
    settings: Settings  # where its topics and its Redis are

    @abstractmethod
    def wait_until_stored(self, count: int, timeout_s: float) -> float:
        """Wait until that many events are in Redis. Returns the clock (time.monotonic) of the write that made it so.
        Raises LocalStackError when the program ends before, or after `timeout_s`."""

    @abstractmethod
    def keeps(self, freq: str, feature: str) -> bool:
        """Is the feature one that it sums at that freq?"""

    @abstractmethod
    def stored(self, products: Iterable[str]) -> Cells:
        """All sums in Redis, in whole units and cents; a part of one would make a cell differ from the truth."""

    def libraries(self) -> Mapping[str, str]:
        """Versions by name."""
        return {}


class Shelfcast(Contestant):
    """Our worker, seen from outside: what is stored is read off the positions in Redis."""

    def __init__(self, directory: Path, variables: Mapping[str, str]) -> None:
        self.settings = load_settings(variables)
        self.server = LocalWorker(directory, variables, self.settings.namespace)

    def wait_until_stored(self, count: int, timeout_s: float) -> float:
        return asyncio.run(self._wait_until_stored(count, timeout_s))

    async def _wait_until_stored(self, count: int, timeout_s: float) -> float:
        store, deadline = self._store(), time.monotonic() + timeout_s
        lanes, inputs = range(self.settings.partition_count), self.settings.input_topics
        while True:
            positions = await asyncio.gather(*(store.peek_positions(p) for p in lanes))
            now_s, applied = time.monotonic(), sum(n for lane in positions for t, n in lane.items() if t in inputs)
            if applied >= count:
                await store.close()
                return now_s
            if not self.server.is_running:
                raise self.server.failure("ended")
            if now_s > deadline:
                raise self.server.failure(f"has stored {applied} of {count} events in {timeout_s:g} s")
            await asyncio.sleep(_POLL_S)

    def keeps(self, freq: str, feature: str) -> bool:
        return True

    def stored(self, products: Iterable[str]) -> Cells:
        return asyncio.run(self._stored(products))

    async def _stored(self, products: Iterable[str]) -> Cells:
        cells: Cells = Counter()
        slots, store = asyncio.Semaphore(_LOOK_UPS), self._store()

        async def look_up(product: str) -> None:
            async with slots:
                found = await store.look_up(murmur2_partition(product, self.settings.partition_count), product, "")
            for freq, (buckets, values) in found.sums.items() if found else ():
                for bucket, row in zip(buckets.tolist(), values.tolist(), strict=True):
                    for feature, value in zip(FEATURES, row, strict=True):
                        cells[product, freq, bucket, feature.name] += value / _PARTS_OF_ONE.get(feature.name, 1)

        await asyncio.gather(*(look_up(product) for product in products))
        await store.close()
        return cells

    def _store(self) -> FeatureStore:
        return FeatureStore(**self.settings.store_options())


class Peer(Contestant):
    """One of `benchmarks.peers`; it tells itself when how much is stored."""

    def __init__(
        self, directory: Path, name: str, settings: Settings, milestones: tuple[int, int], python: Path
    ) -> None:
        self.settings = settings
        arguments = [settings.kafka_bootstrap_servers, settings.topic_orders, settings.redis_url, *map(str, milestones)]
        self._program = Program(directory, f"benchmarks.peers.{name}", arguments, str(python))
        self.server = self._program
        self._libraries: Mapping[str, str] = {}

    def wait_until_stored(self, count: int, timeout_s: float) -> float:
        told = self._program.wait_for("stored", count, timeout_s)
        self._libraries = told["libraries"]
        return float(told["clock_s"])

    def keeps(self, freq: str, feature: str) -> bool:
        return freq == "5m" and feature in ("units", "revenue")

    def stored(self, products: Iterable[str]) -> Cells:
        client = redis.Redis.from_url(self.settings.redis_url, decode_responses=True)
        cells: Cells = Counter()
        for product in products:
            for bucket, row in cast(dict[str, str], client.hgetall(f"peer:{product}")).items():
                units, cents = row.split(",")
                cells[product, "5m", int(bucket), "units"] = int(units)
                cells[product, "5m", int(bucket), "revenue"] = int(cents)
        client.close()
        return cells

    def libraries(self) -> Mapping[str, str]:
        return self._libraries
