"""Self-starting CUSUM: has a series of days left what it was before? Pure functions.

Each day is held against the days before it, as a t-value turned into a normal one, so that nothing has to be known
beforehand (Hawkins 1987, "Self-starting CUSUM charts for location and scale"; Wallace 1959, "Bounds on normal
approximations to Student's and the chi-square distributions", the approximation of its section 3). Days add up, less
half a deviation each, and never below 0. Chance alone brings a sum to 5 once in 938 days, of days that are alike and
independent (Hawkins and Olwell 1998, "Cumulative sum charts and charting for quality improvement"). e^-sum bounds the
chance of such a sum from where it began (Wald 1947, "Sequential analysis").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

FEWEST_DAYS = 10  # before a day is held against them
OPENS, CLOSES = 5.0, 1.0
_ALLOWANCE = 0.5
_WEEK = 7


class Sum(NamedTuple):
    """evidence: the sum of today. begin: place of the first day that it is made of; where it is 0, of the last week."""

    evidence: float
    begin: int


def normal_values(values: Sequence[float], least_deviation: float) -> list[float]:
    """Each value held against those before it: standard normal while nothing changes; 0 for the first ones. What
    differs by less than `least_deviation` from day to day is still no change."""
    out = [0.0] * len(values)
    for n in range(FEWEST_DAYS, len(values)):
        before, freedom = values[:n], n - 1
        deviation = max(stdev(before), least_deviation) * math.sqrt(1 + 1 / n)
        t = (values[n] - fmean(before)) / deviation
        size = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
        out[n] = math.copysign(size, t)
    return out


def summed(values: Sequence[float], sign: int) -> Sum:
    """The sum that looks for more (sign 1) or for less (-1)."""
    evidence, begin = 0.0, 0
    for n, value in enumerate(values):
        if evidence == 0:
            begin = n
        evidence = max(evidence + sign * value - _ALLOWANCE, 0.0)
    if evidence == 0:  # nothing speaks for a change: the last week beside the days before it
        begin = max(len(values) - _WEEK, 1)
    return Sum(evidence, begin)
