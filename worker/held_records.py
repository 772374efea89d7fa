"""HeldRecords: what a replaying lane keeps until a tick of the clock says that it is due."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from worker.records import Records, join

_MOST_HELD = 20_000  # records of a topic; more only when a tick waits for them


class ClosedError(Exception):
    """Nothing more comes or goes."""


class HeldRecords:
    """Records by topic, in offset order. One task a topic holds, one other takes."""

    def __init__(self, topics: Iterable[str]) -> None:
        self._held: dict[str, deque[Records]] = {topic: deque() for topic in topics}
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()
        self._waiting_for = ""
        self.is_closed = False

    def next_offset(self, topic: str) -> int | None:
        """The offset after the last one held; None when nothing is."""
        held = self._held[topic]
        return held[-1].next_offset if held else None

    async def hold(self, records: Records) -> None:
        """Keep records, and wait while there are plenty and nobody waits for more of them. Raises ClosedError."""
        held = self._held[records.topic]
        if len(records):
            held.append(records)
        self._arrived.set()
        while sum(map(len, held)) > _MOST_HELD and self._waiting_for != records.topic:
            self._taken.clear()
            await self._taken.wait()
            self._raise_if_closed()

    async def take(self, topic: str, position: int, next_offset: int) -> Records | None:
        """All records with position <= offset < next_offset, waiting until they have arrived; None when there are
        none. Raises ClosedError."""
        held, out = self._held[topic], []
        while position < next_offset:
            if not held:
                self._waiting_for = topic
                self._taken.set()
                self._arrived.clear()
                await self._arrived.wait()
                self._raise_if_closed()
                continue
            due, rest = held[0].split(next_offset)
            due = due.from_offset(position)
            held.popleft()
            if len(rest):
                held.appendleft(rest)
            if len(due):
                out.append(due)
                position = due.next_offset
            if len(rest):
                break
        self._waiting_for = ""
        self._taken.set()
        return join(out) if out else None

    def close(self) -> None:
        """Let whoever waits go."""
        self.is_closed = True
        self._arrived.set()
        self._taken.set()

    def _raise_if_closed(self) -> None:
        if self.is_closed:
            raise ClosedError
