"""Sums of scores as messages of `shelfcast.accuracy.v1`: one a window, segment, frequency and model version."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from feature_store.score_state import SCORE_SUMS, SumsByStep
from worker.schemas import Accuracy, AccuracyStep
from worker.scoring import Measures, measures

_DECIMALS = 6


class Window(NamedTuple):
    """Days of event time in which the forecast buckets lie. first_day: days since 1970-01-01."""

    first_day: int
    days: int

    @property
    def start(self) -> str:
        """Its first day as a date, ISO 8601."""
        return (dt.date(1970, 1, 1) + dt.timedelta(days=self.first_day)).isoformat()


class Segment(NamedTuple):
    """Whose forecasts: kind is all, category or item."""

    kind: str
    name: str = ""
    product_id: str = ""
    location_id: str = ""


class Origin(NamedTuple):
    """Where a message comes from."""

    partition: int
    freq: str
    model_name: str
    event_time_ms: int


def accuracy_message(
    origin: Origin, segment: Segment, model_version: str, window: Window, revision: int, sums: SumsByStep
) -> tuple[str, bytes]:
    """Key and value."""
    key = f"{origin.freq}|{model_version}|{window.start}|{window.days}|{segment.kind}|{segment.name}"
    message = Accuracy(
        segment_kind=segment.kind,
        segment=segment.name,
        product_id=segment.product_id,
        location_id=segment.location_id,
        freq=origin.freq,
        window_start=window.start,
        window_days=window.days,
        revision=revision,
        partition=origin.partition,
        event_time=origin.event_time_ms,
        model_name=origin.model_name,
        model_version=model_version,
        steps=[_step(step, numbers) for step, numbers in sorted(sums.items()) if numbers[0] > 0],
    )
    return key, msgspec.json.encode(message)


def _step(step: int, sums: Sequence[int]) -> AccuracyStep:
    found = measures(sums)
    return AccuracyStep(
        step=step,
        sums=dict(zip(SCORE_SUMS, sums, strict=True)),
        wape=_told(found.wape),
        rmse=_told(found.rmse),
        bias=_told(found.bias),
        wql=_told(found.wql),
        coverage=told_coverage(found),
    )


def told_coverage(found: Measures) -> dict[str, float]:
    """Coverage of what was scored; rounded as in messages."""
    return {share: round(value, _DECIMALS) for share, value in found.coverage.items() if not math.isnan(value)}


def _told(value: float) -> float | None:
    return None if math.isnan(value) else round(value, _DECIMALS)


def summed(parts: Sequence[SumsByStep]) -> dict[int, list[int]]:
    """Several days, or several lanes, as one."""
    total: dict[int, list[int]] = {}
    for part in parts:
        add_to(total, part)
    return total


def add_to(total: dict[int, list[int]], part: Mapping[int, Sequence[int]]) -> None:
    """Add one to it."""
    for step, numbers in part.items():
        before = total.get(step, [0] * len(numbers))
        total[step] = [a + b for a, b in zip(before, numbers, strict=True)]
