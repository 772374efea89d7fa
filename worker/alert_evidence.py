"""Evidence that counts have left what was expected of them: the sums behind alerts. Pure functions over arrays.

A count (order lines, units, carts, views) whose mean is `expected` and whose variance is `spread × expected` is taken
for a negative binomial with a fixed spread: sums over any stretch of time have the same form. Then

    exp(θ × count - κ × expected),   κ = ln((1 + r (spread - 1)) / spread) / (spread - 1),
                                     θ = ln(r spread / (1 + r (spread - 1)))

has mean 1 at every moment while the count follows its forecast, and grows fastest where its mean is r times that
(the exponential martingale of a process with independent increments; Küchler and Sørensen 1997, "Exponential families
of stochastic processes"). Where the true mean is lower (r > 1) or higher (r < 1) it shrinks on average. So it may be
looked at as often as one likes: the chance that it ever passes c is at most 1 / c (Ville 1939).

A detector adds up its logarithm bucket by bucket and begins anew where that falls below 0 (CUSUM, Page 1954,
"Continuous inspection schemes"; as an e-detector in Shin, Ramdas and Rinaldo 2023, "E-detectors: a nonparametric
framework for sequential change detection"): all windows that end now are looked at in one number. It leaves 0 at an
event only, and from there it passes ln c with a chance of about 1 / c. `strength` is the logarithm of the mean of a
kind's detectors, by their weights, over the number of such runs that an item has in a day; at a level a it must pass
ln 1/a.

By how much days differ (`spread_of`): a day with n events expected, whose true rate is off by a factor with a
coefficient of variation v, has a variance of n + v² n² (a negative binomial as a mixture of Poisson laws), and a share
w of the day one of w n + v² w² n²: the spread above its least is w times that of the day. So no item
has many more chances of a false alarm than others, however much it sells: runs of evidence begin about as often as
events that tell something new, n over the spread, at most 1 / v² times a day.

Ratings have a past mean instead of a forecast. With dissatisfaction y = (5 - rating) / 4 of past mean p,
exp(θ Σ y) / (1 + p (e^θ - 1))^n has a mean of at most 1 whatever the distribution of ratings (Hoeffding 1963,
"Probability inequalities for sums of bounded random variables").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

KINDS = ("demand_above", "demand_below", "interest_above", "review_below")
BELOW = KINDS.index("demand_below")
CHANNELS = ("order_lines", "units", "add_to_carts", "views", "ratings")
LINES, UNITS, CARTS, VIEWS, RATINGS = range(len(CHANNELS))


class Detector(NamedTuple):
    """What one detector looks for: `ratio` times what is expected of a channel. weight: its share of what is granted
    to a kind. window: the share of a day in which such a change shows itself, so that less of how days differ is in it.
    """

    kind: int
    channel: int
    ratio: float
    weight: float
    window: float = 1.0


DETECTORS: tuple[Detector, ...] = (
    *(Detector(0, LINES, ratio, 0.45, window) for ratio, window in ((2.5, 0.5), (6.0, 0.15))),
    Detector(0, UNITS, 4.0, 0.1),  # sizes of orders are too wild to be trusted as much
    *(Detector(1, LINES, ratio, 0.008) for ratio in (0.5, 0.1)),  # with a full share a third of false alarms
    *(Detector(2, CARTS, ratio, 1 / 3) for ratio in (2.0, 5.0)),
    Detector(2, VIEWS, 3.0, 1 / 3),
    *(Detector(3, RATINGS, ratio, 0.5) for ratio in (1.5, 2.5)),
)
KIND_OF: Integers = np.array([detector.kind for detector in DETECTORS], dtype=np.int64)
CHANNEL_OF: Integers = np.array([detector.channel for detector in DETECTORS], dtype=np.int64)
_RATIOS: Floats = np.array([detector.ratio for detector in DETECTORS])
_WEIGHTS: Floats = np.array([detector.weight for detector in DETECTORS])
_WINDOWS: Floats = np.array([detector.window for detector in DETECTORS])
_WORST_RATING_SHARE = 0.95
# Chosen on Online Retail II and dunnhumby, see docs/alerts.md.
LEAST_SPREAD, _RATE_ERROR = 1.1, 0.25
_RUNS_A_DAY = 0.6
_NEGLIGIBLE = 1e-12


class Tilts(NamedTuple):
    """Of each item and detector: float64 (item, detector). Evidence grows by gain × count - cost × expected; of ratings
    `count` is dissatisfaction, and `expected` the number of ratings."""

    gain: Floats
    cost: Floats


def tilts_of(spread: Floats, past_dissatisfaction: Floats) -> Tilts:
    """Tilts of counts of these spreads.

    Args:
        spread: float64 (item, channel but ratings): variance over mean of days, at least LEAST_SPREAD.
        past_dissatisfaction: float64 (item,): mean of (5 - rating) / 4, between 0 and 1.
    """
    padded = np.concatenate([spread, np.full((len(spread), 1), 2.0)], axis=1)
    own = LEAST_SPREAD + (padded[:, CHANNEL_OF] - LEAST_SPREAD) * _WINDOWS
    widened = 1 + _RATIOS * (own - 1)
    gain = np.log(_RATIOS * own / widened)
    cost = np.log(widened / own) / (own - 1)
    p = past_dissatisfaction[:, None]
    worse = np.minimum(_RATIOS * p, _WORST_RATING_SHARE)
    rating_gain = np.log(worse * (1 - p) / (p * (1 - worse)))
    rating_cost = np.log1p(p * np.expm1(rating_gain))
    is_rating = CHANNEL_OF == RATINGS
    return Tilts(np.where(is_rating, rating_gain, gain), np.where(is_rating, rating_cost, cost))


def strength_of(evidence: Floats) -> Floats:
    """Strength of each kind: float64 (item, kind), from evidence, float64 (item, detector)."""
    highest = evidence.max(axis=1, keepdims=True)
    share = np.exp(evidence - highest) * _WEIGHTS / _RUNS_A_DAY
    means = [share[:, kind == KIND_OF].sum(axis=1) for kind in range(len(KINDS))]
    return np.asarray(highest + np.log(np.maximum(np.stack(means, axis=1), 1e-300)))


def spread_of(a_day: Floats) -> Floats:
    """Variance over mean of a day's count, of items that have so many a day: like `a_day`."""
    return np.asarray(LEAST_SPREAD + _RATE_ERROR**2 * a_day)


def tail_probability(count: float, expected: float, spread: float, *, above: bool) -> float:
    """Chance of at least (above) or at most so many, of a negative binomial: also beyond any quantile that a forecast
    states."""
    size, odds = max(expected, 1e-9) / (spread - 1), 1 - 1 / spread
    number = math.ceil(count) if above else math.floor(count)
    term = math.exp(
        math.lgamma(number + size)
        - math.lgamma(size)
        - math.lgamma(number + 1)
        + number * math.log(odds)
        - size * math.log(spread)
    )
    total = 0.0
    while term > total * _NEGLIGIBLE and term > 0:
        total += term
        if above:
            term *= (number + size) / (number + 1) * odds
            number += 1
        elif number == 0:
            break
        else:
            term *= number / (number - 1 + size) / odds
            number -= 1
    return min(total, 1.0)


def spread_of_quantiles(quantiles: Floats, levels: Floats, mean: Floats) -> Floats:
    """Variance over mean of a distribution given by quantiles (row, quantile), beyond the last of which it falls
    exponentially: at the pace between its last two. float64 (row,), at least 1."""
    weights = np.diff(np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [levels[-1]]]))
    deviation = (np.square(quantiles - mean[:, None]) * weights).sum(axis=1)
    pace = (quantiles[:, -1] - quantiles[:, -2]) / np.log((1 - levels[-2]) / (1 - levels[-1]))
    last = np.maximum(quantiles[:, -1] - mean, 0.0)
    tail = (1 - levels[-1]) * (np.square(last) + 2 * last * pace + 2 * np.square(pace))
    return np.asarray(np.maximum((deviation + tail) / np.maximum(mean, 1e-9), 1.0))
