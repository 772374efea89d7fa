"""Feed: sends traffic to the broker, at once or at a steady pace from a thread, and tells the oracle of each record."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from tests.chaos.oracle import Oracle
from tests.chaos.traffic import Sent, Traffic

NUMBER_HEADER = "chaos.number"
_FLUSH_S = 120.0
_STEP_S = 0.02


class Feed:
    """Records of one partition keep their order. `topics` names the topic of each source."""

    def __init__(self, config: Mapping[str, Any], topics: Mapping[str, str], traffic: Traffic, oracle: Oracle) -> None:
        self._topics, self._traffic, self._oracle = topics, traffic, oracle
        self._delivered: Counter[tuple[str, int]] = Counter()
        self._troubles: list[str] = []
        self._lock = threading.Lock()
        # One request in flight: what is sent again after an error must not land behind its successors.
        options = {"linger.ms": 2, "max.in.flight": 1, "on_delivery": self._on_delivery}
        self._producer = Producer({**config, **options})
        self.events = 0

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """The oracle counts offsets by itself: they have to be those of the broker."""
        place = str(message.topic()), message.partition() or 0
        if error is not None or message.offset() != self._delivered[place]:
            self._troubles.append(f"{place}: {error or message.offset()}, not offset {self._delivered[place]}")
        self._delivered[place] += 1

    def pour(self, events: int) -> None:
        """Send that many records; returns when the broker has them."""
        self._send_next(events)
        self.flush()

    def open(self) -> None:
        """Send the traffic's opening."""
        with self._lock:
            self._send(self._traffic.opening())
        self.flush()

    def _send_next(self, events: int) -> None:
        """Send that many records without waiting for the broker."""
        with self._lock:  # the traffic, too, is one thread's at a time: else two events get one id
            self._send(self._traffic.take(events))

    def _send(self, records: Iterable[Sent]) -> None:
        for record in records:
            headers = [(NUMBER_HEADER, str(record.number).encode())] if record.number else []
            self._oracle.add(record)  # first: a worker may have counted it before this thread goes on
            self._produce(record, headers)
            self.events += 1

    def _produce(self, record: Sent, headers: list[tuple[str, bytes]]) -> None:
        topic = self._topics[record.source]
        while True:
            try:
                self._producer.produce(topic, record.value, record.key, partition=record.partition, headers=headers)
            except BufferError:
                self._producer.poll(0.1)
                continue
            self._producer.poll(0)
            return

    def flush(self) -> None:
        """Returns when the broker has all records, at the offsets that the oracle counted."""
        with self._lock:  # one thread at a time is told of deliveries, or they would be counted out of order
            left = self._producer.flush(_FLUSH_S)
        assert left == 0, f"the broker did not take {left} records"
        assert not self._troubles, f"records are not where they should be: {self._troubles[:3]}"

    @contextmanager
    def flowing(self, events_per_s: int) -> Iterator[None]:
        """Meanwhile records are sent at that pace."""
        done = threading.Event()
        thread = threading.Thread(target=self._flow, args=(events_per_s, done), name="feed")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        self.flush()

    def _flow(self, events_per_s: int, done: threading.Event) -> None:
        started, sent = time.monotonic(), 0
        while not done.wait(_STEP_S):
            due = int((time.monotonic() - started) * events_per_s) - sent
            self._send_next(due)
            sent += due
