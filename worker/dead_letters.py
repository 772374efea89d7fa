"""Dead letters, and the receipts of their retries: what stands in a dead-letter topic.

A letter is a record that a worker could not use, as it came, with headers that say where from and why. Its retries
leave receipts in the same partition, null values whose headers say what was done:

    shelfcast.receipt    begun | done | given_up
    shelfcast.retry_of   the letter
    shelfcast.attempt    the run of `shelfcast dlq retry`
    shelfcast.place      begun: partition and first offset of the input topic at which the record may come to stand;
                         done: where it stands

A worker that is killed after it set a record aside may set it aside again, and one that rebuilds its features does:
the letter then stands there more than once. Its name says what it is about, so copies have the same name: original
topic, partition and offset, and a digest of key and value (a topic that was deleted and made anew counts from 0 again).
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from worker.topic_reading import Span, StoredRecord, TopicReading

OURS = "shelfcast."  # how headers begin that say something of a letter or a retry
RETRY_OF = "shelfcast.retry_of"


class Place(NamedTuple):
    """Where a record stands in a topic; written PARTITION/OFFSET."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError on anything but two numbers with a slash between."""
        partition, slash, offset = text.partition("/")
        if not (slash and partition.isdecimal() and offset.isdecimal()):
            raise ValueError(f"{text!r} is not PARTITION/OFFSET, as in 0/17")
        return cls(int(partition), int(offset))


class DeadLetter(NamedTuple):
    """A record set aside. `place` is in the dead-letter topic, `origin` in the topic it was sent to."""

    name: str
    place: Place
    origin: Place
    set_aside_ms: int
    key: bytes | None
    reason: str
    detail: str


class Step(enum.StrEnum):
    """What a receipt says of an attempt to retry a letter."""

    BEGUN = "begun"
    DONE = "done"
    GIVEN_UP = "given_up"  # nothing was sent, and nothing will be


class Receipt(NamedTuple):
    """See the module."""

    letter: str
    step: Step
    attempt: str
    place: Place

    def headers(self) -> list[tuple[str, bytes]]:
        """As they stand in the dead-letter topic."""
        fields = {"receipt": self.step.value, "attempt": self.attempt, "place": str(self.place)}
        return [(RETRY_OF, self.letter.encode()), *((f"{OURS}{name}", text.encode()) for name, text in fields.items())]


class Attempt(NamedTuple):
    """A retry that has begun and not told how it ended: when, by which receipt, and from where on in the input topic
    its record would stand."""

    name: str
    began_ms: int
    receipt: Place
    look_from: Place


@dataclass
class Ledger:
    """All that a dead-letter topic says, noted record by record in the order of each partition's offsets."""

    letters: dict[str, DeadLetter] = field(default_factory=dict)  # by name; of copies the first
    copies: Counter[str] = field(default_factory=Counter)
    name_at: dict[Place, str] = field(default_factory=dict)  # of every letter, copies too
    retried: dict[str, Place] = field(default_factory=dict)  # by letter, where its retry stands
    unfinished: dict[str, dict[str, Attempt]] = field(default_factory=dict)  # by letter and attempt
    strangers: int = 0  # records that are neither letters nor receipts
    next_offset: dict[int, int] = field(default_factory=dict)
    # Partitions whose oldest records Kafka has deleted: receipts of letters that were set aside again may have gone.
    shortened: set[int] = field(default_factory=set)

    def note(self, topic: str, record: StoredRecord) -> None:
        """Take in one record of the dead letters of `topic`."""
        self.next_offset[record.partition] = record.offset + 1
        headers = header_texts(record)
        letter, receipt = _letter_of(topic, record, headers), _receipt_of(headers)
        if letter is not None:
            self.letters.setdefault(letter.name, letter)
            self.copies[letter.name] += 1
            self.name_at[letter.place] = letter.name
        elif receipt is not None:
            self._note_receipt(receipt, record)
        else:
            self.strangers += 1

    def _note_receipt(self, receipt: Receipt, record: StoredRecord) -> None:
        attempts = self.unfinished.setdefault(receipt.letter, {})
        if receipt.step is Step.BEGUN:
            where = Place(record.partition, record.offset)
            attempts.setdefault(receipt.attempt, Attempt(receipt.attempt, record.timestamp_ms, where, receipt.place))
            return
        attempts.pop(receipt.attempt, None)
        if receipt.step is Step.DONE:
            self.retried.setdefault(receipt.letter, receipt.place)

    def open_attempts(self, name: str) -> list[Attempt]:
        """Retries of a letter that have not told how they ended; none once one of them was done."""
        return [] if name in self.retried else list(self.unfinished.get(name, {}).values())


def dead_letter_topic(topic: str) -> str:
    """Where the dead letters of an input topic stand."""
    return f"{topic}.dlq"


def read_ledger(reading: TopicReading, topic: str) -> Ledger:
    """All dead letters of an input topic, and what became of them. Raises TopicError."""
    letters, ledger = dead_letter_topic(topic), Ledger()
    bounds = reading.bounds(letters, reading.partitions(letters))
    ledger.shortened = {p for p, held in bounds.items() if held.first > 0}
    ledger.next_offset = {p: held.first for p, held in bounds.items()}
    read_on(reading, topic, ledger)
    return ledger


def read_on(reading: TopicReading, topic: str, ledger: Ledger, stops: Mapping[int, int] | None = None) -> None:
    """Note what was added since: everything, or up to the offsets given by partition."""
    if stops is None:
        spans = {p: Span(start) for p, start in ledger.next_offset.items()}
    else:
        spans = {p: Span(ledger.next_offset.get(p, 0), stop) for p, stop in stops.items()}
    for record in reading.read(dead_letter_topic(topic), spans):
        ledger.note(topic, record)


def header_texts(record: StoredRecord) -> dict[str, str]:
    """Headers by name; of those named twice the last, which is the worker's own where a record came with one like it.
    Bytes that are no text stay visible as escapes."""
    return {name: (value or b"").decode("utf-8", "backslashreplace") for name, value in record.headers}


def _receipt_of(headers: Mapping[str, str]) -> Receipt | None:
    try:
        step = Step(headers[f"{OURS}receipt"])
        return Receipt(headers[RETRY_OF], step, headers[f"{OURS}attempt"], Place.parse(headers[f"{OURS}place"]))
    except (KeyError, ValueError):
        return None


def _letter_of(topic: str, record: StoredRecord, headers: Mapping[str, str]) -> DeadLetter | None:
    """What a worker has set aside names its topic. Whatever else its headers say came with the record: it can't pass
    for a receipt."""
    if headers.get(f"{OURS}topic") != topic:
        return None
    try:
        origin = Place(int(headers[f"{OURS}partition"]), int(headers[f"{OURS}offset"]))
        reason, detail = headers[f"{OURS}reason"], headers.get(f"{OURS}detail", "")
    except (KeyError, ValueError):
        return None
    name = f"{topic}/{origin}/{_digest(record)}"
    place = Place(record.partition, record.offset)
    return DeadLetter(name, place, origin, record.timestamp_ms, record.key, reason, detail)


def _digest(record: StoredRecord) -> str:
    digest = hashlib.sha256()
    for part in (record.key, record.value):
        digest.update(b"null," if part is None else b"%d:%b," % (len(part), part))
    return digest.hexdigest()[:16]
