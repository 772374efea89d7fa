"""Two model versions compared on what both were asked about, by frequency and step. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feature_store.score_state import SCORE_SUMS, RowName, SumsByStep
from worker.challenger import AGAINST
from worker.paired_test import PairedTest, paired_test
from worker.scoring import Measures, measures

_LOSS = SCORE_SUMS.index("quantile_loss")
_MILLIONTHS = 1e6
_HOURS, _WEEK = 24, 7


class Compared(NamedTuple):
    """One step of one frequency. present, challenger: measures of forecasts of the same items and moments, scored on
    the same outcomes. test: of their quantile losses day by day, those of 1w week by week."""

    freq: str
    step: int
    forecasts: int
    present: Measures
    challenger: Measures
    test: PairedTest


class Demands(NamedTuple):
    """What evidence has to be: the significance level of the test, how many days it must be of, and by what share the
    loss must be lower: beyond chance may still be next to nothing."""

    significance: float = 0.05
    days: int = 14
    gain: float = 0.005


def compare(rows: Mapping[str, Mapping[RowName, SumsByStep]], present: str, challenger: str) -> list[Compared]:
    """From the sums of all partitions, by frequency."""
    return [
        found
        for freq, by_name in rows.items()
        for step in sorted(
            {step for name, sums in by_name.items() if name.segment.startswith(AGAINST) for step in sums}
        )
        if (found := _compared(freq, step, by_name, (present, challenger))) is not None
    ]


def _compared(freq: str, step: int, rows: Mapping[RowName, SumsByStep], versions: tuple[str, str]) -> Compared | None:
    present, challenger = versions
    first = {name.day: sums[step] for name, sums in rows.items() if _is(name, present, challenger) and step in sums}
    second = {name.day: sums[step] for name, sums in rows.items() if _is(name, challenger, present) and step in sums}
    days = sorted(day for day in first.keys() & second.keys() if first[day][0] > 0)
    if not days:
        return None
    losses = [(first[day][_LOSS] - second[day][_LOSS]) / _MILLIONTHS for day in days]
    totals = [[sum(numbers) for numbers in zip(*(own[day] for day in days), strict=True)] for own in (first, second)]
    horizon = math.ceil(step / _HOURS) if freq == "1h" else step
    test = paired_test(losses, horizon)
    return Compared(freq, step, totals[0][0], measures(totals[0]), measures(totals[1]), test)


def _is(name: RowName, version: str, other: str) -> bool:
    return name.model_version == version and name.segment == AGAINST + other


def objections(found: Sequence[Compared], demands: Demands) -> list[str]:
    """Why the challenger is not to be promoted; none = it is: at the first step of each frequency it is better, beyond
    chance, and at no step it is worse."""
    out = []
    for freq in dict.fromkeys(one.freq for one in found):
        own = [one for one in found if one.freq == freq]
        test = own[0].test
        where = f"{freq}, step {own[0].step}"
        unit, needed = ("weeks", math.ceil(demands.days / _WEEK)) if freq == "1w" else ("days", demands.days)
        if test.days < needed:
            out.append(f"{where}: compared on {test.days} {unit}, {needed} are asked for")
        elif not test.p_better < demands.significance:
            out.append(
                f"{where}: not better beyond chance (p = {test.p_better:.3f}, {demands.significance:g} is asked for)"
            )
        gain = 1 - own[0].challenger.wql / own[0].present.wql if own[0].present.wql > 0 else 0.0
        if gain < demands.gain:
            out.append(f"{where}: WQL is {gain:.2%} lower, {demands.gain:.2%} are asked for")
        out += [
            f"{freq}, step {one.step}: worse beyond chance (p = {one.test.p_worse:.3f})"
            for one in own
            if one.test.p_worse < demands.significance
        ]
    return out
