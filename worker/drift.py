"""Drift of errors: forecasts of a lane that have become worse than they were, or lean to one side; and the alerts that
tell of drift, this one or that of inputs. Pure functions.

Of each day's forecasts, one step ahead, the logarithms of two measures are watched by a self-starting CUSUM
(`worker/cusum.py`): WQL, and what was forecast over what was sold. At a sum of 5 an alert opens, below 1 it closes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from feature_store.score_state import RowName, SumsByStep
from worker.accuracy_messages import Origin, Window
from worker.cusum import CLOSES, FEWEST_DAYS, OPENS, normal_values, summed
from worker.schemas import Alert
from worker.scoring import ALL, BASELINE_VERSION, Measures, measures

_DAY_MS = 86_400_000
_SEVERE = (10.0, 20.0)  # sums from which on an alert is major, and critical
_SEVERITIES: tuple[Literal["minor", "major", "critical"], ...] = ("minor", "major", "critical")
_FEWEST_FORECASTS = 10  # of a day
_LEAST_DEVIATION = 0.01  # of logarithms: what differs less from day to day is still no drift
_ERRORS, _INPUTS = "error_drift", "input_drift"
_PREFIXES = {_ERRORS: "drift ", _INPUTS: "input "}


class _Day(NamedTuple):
    day: int
    sums: Sequence[int]
    measures: Measures


class Drift(NamedTuple):
    """What a monitor says today.

    model_version: whose forecasts; "" = of inputs. measure: wql, bias, or an input. sign: 1 = looks for more, -1 = for
    less. evidence: the sum. since: the first day of those that make it up. observed, expected: the measure over the
    days from then on, and over those before. kind: of the alert.
    """

    model_version: str
    measure: str
    sign: int
    evidence: float
    since: int
    observed: float
    expected: float
    kind: str = _ERRORS

    @property
    def name(self) -> str:
        """Under which it is noted."""
        return f"{_PREFIXES[self.kind]}{self.model_version} {self.measure} {self.sign:+d}"


class DriftNews(NamedTuple):
    """messages: alerts with their keys. notes: by name what is to be remembered. gone: names to be forgotten."""

    messages: list[tuple[str, Alert]]
    notes: dict[str, str]
    gone: list[str]


def is_note(name: str) -> bool:
    """Whether a name noted beside published windows is a drift's."""
    return name.startswith(tuple(_PREFIXES.values()))


def drifts(rows: Mapping[RowName, SumsByStep]) -> list[Drift]:
    """All monitors of a lane and frequency. The newest day is left out: more of its forecasts may be scored yet."""
    newest = max((name.day for name in rows), default=0)
    by_version: dict[str, list[_Day]] = {}
    for name, by_step in sorted(rows.items()):
        if name.segment == ALL and name.model_version != BASELINE_VERSION and name.day < newest and by_step:
            sums = by_step[min(by_step)]
            found = measures(sums)
            if sums[0] >= _FEWEST_FORECASTS and found.wql > 0 and found.bias > -1:
                by_version.setdefault(name.model_version, []).append(_Day(name.day, sums, found))
    out = []
    for version, days in by_version.items():
        if len(days) > FEWEST_DAYS:
            wql = normal_values([math.log(day.measures.wql) for day in days], _LEAST_DEVIATION)
            lean = normal_values([math.log1p(day.measures.bias) for day in days], _LEAST_DEVIATION)
            out += [_drift(version, days, "wql", 1, wql), _drift(version, days, "bias", 1, lean)]
            out.append(_drift(version, days, "bias", -1, lean))
    return out


def _drift(version: str, days: Sequence[_Day], measure: str, sign: int, values: Sequence[float]) -> Drift:
    evidence, begin = summed(values, sign)
    observed, expected = (_pooled(part, measure) for part in (days[begin:], days[:begin]))
    return Drift(version, measure, sign, evidence, days[begin].day, observed, expected)


def _pooled(days: Sequence[_Day], measure: str) -> float:
    total = measures([sum(column) for column in zip(*(day.sums for day in days), strict=True)])
    return float(getattr(total, measure))


def drift_news(found: Sequence[Drift], noted: Mapping[str, str], origin: Origin) -> DriftNews:
    """What is to be said of a lane's drifts.

    Args:
        found: every monitor's word of now.
        noted: by name what is remembered of open episodes: alert_id, sequence, opened_at and severity.
        origin: whose they are, and when.
    """
    news = DriftNews([], {}, [])
    by_name = {drift.name: drift for drift in found}
    for name, drift in by_name.items():
        severity = sum(drift.evidence >= bound for bound in _SEVERE)
        if name not in noted:
            if drift.evidence >= OPENS:
                identity = f"{origin.partition} {origin.freq} {origin.model_name} {name} {drift.since}"
                alert_id = hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()
                _tell(news, drift, "open", (alert_id, 1, origin.event_time_ms, severity), origin)
            continue
        alert_id, sequence, opened_ms, worst = _unpacked(noted[name])
        if drift.evidence < CLOSES:
            _tell(news, drift, "close", (alert_id, sequence + 1, opened_ms, worst), origin)
        elif severity > worst:
            _tell(news, drift, "update", (alert_id, sequence + 1, opened_ms, severity), origin)
    for name in noted.keys() - by_name.keys():  # of a version that is scored no longer
        alert_id, sequence, opened_ms, worst = _unpacked(noted[name])
        kind = next(kind for kind, prefix in _PREFIXES.items() if name.startswith(prefix))
        version, measure, sign = name.removeprefix(_PREFIXES[kind]).rsplit(" ", 2)
        last = Drift(version, measure, int(sign), 0.0, opened_ms // _DAY_MS, 0.0, 0.0, kind)
        _tell(news, last, "close", (alert_id, sequence + 1, opened_ms, worst), origin)
    return news


def _unpacked(note: str) -> tuple[str, int, int, int]:
    alert_id, *numbers = note.split(" ")
    sequence, opened_ms, severity = map(int, numbers)
    return alert_id, sequence, opened_ms, severity


def _tell(
    news: DriftNews,
    drift: Drift,
    state: Literal["open", "update", "close"],
    episode: tuple[str, int, int, int],
    origin: Origin,
) -> None:
    alert_id, sequence, opened_ms, severity = episode
    whose = f"{origin.model_name} version {drift.model_version}" if drift.kind == _ERRORS else f"input {drift.measure}"
    subject = f"{whose}, {origin.freq}, partition {origin.partition}"
    word = "WQL" if drift.measure == "wql" else drift.measure
    then = f"{word} {drift.observed:.3f} since {Window(drift.since, 1).start}, {drift.expected:.3f} before"
    alert = Alert(
        alert_id=alert_id,
        episode_state=state,
        sequence=sequence,
        kind=drift.kind,
        event_time=origin.event_time_ms,
        opened_at=opened_ms,
        window_start=drift.since * _DAY_MS,
        subject=subject,
        channel=drift.measure,
        freq=origin.freq,
        observed=round(drift.observed, 6),
        expected=round(drift.expected, 6),
        tail_probability=math.exp(-drift.evidence),
        severity=_SEVERITIES[severity],
        reason="as before, or no longer looked at" if state == "close" else then,
    )
    news.messages.append((f"{subject}|{drift.kind}", alert))
    if state == "close":
        news.gone.append(drift.name)
    else:
        news.notes[drift.name] = f"{alert_id} {sequence} {opened_ms} {severity}"
