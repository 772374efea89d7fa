"""GlobalCalendar: the whole shop's calendar, a compacted topic of one partition that every worker reads in full."""

from __future__ import annotations

import logging
import threading
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from feature_store.decoding import decode_global_calendar
from feature_store.events import CalendarEntry

logger = logging.getLogger(__name__)

_POLL_S = 0.2


class GlobalCalendar:
    """Reads in a thread of its own. `entries()` is what is known now; `ready` is set once the topic has been read."""

    def __init__(self, config: dict[str, Any], topic: str) -> None:
        self._config = {
            **config,
            "group.id": "shelfcast-global-calendar",  # required by the client; nothing is ever committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
        self._topic = topic
        self._lists: dict[bytes, tuple[int, tuple[CalendarEntry, ...]]] = {}
        self._entries: tuple[CalendarEntry, ...] = ()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="global-calendar", daemon=True)
        self.ready = threading.Event()

    def start(self) -> None:
        """Begin reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; returns when the thread has ended."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def entries(self) -> tuple[CalendarEntry, ...]:
        """All entries, lists in the order of their keys."""
        return self._entries

    def _run(self) -> None:
        consumer = Consumer(self._config, logger=logger)
        consumer.assign([TopicPartition(self._topic, 0, OFFSET_BEGINNING)])
        try:
            while not self._stopping.is_set():
                message = consumer.poll(_POLL_S)
                if message is None:
                    continue
                error = message.error()
                if error is None:
                    self._take(message.key() or b"", message.value())
                elif error.code() == KafkaError._PARTITION_EOF:
                    self.ready.set()
                else:
                    logger.warning("reading %s: %s", self._topic, error.str())
        finally:
            consumer.close()

    def _take(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._lists.pop(key, None)
        else:
            try:
                event = decode_global_calendar(value)
            except ValueError as error:
                logger.error(
                    "a message of %s with key %r can't be used and is passed over: %s", self._topic, key, error
                )
                return
            if event.event_time >= self._lists.get(key, (0, ()))[0]:
                self._lists[key] = (event.event_time, tuple(event.entries))
        self._entries = tuple(entry for name in sorted(self._lists) for entry in self._lists[name][1])
