"""The rule of promotion: when a challenger takes the published version's place by itself. Pure functions.

It looks LOOKS times, on the first n and the first 2 n days that both versions were scored on after the rule first saw
them, n being a setting: which days a look is of does not depend on when somebody looks. Each look asks what `shelfcast
promote` asks, at a LOOKS-th of the significance level. So by chance alone a challenger that is no better is promoted
with at most the level's probability, whatever looks have to do with each other: a group sequential test whose error is
spent evenly (Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials"; Kim and DeMets 1987, "Design
and analysis of group sequential tests based on the type I error spending rate function", power 1, bounded by
Bonferroni's inequality). After the last look it stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from feature_store.model_choices import PromotionState
from feature_store.score_state import RowName, SumsByStep
from worker.challenger import AGAINST
from worker.comparison import Compared, Demands, compare, objections

LOOKS = 2  # sums of days are kept for about 40: as far as two looks of at most 14 days reach
Rows = Mapping[str, Mapping[RowName, SumsByStep]]


class Verdict(NamedTuple):
    """state: what is to stand. found: what was compared at a look; empty = there was none. against: why not."""

    state: PromotionState
    found: list[Compared]
    against: list[str]


def verdict(state: PromotionState | None, rows: Rows, versions: tuple[str, str], demands: Demands) -> Verdict | None:
    """What the rule says now; None = nothing new.

    Args:
        state: what it has said so far.
        rows: sums of all partitions, by frequency.
        versions: the published one and the challenger.
        demands: days between looks, and the level of all looks together.
    """
    present, challenger = versions
    if state is None or (state.present, state.challenger) != versions:
        days = [name.day for own in rows.values() for name in own if _is_compared(name, versions)]
        return Verdict(PromotionState(present, challenger, max(days, default=0)), [], [])
    if state.outcome or state.looks >= LOOKS:
        return None
    wanted = demands.days * (state.looks + 1)
    chosen = {freq: _first_days(own, versions, state.since, _needed(freq, wanted)) for freq, own in rows.items()}
    if not any(chosen.values()) or any(own is None for own in chosen.values()):
        return None
    found = compare({freq: own for freq, own in chosen.items() if own}, present, challenger)
    against = objections(found, Demands(demands.significance / LOOKS, wanted, demands.gain))
    outcome = "" if against else "promoted"
    return Verdict(PromotionState(present, challenger, state.since, state.looks + 1, outcome), found, against)


def _needed(freq: str, days: int) -> int:
    return math.ceil(days / 7) if freq == "1w" else days


def _is_compared(name: RowName, versions: tuple[str, str]) -> bool:
    return (name.model_version, name.segment) in {
        (versions[0], AGAINST + versions[1]),
        (versions[1], AGAINST + versions[0]),
    }


def _first_days(
    rows: Mapping[RowName, SumsByStep], versions: tuple[str, str], since: int, count: int
) -> dict[RowName, SumsByStep] | None:
    """Rows of the first `count` days after `since` on which both were scored, without the newest one, of which more may
    be scored yet. Empty where this frequency is not compared; None where there are fewer."""
    own = {name: sums for name, sums in rows.items() if _is_compared(name, versions)}
    if not own:
        return {}
    newest = max(name.day for name in own)
    first, second = ({name.day for name in own if name.model_version == version} for version in versions)
    days = sorted(day for day in first & second if since < day < newest)[:count]
    if len(days) < count:
        return None
    return {name: sums for name, sums in own.items() if name.day in set(days)}
