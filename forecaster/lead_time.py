"""Demand until the next order can have arrived: from a forecast's cumulative quantiles and a lead time.

Who looks at an item every R and waits L for goods must be covered for R + L: what is ordered now arrives after L, and
what is ordered at the next look arrives R later still (E. Silver, D. Pyke and D. Thomas, 2017, Inventory and Production
Management in Supply Chains, 4th edition, section 6.9). Times are in any one unit. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecaster.demand_distribution import Demand, DemandDistribution, Floats, Mixture


@dataclass(frozen=True)
class LeadTime:
    """How long goods take to arrive: `durations`, at least 0, each with its probability."""

    durations: tuple[float, ...]
    probabilities: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.durations or len(self.durations) != len(self.probabilities):
            raise ValueError("a lead time needs a probability for each duration")
        if min(self.durations) < 0 or min(self.probabilities) < 0 or abs(sum(self.probabilities) - 1) > 1e-9:
            raise ValueError("durations of a lead time are at least 0, and their probabilities sum to 1")

    @property
    def longest(self) -> float:
        """The longest that can happen."""
        return max(d for d, p in zip(self.durations, self.probabilities, strict=True) if p > 0)

    @property
    def mean(self) -> float:
        """Expected duration."""
        return sum(d * p for d, p in zip(self.durations, self.probabilities, strict=True))

    @property
    def variance(self) -> float:
        """Of the duration."""
        return sum(p * (d - self.mean) ** 2 for d, p in zip(self.durations, self.probabilities, strict=True))


def demand_until(
    cumulative: NDArray[np.floating[Any]], ends: Sequence[float] | Floats, levels: Sequence[float] | Floats, time: float
) -> DemandDistribution:
    """Demand from the cutoff until `time`, by interpolating each level between the steps' ends.

    After the last step the median goes on at the forecast's own pace, and what the levels differ from it grows with
    the root of time, as it does for sums over independent stretches of time.

    Args:
        cumulative: (item, step, level): units from the cutoff to the end of each step.
        ends: (step,): time of each step's end after the cutoff, ascending, the first above 0.
        levels: (level,), ascending.
        time: after the cutoff, at least 0.
    """
    at = np.concatenate([[0.0], np.asarray(ends, dtype=np.float64)])
    values = np.concatenate([np.zeros_like(cumulative[:, :1]), cumulative], axis=1).astype(np.float64)
    if time > at[-1]:
        middle = int(np.argmin(np.abs(np.asarray(levels) - 0.5)))
        last, longer = values[:, -1], time / at[-1]
        median = last[:, middle : middle + 1]
        return DemandDistribution(median * longer + (last - median) * np.sqrt(longer), levels)
    right = int(np.clip(np.searchsorted(at, time), 1, len(at) - 1))
    share = (time - at[right - 1]) / (at[right] - at[right - 1])
    return DemandDistribution(values[:, right - 1] + share * (values[:, right] - values[:, right - 1]), levels)


def protected_demand(
    cumulative: NDArray[np.floating[Any]],
    ends: Sequence[float] | Floats,
    levels: Sequence[float] | Floats,
    lead_time: LeadTime,
    review_period: float,
) -> Demand:
    """Demand over lead time and review period: of a lead time that is not certain, the mixture over its durations.

    Arguments as `demand_until`; `review_period` counts from the cutoff to the next look, 0 = looked at all the time.
    """
    parts = [demand_until(cumulative, ends, levels, review_period + duration) for duration in lead_time.durations]
    return Mixture(parts, lead_time.probabilities) if len(parts) > 1 else parts[0]


def demand_between(early: Demand, late: Demand, probability: float) -> Floats:
    """Quantile of the demand that comes after the end of `early` and before that of `late`, float64 (item,), as if it
    did not depend on what came before: means subtract, and squared distances from the mean do too. At least 0."""
    means = late.mean() - early.mean()
    squares = (late.value(probability) - late.mean()) ** 2 - (early.value(probability) - early.mean()) ** 2
    sign = np.sign(late.value(probability) - late.mean())
    return np.asarray(np.maximum(means + sign * np.sqrt(np.maximum(squares, 0.0)), 0.0))
