"""Desk: the dead letters of one source, where they are looked at, mended and handed over to be retried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import NamedTuple

from feature_store.events import COMPACTED
from worker.dead_letters import DeadLetter, Place, dead_letter_topic, read_ledger
from worker.errors import MendError, ShelfcastError, TopicError
from worker.mending import Mended, mend, refuse_outdated
from worker.retry import Outcome, Retry
from worker.settings import Settings
from worker.topic_reading import Span, StoredRecord, TopicReading
from worker.topics import ASIDE_BYTES, kafka_client_config
from worker.transport import murmur2_partition

_AT_ONCE = 200  # letters between two rounds of receipts: well within the time in which they must be sent

Change = Callable[[bytes | None], bytes | None]  # a letter's value -> its value mended


class Verdict(NamedTuple):
    """What becomes of a letter, as told to a person. `is_well`: nobody needs to do anything about it."""

    letter: DeadLetter
    how: str
    text: str
    is_well: bool


class Desk:
    """Reads the whole dead-letter topic when made. `now_ms` is the wall clock.

    Raises TopicError, with the remedy, when the broker does not answer or a topic is not as it has to be.
    """

    def __init__(
        self, settings: Settings, source: str, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self.settings, self.source = settings, source
        self.topic: str = getattr(settings, f"topic_{source}")
        self.letter_topic = dead_letter_topic(self.topic)
        self._now_ms = now_ms
        self._config = kafka_client_config(settings)
        self._reading = TopicReading(self._config)
        for topic in (self.topic, self.letter_topic):
            self._check_topic(topic)
        self.ledger = read_ledger(self._reading, self.topic)

    def _check_topic(self, topic: str) -> None:
        found, wanted = len(self._reading.partitions(topic)), self.settings.partition_count
        if not found:
            raise TopicError(
                f"topic {topic} does not exist on {self.settings.kafka_bootstrap_servers}: check "
                f"SHELFCAST_TOPIC_{self.source.upper()}, or create it with `shelfcast check --create-topics`"
            )
        if found != wanted:
            raise TopicError(f"topic {topic} has {found} partitions, not {wanted}: set SHELFCAST_PARTITION_COUNT to it")

    def letter_at(self, place: Place) -> DeadLetter:
        """The letter at a place of the dead-letter topic, or the one of which a copy stands there."""
        name = self.ledger.name_at.get(place)
        if name is None:
            raise ShelfcastError(
                f"no dead letter stands at {place} of {self.letter_topic}; `shelfcast dlq list --source {self.source}` "
                "shows where they stand"
            )
        return self.ledger.letters[name]

    def chosen(self, reasons: Sequence[str] = ()) -> list[DeadLetter]:
        """Letters that were not retried yet, of all reasons or of some."""
        letters = self.ledger.letters.values()
        return [x for x in letters if x.name not in self.ledger.retried and (not reasons or x.reason in reasons)]

    def records(self, letters: Iterable[DeadLetter]) -> Iterator[tuple[DeadLetter, StoredRecord]]:
        """The letters with what stands there, each once; those that Kafka has deleted meanwhile are left out."""
        wanted = {letter.place: letter for letter in letters}
        spans: dict[int, Span] = {}
        for p, offset in wanted:
            start, stop = spans.get(p, Span(offset, offset + 1))
            spans[p] = Span(min(start, offset), max(stop or 0, offset + 1))
        for record in self._reading.read(self.letter_topic, spans):
            letter = wanted.get(Place(record.partition, record.offset))
            if letter is not None:
                yield letter, record

    def mend(self, letter: DeadLetter, record: StoredRecord, value: bytes | None) -> Mended:
        """What a letter becomes with this value, and what a worker would say of it now."""
        count, latest_ms = self.settings.partition_count, self._now_ms() + self.settings.max_future_ms
        limits = self.settings.decode_limits(lambda product_id: murmur2_partition(product_id, count), latest_ms)
        return mend(self.source, letter, record, value, limits)

    def preview(self, letters: Iterable[DeadLetter], change: Change) -> Iterator[Verdict]:
        """What `retry` would do, without sending."""
        for verdicts, mended in self._prepare(letters, change):
            yield from verdicts
            for m in mended:
                value = "a null value" if m.value is None else m.value.decode("utf-8", "backslashreplace")
                yield Verdict(m.letter, "ready", f"would go to partition {m.partition} of {self.topic}: {value}", True)

    def retry(self, letters: Iterable[DeadLetter], change: Change) -> Iterator[Verdict]:
        """Send letters to their topic again, each once. See `Retry`."""
        for verdicts, mended in self._prepare(letters, change):
            yield from verdicts
            outcomes = self._retry.send(mended)
            yield from (self._verdict(m.letter, outcomes[m.letter.name]) for m in mended)

    def wait_ms(self, letters: Iterable[DeadLetter]) -> int:
        """How long to wait until no other run can still send one of the letters; looks at the topic anew."""
        self._retry.refresh()
        return self._retry.lease_left_ms(letter.name for letter in letters)

    @cached_property
    def _retry(self) -> Retry:
        if self.settings.clock == "event":
            raise ShelfcastError(
                "SHELFCAST_CLOCK is 'event': a replay counts only what its clock names and would ignore a letter sent "
                "again. Mend the recording, or retry where the worker runs live"
            )
        most_bytes = ASIDE_BYTES + self.settings.max_message_bytes
        return Retry(self._config, self.topic, self.ledger, most_bytes=most_bytes, now_ms=self._now_ms)

    def _prepare(self, letters: Iterable[DeadLetter], change: Change) -> Iterator[tuple[list[Verdict], list[Mended]]]:
        """In portions: what is settled already, and what can be sent."""
        found = self.records(letters)
        while portion := list(islice(found, _AT_ONCE)):
            verdicts, mended = [], []
            for letter, record in portion:
                place = self.ledger.retried.get(letter.name)
                if place is not None:
                    verdicts.append(self._verdict(letter, Outcome("earlier", place)))
                    continue
                try:
                    mended.append(self.mend(letter, record, change(record.value)))
                except MendError as error:
                    verdicts.append(_refused(letter, str(error)))
            if self.source in COMPACTED:
                mended = refuse_outdated(self._reading, self.topic, mended)
            verdicts += [_refused(m.letter, m.refusal) for m in mended if m.refusal]
            yield verdicts, [m for m in mended if not m.refusal]

    def _verdict(self, letter: DeadLetter, outcome: Outcome) -> Verdict:
        texts = {
            "sent": f"sent to {outcome.place} of {self.topic}",
            "earlier": f"not sent again: it was retried before and stands at {outcome.place} of {self.topic}",
            "unconfirmed": f"not confirmed by Kafka ({outcome.detail}): run this again, it looks for the record first",
        }
        text = texts.get(outcome.how, f"not sent: {outcome.detail}")
        return Verdict(letter, outcome.how, text, outcome.how in ("sent", "earlier"))


def _refused(letter: DeadLetter, why: str) -> Verdict:
    return Verdict(letter, "refused", f"not sent: {why}", False)
