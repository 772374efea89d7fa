"""Records of the topics that `shelfcast replenish` reads, as steps of `Reviews`; and their merging by event time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from feature_store.events import ProductEvent, StockEvent, item_id_of
from worker.replenishment import Reviews
from worker.replenishment_orders import Identity, Outlook, StockReport
from worker.schemas import Replenishment


class _Step(msgspec.Struct):
    bucket_end: int
    cumulative_quantiles: list[float]


class _Forecast(msgspec.Struct):
    """The fields of a forecast that orders depend on."""

    forecast_id: str
    revision: int
    item_id: str
    product_id: str
    location_id: str
    freq: str
    cutoff: int
    steps: list[_Step]
    quantile_levels: list[float]


_FORECAST = msgspec.json.Decoder(_Forecast)
_STOCK = msgspec.json.Decoder(StockEvent)
_PRODUCT = msgspec.json.Decoder(ProductEvent)
_ORDER = msgspec.json.Decoder(Replenishment)

Take = Callable[[Reviews], list[Replenishment]]


class Entry(NamedTuple):
    """A record as a step: `time_ms` is its event time, or the newest one of its topic and partition before it where
    that is later, so that a topic's entries are in order. `take` = None: nothing of it is of use."""

    time_ms: int
    topic: str
    offset: int
    take: Take | None


class BadRecordError(ValueError):
    """A record can't be used; says why."""


class MisplacedRecordError(BadRecordError):
    """A record of a product stands in a partition where its forecasts do not."""


class Reader:
    """Makes entries of the records of one partition of all topics.

    Args:
        sources: what each topic carries: forecasts, stock or products.
        latest_ms: records of a later time are refused: one would hold all later reviews at once.
        is_ours: whether a product's forecasts are in this partition.
    """

    def __init__(
        self, sources: Mapping[str, str], latest_ms: Callable[[], int], is_ours: Callable[[str], bool]
    ) -> None:
        self._sources = sources
        self._latest_ms = latest_ms
        self._is_ours = is_ours
        self._newest: dict[str, int] = {}

    def entry(self, topic: str, offset: int, key: bytes | None, value: bytes | None) -> Entry:
        """One record as an entry.

        Raises:
            BadRecordError: it can't be used.
            MisplacedRecordError: nor can others that its producer writes.
        """
        source = self._sources[topic]
        try:
            time_ms: int | None
            take: Take | None
            if source == "forecasts":
                time_ms, take = _forecast(key, value)
            elif value is None:
                time_ms, take = None, None
            elif source == "stock":
                product_id, time_ms, take = _stock(value)
                self._check_place(product_id)
            else:
                product_id, time_ms, take = _product(value)
                self._check_place(product_id)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRecordError(str(error)) from error
        if time_ms is not None and time_ms > self._latest_ms():
            raise BadRecordError(f"its time, {time_ms} ms, is beyond the clock by more than SHELFCAST_MAX_FUTURE_MS")
        newest = self._newest.get(topic, -(2**62))
        newest = newest if time_ms is None else max(newest, time_ms)
        self._newest[topic] = newest
        return Entry(newest, topic, offset, take)

    def _check_place(self, product_id: str) -> None:
        if not self._is_ours(product_id):
            raise MisplacedRecordError(f"product {product_id!r} belongs into another partition")


def _forecast(key: bytes | None, value: bytes | None) -> tuple[int | None, Take | None]:
    if value is None:
        item_id, _, freq = (key or b"").decode().rpartition("|")
        return None, lambda reviews: reviews.delisted(item_id, freq)
    told = _FORECAST.decode(value)
    identity = Identity(told.item_id, told.product_id, told.location_id)
    if not told.steps or any(len(step.cumulative_quantiles) != len(told.quantile_levels) for step in told.steps):
        raise BadRecordError("its steps do not have a cumulative quantile for each level")

    def take(reviews: Reviews) -> list[Replenishment]:
        if reviews.policy(identity).freq != told.freq:
            return []
        cumulative = np.array([step.cumulative_quantiles for step in told.steps], dtype=np.float32)
        ends, levels = tuple(step.bucket_end for step in told.steps), tuple(told.quantile_levels)
        return reviews.forecast(
            identity, Outlook(told.forecast_id, told.cutoff, told.revision, ends, levels, cumulative)
        )

    return told.cutoff, take


def _stock(value: bytes) -> tuple[str, int, Take]:
    told = _STOCK.decode(value)
    identity = Identity(item_id_of(told.product_id, told.location_id), told.product_id, told.location_id)
    report = StockReport(told.event_time, told.on_hand, told.on_order)
    return told.product_id, told.event_time, lambda reviews: reviews.stock(identity, report)


def _product(value: bytes) -> tuple[str, int, Take]:
    told = _PRODUCT.decode(value)
    return told.product_id, told.event_time, lambda reviews: reviews.category(told.product_id, told.category)


def decode_order(value: bytes) -> Replenishment:
    """A message of the output topic.

    Raises:
        BadRecordError: it is none.
    """
    try:
        return _ORDER.decode(value)
    except msgspec.DecodeError as error:
        raise BadRecordError(str(error)) from error


def in_order(topics: Iterable[Sequence[Entry]]) -> Iterator[Entry]:
    """Entries of whole topics, merged by time; of one time by topic."""
    return heapq.merge(*topics, key=lambda entry: (entry.time_ms, entry.topic, entry.offset))


class Merge:
    """Entries of several topics in the order of their time, as they arrive. An entry waits while another topic, which
    is not read to its end, may still have an earlier one."""

    def __init__(self, topics: Iterable[str]) -> None:
        self._waiting: dict[str, deque[Entry]] = {topic: deque() for topic in topics}
        self._at_end = dict.fromkeys(self._waiting, False)

    def add(self, entry: Entry) -> None:
        """The next one of its topic."""
        self._waiting[entry.topic].append(entry)
        self._at_end[entry.topic] = False

    def at_end(self, topic: str) -> None:
        """All that stands in a topic has been added."""
        self._at_end[topic] = True

    @property
    def is_at_end(self) -> bool:
        """Whether all topics are, and nothing waits."""
        return all(self._at_end.values()) and not any(self._waiting.values())

    def ready(self) -> Iterator[Entry]:
        """Take out what nothing earlier can come before."""
        while all(waiting or self._at_end[topic] for topic, waiting in self._waiting.items()):
            heads = [waiting[0] for waiting in self._waiting.values() if waiting]
            if not heads:
                return
            first = min(heads, key=lambda entry: (entry.time_ms, entry.topic, entry.offset))
            yield self._waiting[first.topic].popleft()
