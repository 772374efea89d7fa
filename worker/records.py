"""Records: what was fetched of one topic's partition, as columns. What only a few records are asked for stays with the
messages: a call for each record would cost more than all the rest of reading it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol


class FetchedMessage(Protocol):
    """A record as the Kafka client hands it out."""

    def timestamp(self) -> tuple[int, int]: ...  # kind, and milliseconds since the epoch
    def headers(self) -> list[tuple[str, bytes]] | None: ...


@dataclass(frozen=True, slots=True)
class Records:
    """Records of one topic and partition in offset order; columns have one entry a record.

    `start` is the offset from which on the reader has passed everything on. Offsets between it and the first record's
    hold nothing (compacted, or a transaction's marker), but for those below `log_start`, which Kafka has deleted.
    """

    topic: str
    start: int
    log_start: int
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    messages: Sequence[FetchedMessage]

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def next_offset(self) -> int:
        """The offset after the last record."""
        return self.offsets[-1] + 1 if self.offsets else self.start

    def part(self, first: int, stop: int) -> Records:
        """The records of rows first to stop, stop excluded."""
        return Records(
            self.topic,
            self.offsets[first - 1] + 1 if first else self.start,
            self.log_start,
            self.offsets[first:stop],
            self.keys[first:stop],
            self.values[first:stop],
            self.messages[first:stop],
        )

    def from_offset(self, offset: int) -> Records:
        """The records at `offset` and after it."""
        return self.split(offset)[1]

    def split(self, offset: int) -> tuple[Records, Records]:
        """The records before `offset`, and those at it and after it."""
        row = bisect_left(self.offsets, offset)
        if row == 0:
            return self.part(0, 0), self
        return self.part(0, row), self.part(row, len(self))

    def headers(self, row: int) -> list[tuple[str, bytes]]:
        """Headers of one record."""
        return self.messages[row].headers() or []

    def timestamp_ms(self, row: int) -> int:
        """Timestamp of one record, as its producer or the broker set it."""
        return self.messages[row].timestamp()[1]


def join(parts: Sequence[Records]) -> Records:
    """Records of one topic, of which each part goes on where the one before ends."""
    if len(parts) == 1:
        return parts[0]
    return Records(
        parts[0].topic,
        parts[0].start,
        max(part.log_start for part in parts),
        list(chain.from_iterable(part.offsets for part in parts)),
        list(chain.from_iterable(part.keys for part in parts)),
        list(chain.from_iterable(part.values for part in parts)),
        list(chain.from_iterable(part.messages for part in parts)),
    )
