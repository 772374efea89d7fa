"""Detectors of others beside shelfcast's alerts: a score an hour of each item's orders, a threshold, an alert above it.

Each looks at three series of an item: orders of the last 1, 6 and 24 hours. Its threshold is chosen on other weeks, so
that it raises as many alerts there as shelfcast does, and of the three the one that finds most spikes is shown.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.alert_runs import Opening
from benchmarks.alert_streams import HOUR_MS
from benchmarks.peer_environment import PeerEnvironment

Floats = NDArray[np.float64]
HISTORY_H = 336
TRAILING_H = (1, 6, 24)
_COOLDOWN_H = 48
_SCRIPT = Path(__file__).parent / "peers" / "river_scores.py"


def trailing(orders: Floats, hours: int) -> Floats:
    """Sums of the last hours: float64 (item, hour)."""
    total = np.cumsum(orders, axis=1)
    total[:, hours:] -= total[:, :-hours].copy()
    return np.asarray(total)


def z_score(series: Floats) -> Floats:
    """By how many standard deviations of the two weeks before an hour is above their mean: float64 (item, hour)."""
    sums, squares = trailing(series, HISTORY_H), trailing(np.square(series), HISTORY_H)
    mean, square = np.roll(sums, 1, axis=1) / HISTORY_H, np.roll(squares, 1, axis=1) / HISTORY_H
    return np.asarray((series - mean) / np.sqrt(np.maximum(square - np.square(mean), 0.05)))


def seasonal_esd(series: Floats) -> Floats:
    """The statistic of Seasonal Hybrid ESD (Hochenbaum, Vallis and Kejariwal 2017, "Automatic anomaly detection in the
    cloud via statistical learning"): what is left of the median of the same hour of the last 14 days, over its median
    absolute deviation in those two weeks."""
    items, hours = series.shape
    out = np.zeros((items, hours))
    rest = np.zeros((items, hours))
    for hour in range(HISTORY_H, hours):
        rest[:, hour] = series[:, hour] - np.median(series[:, hour - HISTORY_H : hour : 24], axis=1)
        past = rest[:, max(hour - HISTORY_H, HISTORY_H) : hour]
        if past.shape[1] >= 24:
            middle = np.median(past, axis=1)
            spread = np.median(np.abs(past - middle[:, None]), axis=1)
            out[:, hour] = (rest[:, hour] - middle) / np.maximum(1.4826 * spread, 0.5)
    return out


def river_gaussian(series: Floats) -> Floats:
    """river's `anomaly.GaussianScorer` over two weeks, in an environment of its own."""
    environment = PeerEnvironment()
    failure = environment.install("river")
    if failure is not None:
        raise RuntimeError(f"river can't be installed: {failure}")
    with tempfile.TemporaryDirectory(prefix="shelfcast-river-") as name:
        folder = Path(name)
        np.save(folder / "series.npy", series)
        subprocess.run([str(environment.python), str(_SCRIPT), name, str(HISTORY_H)], check=True)
        return np.asarray(np.load(folder / "scores.npy"))


PEERS: dict[str, Callable[[Floats], Floats]] = {
    "z_score": z_score,
    "seasonal_esd": seasonal_esd,
    "river_gaussian": river_gaussian,
}


def openings_of(scores: Floats, threshold: float, first_hour: int) -> list[Opening]:
    """An alert at the end of the first hour above the threshold, then none for two days, as shelfcast does."""
    found = []
    for item, own in enumerate(scores):
        quiet = -1
        for hour in np.flatnonzero(own > threshold).tolist():
            if hour >= quiet:
                found.append(Opening(item, "demand_above", (first_hour + hour + 1) * HOUR_MS))
                quiet = hour + _COOLDOWN_H
    return found


def threshold_for(scores: Floats, most: int) -> float:
    """The lowest threshold that raises at most so many alerts."""
    low, high = float(scores.min()), float(scores.max())
    for _ in range(40):
        middle = (low + high) / 2
        if len(openings_of(scores, middle, 0)) > most:
            low = middle
        else:
            high = middle
    return high
