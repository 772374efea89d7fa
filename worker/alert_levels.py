"""How much evidence opens an alert, so that of all alerts only a chosen share is false however many items there are.

The items of a lane are tested together, a day's at one level that was earned on the days before (Zrnic, Jiang, Ramdas
and Jordan 2020, "The power of batching in multiple hypothesis testing"). Levels are those of LORD with fading memory
(Ramdas, Yang, Wainwright and Jordan 2017, "Online control of the false discovery rate with decaying memory"): with
R(t) openings on day t, `fade` δ and `spend` η, the false alerts that day t may expect are

    a(t) = share / 2 × ((1 - δ) + G(t)),   G(t) = δ η G(t - 1) + δ (1 - η) R(t - 1).

Every opening is spent once, at the pace of a geometric series, so that Σ δ^(T - t) a(t) is at most
share × max(1, Σ δ^(T - t) R(t)) on every day T: of all alerts, old ones counting less, the chosen share may be false.
"""

from __future__ import annotations

from typing import NamedTuple

from feature_store.alert_state import AlertLevels

NAME = "items"
_MILLION = 1_000_000
_UNKNOWN_COUNT = 1_000  # items taken to be judged while no day has been counted
_MOST = 0.001  # level of one item and day, whatever has been earned


class Budget(NamedTuple):
    """share: of alerts that may be false; fade: what a day's alerts count for a day later; spend: share of what was
    earned that is kept for later days."""

    share: float = 0.3
    fade: float = 0.5
    spend: float = 0.5


def levels_in(stored: AlertLevels | None, period: int, budget: Budget) -> AlertLevels:
    """A lane's levels in a period, with empty sums."""
    if stored is None:
        return AlertLevels(period, 0, 0, [0, 0])
    if stored.period >= period:
        return AlertLevels(period, stored.wealth, stored.judged, [0, 0])
    opened, judged = stored.sums
    kept = budget.fade * budget.spend
    wealth = kept * stored.wealth + budget.fade * (1 - budget.spend) * opened * _MILLION
    wealth *= kept ** (period - stored.period - 1)
    return AlertLevels(period, round(wealth), judged or stored.judged, [0, 0])


def level_of(levels: AlertLevels, budget: Budget) -> float:
    """The chance of a false alert that one item is granted in a period."""
    granted = budget.share / 2 * ((1 - budget.fade) + levels.wealth / _MILLION)
    return min(granted / (levels.judged or _UNKNOWN_COUNT), _MOST)


def added(stored: AlertLevels | None, learnt: AlertLevels) -> AlertLevels:
    """What stands once `learnt` is in it; the same as forecasts_done.lua does in Redis."""
    if stored is None or stored.period < learnt.period:
        return learnt
    if stored.period > learnt.period:
        return stored
    sums = [a + b for a, b in zip(stored.sums, learnt.sums, strict=True)]
    return AlertLevels(stored.period, stored.wealth, stored.judged, sums)
