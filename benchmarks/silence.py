"""Silence of the order stream of two real shops: how often it is told of where nothing was broken, and how soon after
orders have stopped.

Real are the times of all order lines, over all weeks from the third on, without any calendar: neither shop says when it
was closed. Every gap between two lines is judged by the worker's own functions at its end. Breaks begin at random order
lines; from there on nothing comes, and what is measured is the time until the alert.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.alert_streams import DAY_MS, HOUR_MS, MINUTE_MS, Stream, dunnhumby_stream, online_retail_stream
from benchmarks.report import show
from worker.silence import Heard, SilenceRules, expected, first_hour_of

SHOPS: dict[str, Callable[[Path], Stream]] = {"online_retail": online_retail_stream, "dunnhumby": dunnhumby_stream}
_LEAST_MS, _BREAKS, _SEED = 15 * MINUTE_MS, 300, 3
_MOST_MS = 7 * DAY_MS


class Ear:
    """A shop's order lines, as the worker that listens to them has them: int64 (line,), milliseconds, ascending."""

    def __init__(self, stream: Stream) -> None:
        self.times_ms = np.unique(stream.time_ms)
        self._first_hour = int(self.times_ms[0]) // HOUR_MS
        self._counts = np.bincount(stream.time_ms // HOUR_MS - self._first_hour)
        self._rules = SilenceRules(_LEAST_MS, DAY_MS, stream.time_zone)

    def tells(self, newest_ms: int, now_ms: int) -> bool:
        """Whether nothing since `newest_ms` is an alert at `now_ms`."""
        first = first_hour_of(now_ms, newest_ms)
        hours = np.arange(first, newest_ms // HOUR_MS + 1) - self._first_hour
        counts = np.where(hours >= 0, self._counts[np.clip(hours, 0, len(self._counts) - 1)], 0)
        found = expected(Heard(first, counts, newest_ms), now_ms, self._rules, ())
        return now_ms - newest_ms >= _LEAST_MS and found.evidence >= found.opens

    def delay_ms(self, newest_ms: int) -> int:
        """How long nothing must come until it is told: evidence never falls meanwhile."""
        low, high = 0, _MOST_MS
        while high - low > MINUTE_MS:
            middle = (low + high) // 2
            low, high = (low, middle) if self.tells(newest_ms, newest_ms + middle) else (middle, high)
        return high


def figures_of(stream: Stream) -> dict[str, Any]:
    """Of one shop."""
    ear = Ear(stream)
    judged: NDArray[np.int64] = ear.times_ms[ear.times_ms >= ear.times_ms[0] + 21 * DAY_MS]
    long = np.flatnonzero(np.diff(judged) >= _LEAST_MS)
    alarms = [
        int(judged[n])
        for n in long.tolist()
        if ear.tells(int(judged[n]), min(int(judged[n + 1]), int(judged[n]) + _MOST_MS))
    ]
    days = (judged[-1] - judged[0]) / DAY_MS
    chosen = np.random.default_rng(_SEED).choice(judged, _BREAKS, replace=False)
    delays = sorted(ear.delay_ms(int(newest_ms)) / HOUR_MS for newest_ms in chosen)
    return {
        "lines_a_day": round(len(stream.time_ms) * DAY_MS / (stream.time_ms[-1] - stream.time_ms[0])),
        "days": round(float(days)),
        "alarms": len(alarms),
        "alarm_dates": [str(np.datetime64(ms, "ms").astype("datetime64[m]")) for ms in alarms],
        "breaks": _BREAKS,
        "hours_until_told": {
            "median": round(statistics.median(delays), 2),
            "90 %": round(delays[round(0.9 * len(delays))], 2),
            "most": round(delays[-1], 2),
        },
    }


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(data: Path, as_json: bool) -> None:
    """False alarms and delay of alerts about a silent stream, on real orders."""
    figures = {name: figures_of(read(data)) for name, read in SHOPS.items()}
    rows = []
    for name, own in figures.items():
        hours = ", ".join(f"{which} {value}" for which, value in own["hours_until_told"].items())
        rows.append([name, f"{own['lines_a_day']:,}", f"{own['alarms']} in {own['days']} days", hours])
    show(
        "Silence of orders",
        ("shop", "lines a day", "alerts, nothing broken", "hours until told"),
        rows,
        figures,
        as_json,
    )


if __name__ == "__main__":
    command()
