"""How far a backtest is: its processes note it, and a progress bar shows it.

Each process has a file of its own, mapped into memory: a note costs a microsecond, holds nobody up and needs no
connection between processes, and whoever draws the bar looks when it likes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Reached(NamedTuple):
    """How far it is: what was due before `event_time_ms` is applied (0 = still starting), and forecasts made."""

    event_time_ms: int = 0
    forecasts: int = 0


class ProgressNote:
    """Where one process notes how far it is, and nobody else does. `path` None = nobody asks."""

    def __init__(self, path: Path | None) -> None:
        self._note = None if path is None else np.memmap(path, dtype=np.int64, mode="r+")

    def reached(self, event_time_ms: int) -> None:
        """What was due before is applied."""
        if self._note is not None:
            self._note[0] = event_time_ms

    def made(self, forecasts: int) -> None:
        """So many altogether."""
        if self._note is not None:
            self._note[1] = forecasts


def empty_note(path: Path) -> Path:
    """Make the file of a process that has not begun."""
    np.array(Reached(), dtype=np.int64).tofile(path)
    return path


def read_notes(paths: Sequence[Path]) -> Reached:
    """Of several processes together: the event time of the slowest one, and the forecasts of all."""
    notes = [Reached(*np.fromfile(path, dtype=np.int64).tolist()) for path in paths]
    return Reached(min(note.event_time_ms for note in notes), sum(note.forecasts for note in notes))


class _Bar(Progress):
    """Looks for itself how far the processes are, each time it is drawn."""

    def __init__(self, console: Console, notes: Sequence[Path], span_ms: tuple[int, int]) -> None:
        self._notes, (self._first_ms, last_ms) = notes, span_ms
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[forecasts]:,} forecasts"),
            TimeRemainingColumn(),
            console=console,
            transient=True,  # a line of what was done takes its place
        )
        self.add_task("starting", total=max(last_ms - self._first_ms, 1), forecasts=0)

    def get_renderables(self) -> Iterator[RenderableType]:
        event_time_ms, forecasts = read_notes(self._notes)
        for task in self.tasks if event_time_ms else ():
            self.update(
                task.id,
                completed=event_time_ms - self._first_ms,
                description=f"{dt.datetime.fromtimestamp(event_time_ms / 1000, dt.UTC):%Y-%m-%d %H:%M} UTC",
                forecasts=forecasts,
            )
        yield from super().get_renderables()


@contextmanager
def progress_bar(
    console: Console | None, folder: Path, processes: int, span_ms: tuple[int, int]
) -> Iterator[list[Path | None]]:
    """Show how far a number of processes are within event times `span_ms`; yields where each is to note it. Shows
    nothing, and asks for no notes, where there is no terminal."""
    if console is None or not console.is_terminal:
        yield [None] * processes
        return
    notes = [empty_note(folder / f"progress-{n}") for n in range(processes)]
    with _Bar(console, notes, span_ms):
        yield [*notes]
