"""Notes of how far a backtest's processes are."""

from __future__ import annotations

from pathlib import Path

from worker.backtest_progress import ProgressNote, Reached, empty_note, read_notes


def test_the_slowest_process_tells_the_time_and_all_tell_their_forecasts(tmp_path: Path) -> None:
    paths = [empty_note(tmp_path / str(n)) for n in range(2)]
    first, second = map(ProgressNote, paths)
    assert read_notes(paths) == Reached(0, 0)
    first.reached(1_774_828_800_000)
    first.made(7)
    assert read_notes(paths) == Reached(0, 7)  # the second is still starting
    second.reached(1_774_825_200_000)
    second.made(5)
    first.reached(1_774_832_400_000)
    first.made(9)
    assert read_notes(paths) == Reached(1_774_825_200_000, 14)
