"""ForecastWatch: what somebody else's consumer sees. Follows the output topic beside the demo and keeps count."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from worker.schemas import Forecast

_POLL_S = 0.1


class Placed(NamedTuple):
    """An order, and at which offset it comes to stand."""

    reference: str
    offset: int


class _Pending(NamedTuple):
    offset: int
    sent_s: float


class DayAhead(NamedTuple):
    """What was forecast for a day as it began."""

    quantiles: list[float]
    mean: float


class ForecastWatch:
    """Reads in a thread of its own. Everything it shows is under `lock`."""

    def __init__(self, config: dict[str, Any], forecasts_topic: str, orders_topic: str, aside: Sequence[str]) -> None:
        self._config = {**config, "group.id": "shelfcast-demo-watch", "fetch.wait.max.ms": 10}
        self._forecasts_topic, self._orders_topic, self._aside = forecasts_topic, orders_topic, aside
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-watch", daemon=True)
        self._pending: dict[str, deque[_Pending]] = {}
        self._stale: set[str] = set()
        self._refresh_ms = 0
        self.lock = threading.Condition()
        self.latest: dict[str, Forecast] = {}
        self.day_ahead: dict[tuple[str, int], DayAhead] = {}  # by item and the day's start
        self.latencies_s: list[float] = []
        self.forecasts = 0
        self.rejects = 0
        self.failure: str | None = None

    def start(self) -> None:
        """Begin reading from the start of the topics."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def expect(self, placed: Sequence[Placed], sent_s: float) -> None:
        """Wait, from now on, for forecasts that have seen these orders, sent at monotonic time `sent_s`."""
        with self.lock:
            for reference, offset in placed:
                self._pending.setdefault(reference, deque()).append(_Pending(offset, sent_s))

    def expect_refresh(self, now_ms: int) -> None:
        """Wait, from now on, for each item whose last forecast began in a day that is over at shop time `now_ms`."""
        with self.lock:
            self._refresh_ms = now_ms
            self._stale = {item_id for item_id, f in self.latest.items() if f.steps[0].bucket_end <= now_ms}

    def wait_until_seen(self, timeout_s: float) -> bool:
        """Wait until all that is expected is there; False after `timeout_s`."""
        with self.lock:
            return self.lock.wait_for(self._nothing_owed, timeout_s)

    def _nothing_owed(self) -> bool:
        return not (self._pending or self._stale) or self.failure is not None

    def _run(self) -> None:
        consumer = Consumer(self._config)
        topics = consumer.list_topics(timeout=15).topics
        consumer.assign(
            [
                TopicPartition(topic, partition, OFFSET_BEGINNING)
                for topic in (self._forecasts_topic, *self._aside)
                for partition in topics[topic].partitions
            ]
        )
        decoder = msgspec.json.Decoder(Forecast)
        try:
            while not self._stopping.is_set():
                message = consumer.poll(_POLL_S)
                if message is None:
                    continue
                error = message.error()
                if error is not None:
                    if error.code() != KafkaError._PARTITION_EOF and error.fatal():
                        self.failure = error.str()
                    continue
                value = message.value()
                with self.lock:
                    if message.topic() != self._forecasts_topic:
                        self.rejects += 1
                    elif value is not None:
                        self._take(decoder.decode(value), time.monotonic())
        finally:
            consumer.close()

    def _take(self, forecast: Forecast, now_s: float) -> None:
        self.forecasts += 1
        self.latest[forecast.item_id] = forecast
        today = forecast.steps[0]
        self.day_ahead.setdefault((forecast.item_id, today.bucket_start), DayAhead(today.quantiles, today.mean))
        if today.bucket_end > self._refresh_ms:
            self._stale.discard(forecast.item_id)
        waiting = self._pending.get(forecast.item_id)
        position = forecast.positions.get(self._orders_topic, 0)
        while waiting and waiting[0].offset < position:
            self.latencies_s.append(now_s - waiting.popleft().sent_s)
        if waiting is not None and not waiting:
            del self._pending[forecast.item_id]
        if self._nothing_owed():
            self.lock.notify_all()
