"""Which of two forecasts is better: a paired test of their losses, day by day. Pure functions.

Diebold and Mariano (1995), "Comparing predictive accuracy": the mean of the differences over its standard error, in
which differences that lie less than a forecast's horizon apart are correlated; with the correction for few of them and
the t distribution of Harvey, Leybourne and Newbold (1997), "Testing the equality of prediction mean squared errors".
The long-run variance has Bartlett's weights (Newey and West 1987), under which it can't be negative, as in
`dm.test(varestimator = "bartlett")` of R's package forecast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_TINY, _TERMS = 1e-300, 300


class PairedTest(NamedTuple):
    """days: differences, each of a day. statistic: below 0 = the second is worse. p_better: chance of a mean this far
    above 0 if none is better than the other; p_worse: of one this far below. NaN = there are too few, or they are all
    the same."""

    days: int
    mean: float
    statistic: float
    p_better: float
    p_worse: float


def paired_test(differences: Sequence[float], horizon: int) -> PairedTest:
    """Test whether the second forecast is better.

    Args:
        differences: loss of the first less loss of the second, one a day, oldest first.
        horizon: days from a forecast to the one that it is of, at least 1.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = len(d)
    mean = float(d.mean()) if n else float("nan")
    correction = (n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n if n else 0.0
    variance = _long_run_variance(d - mean, horizon) if n else 0.0
    if n < 2 or n <= horizon or correction <= 0 or variance <= 0:
        return PairedTest(n, mean, float("nan"), float("nan"), float("nan"))
    statistic = mean / math.sqrt(variance / n) * math.sqrt(correction)
    above = 1 - student_t_cdf(statistic, n - 1)
    return PairedTest(n, mean, statistic, above, 1 - above)


def _long_run_variance(centred: np.ndarray[tuple[int, ...], np.dtype[np.float64]], horizon: int) -> float:
    n = len(centred)
    total = float(centred @ centred) / n
    for lag in range(1, min(horizon, n)):
        total += 2 * (1 - lag / horizon) * float(centred[lag:] @ centred[:-lag]) / n
    return total


def student_t_cdf(t: float, degrees: int) -> float:
    """P(T <= t), by the incomplete beta function."""
    square = t * t
    if square < degrees:  # near 0 the part beyond t is all but a half, and what is missing from it would be rounded off
        tail = 0.5 - 0.5 * _incomplete_beta(square / (degrees + square), 0.5, degrees / 2)
    else:
        tail = 0.5 * _incomplete_beta(degrees / (degrees + square), degrees / 2, 0.5)
    return 1 - tail if t > 0 else tail


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised: Lentz's continued fraction, Press et al., "Numerical Recipes", 6.4."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x >= (a + 1) / (a + b + 2):
        return 1 - front * _fraction(1 - x, b, a) / b
    return front * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
