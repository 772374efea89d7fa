"""Tally: what was inflicted, by kind, what was survived, and every difference found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

KILL = "kill -9, a batch in flight"
CRASH_POINT = "crash point"
CRASH_POINT_LANE, CRASH_POINT_WORKER = f"{CRASH_POINT} in lanes", f"{CRASH_POINT} in a worker"
_LONGEST = 4_000  # characters of one
_SHOWN = 5  # differences of one fault that are printed; all are counted


class Counts(NamedTuple):
    """Faults by kind, those survived, and every difference found."""

    inflicted: Counter[str]
    survived: Counter[str]
    differences: list[str]


class Tally:
    """`tell` gets each line of progress."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._started = time.monotonic()
        self._inflicted: Counter[str] = Counter()
        self._survived: Counter[str] = Counter()
        self.differences: list[str] = []

    def note(self, kind: str, differences: Sequence[str], detail: str = "", *, times: int = 1) -> None:
        """A fault, or several at one moment, and what was found different afterwards."""
        self._inflicted[kind] += times
        if not differences:
            self._survived[kind] += times
        self.check(f"{kind} ({self._inflicted[kind]})", differences, detail)

    def check(self, what: str, differences: Sequence[str], detail: str = "") -> None:
        """A comparison that belongs to no one fault."""
        self.differences += differences
        found = f"{len(differences)} DIFFERENCES" if differences else "nothing differs"
        self.tell(f"{what}: {detail}{', ' * bool(detail)}{found}")
        for difference in differences[:_SHOWN]:
            self._tell(f"           {difference[:_LONGEST]}")

    def tell(self, line: str) -> None:
        """A line of progress, with the time since the start."""
        self._tell(f"[{time.monotonic() - self._started:6.1f} s] {line}")

    def inflicted(self, kind: str) -> int:
        """How many faults of the kind, or of those that begin with it, there were so far."""
        return sum(times for name, times in self._inflicted.items() if name.startswith(kind))

    def counts(self) -> Counts:
        """All of it, to be added to another tally."""
        return Counts(self._inflicted, self._survived, self.differences)

    def add(self, counts: Counts) -> None:
        """Take in what another tally holds."""
        self._inflicted += counts.inflicted
        self._survived += counts.survived
        self.differences += counts.differences

    def summary(self) -> list[str]:
        """Survived by kind, and the last line. Kills are of worker processes with a batch in flight; faults are all of
        the table, the kills and crash points among them."""
        rows = [(kind, self._survived[kind], times) for kind, times in sorted(self._inflicted.items())]
        points = [row for row in rows if row[0].startswith(CRASH_POINT)]
        if points:
            rows.append(("crash points in all", sum(row[1] for row in points), sum(row[2] for row in points)))
        width = max((len(row[0]) for row in rows), default=0)
        lines = [f"{kind:<{width}}  {survived:>4} of {times:>4} survived" for kind, survived, times in rows]
        faults = f"{self._inflicted.total()} faults, {len(self.differences)} differences"
        return [*lines, f"{self._inflicted[KILL]} kills, {faults}"]
