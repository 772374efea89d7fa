"""Watchdog: sees from aside whether the worker gets on, in a thread and over Kafka connections of its own.

It tells when Kafka does not answer, once at each end. And it ends a worker that has records to read, knows of no
outage, and stands still all the same: its consumer, a lane or the event loop is stuck, and only a new process gets them
going.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from feature_store.outage import Outage
from worker.errors import WatchdogError

logger = logging.getLogger(__name__)

Partition = tuple[str, int]  # topic, number

_LOOK_EVERY_S = 5.0
_ANSWER_WITHIN_S = 5.0
# From asking the worker to stop to ending it by force: its orderly stop takes up to a minute, if it comes to that.
_GRACE_S = 90.0
_WORDS_KEPT_S = 60.0  # from before it stood still: that is when it came about
_STDERR = 2


class Standstill:
    """Judges which partitions have stood still too long. Pure: clock, positions and ends are handed in."""

    def __init__(self, patience_s: float, look_every_s: float) -> None:
        self._patience_s = patience_s
        # Of one look at most: a process that was itself stopped for an hour has not watched for an hour.
        self._most_step_s = 2 * look_every_s
        self._seen: dict[Partition, tuple[int | None, float]] = {}  # position, and for how long it has been that
        self._looked_at_s: float | None = None

    def look(
        self, now_s: float, positions: Mapping[Partition, int | None], ends: Mapping[Partition, int], *, excused: bool
    ) -> list[Partition]:
        """Partitions that stood still for `patience_s` although their topic goes on.

        Args:
            now_s: seconds of a clock that never goes back.
            positions: next offset to read of all partitions assigned now; None = it has not been read from yet.
            ends: offset after the last record, as far as the broker tells.
            excused: something that everything waits for is known to be away; time counts from its end.
        """
        step_s = 0.0 if self._looked_at_s is None else min(now_s - self._looked_at_s, self._most_step_s)
        self._looked_at_s = now_s
        seen = {}
        for partition, position in positions.items():
            before, still_s = self._seen.get(partition, (position, 0.0))
            lags = ends.get(partition, 0) > (position or 0)
            seen[partition] = (position, still_s + step_s if lags and position == before and not excused else 0.0)
        self._seen = seen
        return [partition for partition, (_, still_s) in seen.items() if still_s >= self._patience_s]

    def forgive(self, partition: Partition) -> None:
        """Begin to count anew."""
        self._seen[partition] = (self._seen[partition][0], 0.0)


class KafkaAside:
    """Asks Kafka over connections of its own: the worker's may be what is stuck. Blocking. Raises KafkaException."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._admin = AdminClient(config)

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Offset after the last record of each. May be too low on brokers that count whole batches."""
        asked = {TopicPartition(*partition): OffsetSpec.latest() for partition in partitions}
        found = {}
        for partition, future in self._admin.list_offsets(asked, request_timeout=_ANSWER_WITHIN_S).items():
            offset = future.result().offset
            if offset < 0:  # what the client replies with when the broker does not
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"no answer within {_ANSWER_WITHIN_S:g} s"))
            found[partition.topic, partition.partition] = offset
        return found

    async def ends_if_told(self, partitions: Iterable[Partition]) -> dict[Partition, int] | None:
        """The same without blocking; None when Kafka does not answer."""
        try:
            return await asyncio.to_thread(self.ends, partitions)
        except KafkaException:
            return None

    async def awaits_record(self, partition: Partition, position: int) -> bool:
        """`holds_record` without blocking; what can't be read may well be there."""
        try:
            return await asyncio.to_thread(self.holds_record, partition, position)
        except KafkaException:
            return True

    def holds_record(self, partition: Partition, position: int) -> bool:
        """Whether there is a record at `position` or after it. The end alone does not say so: a transaction's mark or
        records that compaction removed may be all that follows."""
        config = {
            "group.id": "shelfcast-watchdog",  # required by the client; it neither joins nor commits
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_uncommitted",
        }
        consumer = Consumer(self._config | config, logger=logger)
        consumer.assign([TopicPartition(*partition, position)])
        try:
            message = consumer.poll(_ANSWER_WITHIN_S)
            return message is not None and message.error() is None
        finally:
            consumer.close()


class LastWords(logging.Handler):
    """Keeps the last warning of some loggers to itself. Those of the Kafka clients go here: while Kafka is away they
    tell of every try, ten a second, where the log needs one line; but when one of them is what is stuck, its last words
    say why."""

    def __init__(self, *loggers: str) -> None:
        super().__init__(logging.WARNING)
        self._text, self._said_s = "", 0.0
        for name in loggers:
            named = logging.getLogger(name)
            named.addHandler(self)
            named.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self._text, self._said_s = record.getMessage(), time.monotonic()

    def since(self, seconds: float) -> str:
        """What was said last, if that was at most so long ago."""
        return self._text if time.monotonic() - self._said_s <= seconds else ""


def end_process(error: WatchdogError) -> None:
    """End at once, with the error as the last line on stderr: the real one, which Faust has put a log in place of."""
    os.write(_STDERR, f"error: {error}\n".encode())
    os._exit(1)


class Watchdog:
    """Runs until `stop`. Once it has barked it stays, and ends the process if that does not end by itself.

    positions: next offset of every partition assigned; called from the watchdog's thread.
    excused: whether an outage of something else is being waited out.
    bark: called from the watchdog's thread with what must end the worker.
    last_words: of the library that reads from Kafka.
    end_process: by force.
    patience_s: 0 = never bark, only tell of Kafka's outages.
    """

    def __init__(  # noqa: PLR0913 - each is an independent keyword
        self,
        kafka: KafkaAside,
        outage: Outage,
        positions: Callable[[], dict[Partition, int | None]],
        *,
        excused: Callable[[], bool],
        bark: Callable[[WatchdogError], None],
        last_words: LastWords,
        patience_s: float,
        end_process: Callable[[WatchdogError], None] = end_process,
    ) -> None:
        self._kafka, self._outage, self._positions = kafka, outage, positions
        self._excused, self._bark, self._last_words = excused, bark, last_words
        self._patience_s, self._end_process = patience_s, end_process
        self._look_every_s = min(_LOOK_EVERY_S, patience_s / 4) if patience_s else _LOOK_EVERY_S
        self._standstill = Standstill(patience_s, self._look_every_s)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; returns at once."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._look_every_s):
            error = self._look()
            if error is not None and not self._stopping.is_set():
                self._bark(error)
                time.sleep(_GRACE_S)
                self._end_process(error)
                return

    def _look(self) -> WatchdogError | None:
        excused = self._excused() or self._outage.is_on
        positions = self._positions()
        ends = self._ends(positions) if positions else None
        if ends is None:
            return None
        excused = excused or self._excused() or self._outage.is_on
        for partition in self._standstill.look(time.monotonic(), positions, ends, excused=excused):
            if self._patience_s and self._kafka.holds_record(partition, positions[partition] or 0):
                return WatchdogError(self._message(partition, positions[partition], ends[partition]))
            self._standstill.forgive(partition)
        return None

    def _ends(self, partitions: Iterable[Partition]) -> dict[Partition, int] | None:
        """Waits while Kafka does not answer; None when the watch ends meanwhile."""
        with self._outage.call() as wait:
            while not self._stopping.is_set():
                try:
                    return self._kafka.ends(partitions)
                except KafkaException as error:
                    wait(error.args[0].str())
                    self._stopping.wait(1.0)
        return None

    def _message(self, partition: Partition, position: int | None, end: int) -> str:
        topic, number = partition
        where = "has not been read from" if position is None else f"has stood at offset {position}"
        words = self._last_words.since(self._patience_s + _WORDS_KEPT_S)
        return (
            f"{topic} partition {number} {where} for {self._patience_s:g} s although Kafka holds records up to offset "
            f"{end}, and neither Redis nor Kafka is known to be away: the consumer or the partition's lane is stuck. "
            + (f"The Kafka client's last warning: {words!r}. " if words else "")
            + "The worker ends, to be started anew; nothing is lost. If it comes back, look at the last log lines "
            "before this one and at shelfcast_batch_seconds in /metrics; where a batch may take that long, raise "
            "SHELFCAST_WATCHDOG_S."
        )
