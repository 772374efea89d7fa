"""From what was sent and what arrived to figures: pure maths on arrays. Clocks are seconds, of one clock for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = {"p50_ms": 50.0, "p99_ms": 99.0, "p999_ms": 99.9, "max_ms": 100.0}


def first_covering(
    offset: NDArray[np.int64], arrival_position: NDArray[np.int64], arrival_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """When each record of a partition was first covered by a forecast: (record,), inf = never.

    Args:
        offset: (record,), of records of one partition.
        arrival_position: (arrival,), the next offset that each forecast says is not in it, in order of arrival.
        arrival_s: (arrival,), when it came.
    """
    # A late older forecast covers nothing that the ones before it did not.
    reached = np.maximum.accumulate(arrival_position) if len(arrival_position) else arrival_position
    first = np.searchsorted(reached, offset, side="right")
    return np.append(arrival_s, np.inf)[first]


def percentiles_ms(seconds: NDArray[np.float64]) -> dict[str, float]:
    """PERCENTILES of durations, in milliseconds."""
    return {name: round(1000 * float(np.percentile(seconds, q)), 1) for name, q in PERCENTILES.items()}


def distinct_per_s(clock_s: NDArray[np.float64], item: NDArray[np.int64], ends_s: Sequence[float]) -> float:
    """Mean number of different items in the seconds that end at `ends_s`."""
    return float(np.mean([len(np.unique(item[(clock_s > end - 1) & (clock_s <= end)])) for end in ends_s]))


def owed_each_second(
    sent_s: NDArray[np.float64], seen_s: NDArray[np.float64], item: NDArray[np.int64], ends_s: Sequence[float]
) -> dict[str, Any]:
    """What stands at the end of each second. Arrays are (order,): when it was sent, when a forecast of its item that
    has seen it came, which item it is of.

    Returns:
        share_forecast: of the items ordered in a second, the mean share of those with nothing unseen at its end.
        stale_ms: of the items with unseen orders, at all ends together, how long ago the oldest of these was sent; None
            when there is never one.
    """
    shares, ages = [], []
    for end in ends_s:
        unseen = (sent_s <= end) & (seen_s > end)
        ordered = np.unique(item[(sent_s > end - 1) & (sent_s <= end)])
        owed, first = np.unique(item[unseen], return_index=True)  # orders are in order of sending
        if len(ordered):
            shares.append(1 - np.isin(ordered, owed).mean())
        ages.append(end - sent_s[unseen][first])
    age_s = np.concatenate(ages) if ages else np.empty(0)
    return {
        "share_forecast": round(float(np.mean(shares)), 4) if shares else None,
        "stale_ms": percentiles_ms(age_s) if len(age_s) else None,
    }


def bar_ms(touched_per_s: float, forecasts_per_s: float) -> float:
    """1.5 times what forecasting all items touched in a second takes at `forecasts_per_s`, in milliseconds."""
    return round(1500 * touched_per_s / forecasts_per_s, 1)


def cores_used(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Processor seconds a second, by process."""
    return {name: round((after[name] - before[name]) / seconds, 2) for name in before}
