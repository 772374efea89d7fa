"""GlobalCalendar: the whole shop's calendar, a compacted topic of one partition that every worker reads in full.

Live, forecasts see what the topic says now. In a replay they see what it said at their cutoff: the topic may hold all
of the recording already, and how far a worker has read it must not show.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from bisect import bisect_left
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from feature_store.decoding import decode_global_calendar
from feature_store.events import CalendarEntry

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_AGAIN_S = 0.01


class CalendarLists:
    """What the topic's messages say together, now and at any time before."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._lists: dict[bytes, tuple[int, tuple[CalendarEntry, ...]]] = {}
        self._entries: tuple[CalendarEntry, ...] = ()
        # What was said when: entries that hold for what comes after these times, of which each is later than the last.
        self._due_ms: list[int] = []
        self._versions: list[tuple[CalendarEntry, ...]] = []

    def entries(self) -> tuple[CalendarEntry, ...]:
        """All entries, lists in the order of their keys."""
        return self._entries

    def entries_at(self, event_time_ms: int) -> tuple[CalendarEntry, ...]:
        """The same as of a moment of event time: of messages due before it, by the running maximum of timestamps."""
        known = bisect_left(self._due_ms, event_time_ms)
        return self._versions[known - 1] if known else ()

    def take(self, key: bytes, value: bytes | None, timestamp_ms: int) -> None:
        """Go on with the next message; one that can't be used is logged and passed over."""
        self._take(key, value)
        self._remember(timestamp_ms)

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

    def _remember(self, timestamp_ms: int) -> None:
        if self._due_ms and timestamp_ms <= self._due_ms[-1]:
            self._versions[-1] = self._entries
        else:
            self._versions.append(self._entries)
            self._due_ms.append(timestamp_ms)


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
        self._lists = CalendarLists(topic)
        self._next_offset = 0
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
        return self._lists.entries()

    def entries_at(self, event_time_ms: int) -> tuple[CalendarEntry, ...]:
        """The same as of a moment of event time: of messages due before it, by the running maximum of timestamps."""
        return self._lists.entries_at(event_time_ms)

    async def wait_until_read(self, next_offset: int) -> None:
        """Wait until all messages below an offset are known."""
        while self._next_offset < next_offset and not self._stopping.is_set():  # noqa: ASYNC110
            await asyncio.sleep(_AGAIN_S)  # another thread reads

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
                    self._lists.take(message.key() or b"", message.value(), message.timestamp()[1])
                    self._next_offset = (message.offset() or 0) + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    self.ready.set()
                else:
                    logger.warning("reading %s: %s", self._topic, error.str())
        finally:
            consumer.close()
