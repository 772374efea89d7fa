"""Compares what workers left in Redis and sent to Kafka with the oracle. A difference is one line that names its place.

All of it can be asked at any positions, not only at the ends: what Redis holds has to be exactly the records below the
positions that stand beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec

from feature_store.events import item_id_of
from feature_store.features import FEATURES
from feature_store.store import REDIS_ERRORS, FeatureStore, Found
from tests.chaos.asides import Aside
from tests.chaos.feed import NUMBER_HEADER
from tests.chaos.oracle import Cell, Cells, Oracle, Place, bucket_of

_AT_ONCE = 16  # items looked up side by side
_MOST_TRIES = 50
_PAUSE_S = 0.1


class Stored(msgspec.Struct):
    """What stands in Redis at some positions. `forecasts`: ids of the last forecasts stored."""

    positions: dict[Place, int]
    cells: Cells
    forecasts: dict[tuple[str, str, str], str]


async def read_positions(store: FeatureStore, topics: Mapping[str, str], partitions: int) -> dict[Place, int]:
    """Next offset of each source and partition; those without are left out."""
    found = await asyncio.gather(*(store.peek_positions(p) for p in range(partitions)))
    return {(source, p): at[topic] for source, topic in topics.items() for p, at in enumerate(found) if topic in at}


async def read_stored(
    store: FeatureStore,
    topics: Mapping[str, str],
    partitions: int,
    items: Sequence[tuple[str, str]],
    partition_of: Callable[[str], int],
) -> Stored:
    """Everything that stands under the items. Reads again while positions move, so all of it belongs to them."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def look_up(product: str, location: str, stored: Stored) -> None:
        async with slots:
            await _look_up(store, partition_of(product), product, location, stored)

    for _ in range(_MOST_TRIES):
        stored = Stored(await read_positions(store, topics, partitions), Cells(), {})
        await asyncio.gather(*(look_up(*item, stored) for item in items))
        if stored.positions == await read_positions(store, topics, partitions):
            return stored
    raise AssertionError("the features do not stand still")


async def _look_up(store: FeatureStore, partition: int, product: str, location: str, stored: Stored) -> None:
    found = await _patiently(lambda: store.look_up(partition, product, location))
    if found is None:
        return
    for freq, (buckets, values) in found.sums.items():
        for bucket, row in zip(buckets.tolist(), values.tolist(), strict=True):
            for feature, value in zip(FEATURES, row, strict=True):
                if value:
                    stored.cells[Cell(product, location, freq, bucket, feature.name)] = value
    for freq, forecast in found.forecasts.items():
        if forecast is not None:
            stored.forecasts[product, location, freq] = forecast.forecast_id


async def _patiently(read: Callable[[], Awaitable[Found | None]]) -> Found | None:
    """A reply, though a busy machine may be slow to connect."""
    for _ in range(_MOST_TRIES):
        try:
            return await read()
        except REDIS_ERRORS:
            await asyncio.sleep(_PAUSE_S)
    return await read()


def compare_cells(expected: Cells, found: Cells, retention: Mapping[str, int]) -> list[str]:
    """Cells that differ. What has left the retention may stand or not."""
    now_ms = int(time.time() * 1000)
    oldest = {freq: bucket_of(freq, now_ms, "") - kept + 1 for freq, kept in retention.items()}
    return [
        f"{cell}: {found.get(cell, 0)} in the features, {expected.get(cell, 0)} by the records"
        for cell in sorted(expected.keys() | found.keys())
        if expected.get(cell, 0) != found.get(cell, 0) and cell.bucket >= oldest[cell.freq]
    ]


class Letters:
    """Dead letters and late events that workers have sent. `topics` names the topic of each source."""

    def __init__(self, topics: Mapping[str, str], oracle: Oracle) -> None:
        self._topics, self._oracle = topics, oracle
        self._numbers: set[int] = set()
        self._strays: list[str] = []

    def note(self, asides: Iterable[Aside]) -> None:
        """Take in what was sent since the last call."""
        for aside in asides:
            if aside.topic.endswith((".dlq", ".late")):
                number = int(aside.headers.get(NUMBER_HEADER, b"0"))
                if self._is_right(aside, number):
                    self._numbers.add(number)
                else:
                    self._strays.append(f"{aside.topic} holds what does not belong there: {aside}")

    def _is_right(self, aside: Aside, number: int) -> bool:
        known = self._oracle.set_aside(number)
        if known is None:
            return False
        sent, offset = known
        return (
            aside.topic == f"{self._topics[sent.source]}.{sent.fate.value}"
            and (aside.partition, aside.key, aside.value) == (sent.partition, sent.key, sent.value)
            and int(aside.headers["shelfcast.offset"]) == offset
        )

    def differences(self, positions: Mapping[Place, int]) -> list[str]:
        """Records below the positions that were not set aside, and what was and should not have been."""
        missing = self._oracle.to_set_aside(positions) - self._numbers
        strays, self._strays = self._strays, []
        return strays + [f"not set aside: {self._oracle.set_aside(number)}" for number in sorted(missing)]


class SentForecast(msgspec.Struct):
    """What is looked at in a forecast."""

    forecast_id: str
    revision: int
    product_id: str
    location_id: str
    freq: str
    cutoff: int
    positions: dict[str, int]
    observed: float


class Forecasts:
    """Forecasts that workers have sent. A consumer keeps the greatest revision, of two equal ones the later."""

    def __init__(self, topics: Mapping[str, str], freqs: Sequence[str]) -> None:
        self._topics, self._freqs = topics, freqs
        self._ids: set[str] = set()
        self._kept: dict[tuple[str, str, str], SentForecast] = {}

    def note(self, asides: Iterable[Aside]) -> None:
        """Take in what was sent since the last call."""
        for aside in asides:
            if not aside.topic.endswith((".dlq", ".late")) and aside.value is not None:
                forecast = msgspec.json.decode(aside.value, type=SentForecast)
                key = forecast.product_id, forecast.location_id, forecast.freq
                self._ids.add(forecast.forecast_id)
                if key not in self._kept or forecast.revision >= self._kept[key].revision:
                    self._kept[key] = forecast

    def missing(
        self,
        touches: Mapping[tuple[str, str], Mapping[str, int]],
        owed: Mapping[str, Mapping[str, int]] | None = None,
    ) -> list[str]:
        """Items whose newest forecast has not seen their last record and is not noted as owed either. `touches`: by
        item and source the offset of its last record."""
        out = []
        for (product, location), offsets in touches.items():
            for freq in self._freqs:
                if owed is not None and item_id_of(product, location) in owed[freq]:
                    continue
                kept = self._kept.get((product, location, freq))
                seen = kept.positions if kept is not None else {}
                unseen = {s: offset for s, offset in offsets.items() if seen.get(self._topics[s], 0) <= offset}
                if unseen:
                    out.append(f"no {freq} forecast of {product!r}@{location!r} has seen {unseen}: {kept}")
        return out

    def wrong(self, cells: Cells) -> list[str]:
        """Forecasts whose units observed in the running day are not those of the features at the end of all."""
        out = []
        for (product, location, freq), forecast in self._kept.items():
            bucket = bucket_of(freq, forecast.cutoff, location)
            units = cells.get(Cell(product, location, freq, bucket, "units"), 0) / 1000
            if units != forecast.observed:
                out.append(f"{units} units by the records, not as in {forecast}")
        return out

    def unsent(self, stored: Stored) -> list[str]:
        """Forecasts that stand in Redis and were never sent."""
        return [f"{key}: stored, but not sent" for key, id_ in stored.forecasts.items() if id_ not in self._ids]
