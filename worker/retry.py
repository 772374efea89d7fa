"""Retry: sends mended letters to their input topic, each once, whatever is killed and however often it is run.

Brokers that know no transactions must do, so what makes it once is the order of things (`Retry.send` has the steps): a
receipt stands in the dead-letter topic before a record can stand in the input topic, and says from where on to look for
it. Of several runs at one letter the one whose receipt stands first goes on, the others stop. A run sends within
`SEND_WITHIN_MS` of its receipt or not at all, and its producer never sends twice; so a receipt without an end is after
`LEASE_MS` that of a run that was killed: the next one looks for its record first, and sends only if there is none.

What this can't rule out: a process that is frozen in the very moment of sending, and goes on after its lease when
another run has sent the letter.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, Producer

from worker.dead_letters import (
    RETRY_OF,
    Ledger,
    Place,
    Receipt,
    Step,
    dead_letter_topic,
    header_texts,
    read_on,
)
from worker.errors import TopicError
from worker.mending import Mended
from worker.topic_reading import Span, TopicReading

SEND_WITHIN_MS = 10_000
_ACKNOWLEDGED_WITHIN_MS = 10_000
# What was handed to the network within the two above has long arrived, or never will.
LEASE_MS = 30_000


class Outcome(NamedTuple):
    """What became of a letter: `sent` now, by an `earlier` run, `unconfirmed` by Kafka; or not sent because another run
    is `busy` with it or its fate is `unknown`. `place` is in the input topic."""

    how: str
    place: Place | None
    detail: str = ""


_BUSY = Outcome("busy", None, "another run is at work on it: look at `shelfcast dlq list` in a minute")
_UNKNOWN = Outcome(
    "unknown",
    None,
    "an earlier run was killed while it sent this letter, and Kafka has since deleted the records among which its own "
    "would stand. If `shelfcast show` does not have the event, send it with a producer of your own",
)


class Retry:
    """Retries letters of one input topic. `ledger` is kept up with what is read on the way."""

    def __init__(
        self, config: Mapping[str, Any], topic: str, ledger: Ledger, *, most_bytes: int, now_ms: Callable[[], int]
    ) -> None:
        self._topic, self._ledger, self._now_ms = topic, ledger, now_ms
        self._letters = dead_letter_topic(topic)
        self._reading = TopicReading(config)
        self._attempt = secrets.token_hex(8)
        config = {
            **config,
            "acks": "all",
            "message.max.bytes": most_bytes,
            "message.timeout.ms": _ACKNOWLEDGED_WITHIN_MS,
            "enable.idempotence": False,  # not every broker has it, and what follows does without
        }
        self._receipt_producer = Producer(config)  # a receipt that stands there twice says the same
        self._record_producer = Producer({**config, "message.send.max.retries": 0})

    def lease_left_ms(self, names: Iterable[str]) -> int:
        """How long runs that have begun with one of these letters may still be about to send it. 0 = none is."""
        attempts = [attempt for name in names for attempt in self._ledger.open_attempts(name)]
        return max([0, *(attempt.began_ms + LEASE_MS - self._now_ms() for attempt in attempts)])

    def refresh(self) -> None:
        """Take in what was added to the dead-letter topic since."""
        read_on(self._reading, self._topic, self._ledger)

    def send(self, mended: Sequence[Mended]) -> dict[str, Outcome]:
        """Send some letters, all different; returns what became of each by name.

        1. Look for what runs that were killed may have sent.
        2. Begin with the rest: a receipt for each, and read the dead-letter topic up to them. What another run has done
           or begun before that is no longer ours to send.
        3. Send the rest, and wait for Kafka.
        4. Leave a receipt of what is done or given up; what Kafka has not acknowledged stays unfinished.

        Raises:
            TopicError: the broker does not answer, or this took too long; running again is safe.
        """
        by_name = {m.letter.name: m for m in mended}
        outcomes, looked_for = self._look(by_name)  # 1
        begun = {name: m for name, m in by_name.items() if name not in outcomes}
        began_ms = self._now_ms()
        outcomes |= self._begin(begun, looked_for)  # 2
        left = {name: m for name, m in begun.items() if name not in outcomes}
        if left and self._now_ms() - began_ms > SEND_WITHIN_MS:
            raise TopicError(f"Kafka was too slow to retry letters of {self._topic} safely: run the command again")
        sent = self._produce(left)  # 3
        given_up = [name for name in begun if name in outcomes and name not in self._ledger.retried]
        outcomes |= sent
        done = {name: o.place for name, o in outcomes.items() if o.place and name not in self._ledger.retried}
        self._write(by_name, {name: (Step.DONE, place) for name, place in done.items()})  # 4
        self._write(by_name, {name: (Step.GIVEN_UP, Place(0, 0)) for name in given_up})
        return outcomes

    def _look(self, by_name: Mapping[str, Mended]) -> tuple[dict[str, Outcome], dict[str, set[str]]]:
        """Outcomes of letters that need not be sent, and by letter the attempts whose records were looked for."""
        outcomes: dict[str, Outcome] = {}
        look_from: dict[str, list[Place]] = {}
        looked_for: dict[str, set[str]] = {}
        for name, mended in by_name.items():
            attempts = self._ledger.open_attempts(name)
            looked_for[name] = {attempt.name for attempt in attempts}
            if name in self._ledger.retried:
                outcomes[name] = Outcome("earlier", self._ledger.retried[name])
            elif self.lease_left_ms([name]) > 0:
                outcomes[name] = _BUSY
            elif attempts:
                look_from[name] = [attempt.look_from for attempt in attempts]
            elif mended.letter.place.partition in self._ledger.shortened:
                look_from[name] = [Place(p, 0) for p in self._reading.partitions(self._topic)]
        begun = {name for name in look_from if looked_for[name]}
        return outcomes | self._find(look_from, begun), looked_for

    def _find(self, look_from: Mapping[str, Sequence[Place]], begun: set[str]) -> dict[str, Outcome]:
        """Look for the records of letters in the input topic, each from its places on. Where records after such a place
        have been deleted, those of letters that were `begun` with may have been among them."""
        if not look_from:
            return {}
        bounds = self._reading.bounds(
            self._topic, {place.partition for places in look_from.values() for place in places}
        )
        outcomes, spans = {}, dict[int, Span]()
        for name, places in look_from.items():
            for partition, offset in places:
                first, end = bounds[partition]
                if offset < first and name in begun:
                    outcomes[name] = _UNKNOWN
                start = offset if first <= offset <= end else first  # beyond the end: the topic was made anew
                spans[partition] = Span(min(start, spans.get(partition, Span(start)).start))
        for record in self._reading.read(self._topic, spans):
            name = header_texts(record).get(RETRY_OF, "")
            if name in look_from:
                outcomes[name] = Outcome("earlier", Place(record.partition, record.offset))
        return outcomes

    def _begin(self, begun: Mapping[str, Mended], looked_for: Mapping[str, set[str]]) -> dict[str, Outcome]:
        """Outcomes of the letters that are another run's."""
        if not begun:
            return {}
        ends = self._reading.bounds(self._topic, {m.partition for m in begun.values()})
        steps = {name: (Step.BEGUN, Place(m.partition, ends[m.partition].end)) for name, m in begun.items()}
        stops: dict[int, int] = {}
        for place in self._write(begun, steps):
            stops[place.partition] = max(stops.get(place.partition, 0), place.offset + 1)
        read_on(self._reading, self._topic, self._ledger, stops)
        outcomes = {}
        for name in begun:
            if name in self._ledger.retried:
                outcomes[name] = Outcome("earlier", self._ledger.retried[name])
                continue
            attempts = {attempt.name: attempt.receipt for attempt in self._ledger.open_attempts(name)}
            ours = attempts.pop(self._attempt)
            if any(receipt < ours and other not in looked_for[name] for other, receipt in attempts.items()):
                outcomes[name] = _BUSY
        return outcomes

    def _produce(self, left: Mapping[str, Mended]) -> dict[str, Outcome]:
        """Send to the input topic, waiting until Kafka has acknowledged or refused each."""
        outcomes = {name: Outcome("unconfirmed", None, "no answer in time") for name in left}

        def told(name: str) -> Callable[[KafkaError | None, Any], None]:
            def on_delivery(error: KafkaError | None, message: Any) -> None:
                place = None if error else Place(message.partition(), message.offset())
                outcomes[name] = Outcome("sent" if place else "unconfirmed", place, error.str() if error else "")

            return on_delivery

        for name, m in left.items():
            self._record_producer.produce(
                self._topic, m.value, m.key, m.partition, on_delivery=told(name), headers=m.headers
            )
        self._record_producer.flush()
        return outcomes

    def _write(self, by_name: Mapping[str, Mended], steps: Mapping[str, tuple[Step, Place]]) -> list[Place]:
        """Receipts, beside their letters; returns where they stand when Kafka has acknowledged all."""
        places: list[Place] = []
        failures: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, message: Any) -> None:
            if error is None:
                places.append(Place(message.partition(), message.offset()))
            else:
                failures.append(error)

        for name, (step, place) in steps.items():
            self._receipt_producer.produce(
                self._letters,
                None,
                name.encode(),
                by_name[name].letter.place.partition,
                on_delivery=on_delivery,
                timestamp=self._now_ms(),
                headers=Receipt(name, step, self._attempt, place).headers(),
            )
        self._receipt_producer.flush()
        if failures:
            raise TopicError(
                f"Kafka did not take receipts into {self._letters} ({failures[0].str()}): run the command again, it "
                "goes on where this one stopped and sends nothing twice"
            )
        return places
