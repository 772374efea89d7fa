"""Drift of errors: sums of days, held against the days before them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from feature_store.score_state import RowName, SumsByStep
from tests.worker.test_scored_lane import ScoredShop
from worker.accuracy_messages import Origin
from worker.accuracy_reports import AccuracyReporter, ReportRules
from worker.cusum import FEWEST_DAYS
from worker.drift import Drift, DriftNews, drift_news, drifts
from worker.schemas import Alert

_DAY_MS, _FIRST = 86_400_000, 15_000
_ORIGIN = Origin(3, "1d", "m", (_FIRST + 40) * _DAY_MS)


def _sums(wql: float, bias: float = 0.0, count: int = 50) -> list[int]:
    """A day on which 1,000 units were sold."""
    actual = 1_000_000
    return [count, actual, 0, round(bias * actual), 0, round(wql * 19_000 * actual), 0, 0, 0]


def _rows(wql: Sequence[float], bias: Sequence[float] | None = None) -> dict[RowName, SumsByStep]:
    """A day each; the newest is judged by none."""
    leans = bias or [0.0] * len(wql)
    rows: dict[RowName, SumsByStep] = {
        RowName(_FIRST + n, "1", "all"): {1: _sums(value, lean), 7: _sums(9.0)}
        for n, (value, lean) in enumerate(zip(wql, leans, strict=True))
    }
    return rows | {RowName(_FIRST + len(wql), "1", "all"): {1: _sums(0.5)}}


def _steady(days: int, seed: int = 1, mean: float = 0.6) -> list[float]:
    return [float(v) for v in mean * np.exp(np.random.default_rng(seed).normal(0, 0.08, days))]


def _one(found: Sequence[Drift], measure: str, sign: int = 1) -> Drift:
    return next(drift for drift in found if (drift.measure, drift.sign) == (measure, sign))


def test_steady_errors_seldom_alarm() -> None:
    alarms = sum(any(drift.evidence >= 5 for drift in drifts(_rows(_steady(35, seed)))) for seed in range(400))
    # 25 days are judged, by one sum that moves: at one false alarm in 938 days one window in 38 has one.
    assert alarms / 400 < 0.06


def test_worse_forecasts_are_found_within_days() -> None:
    days = [*_steady(24), *_steady(5, 2, mean=0.8)]
    drift = _one(drifts(_rows(days)), "wql")
    assert drift.evidence > 5
    assert _FIRST + 22 <= drift.since <= _FIRST + 25
    assert drift.observed == pytest.approx(0.8, rel=0.1)
    assert drift.expected == pytest.approx(0.6, rel=0.05)
    assert all(d.evidence < 1 for d in drifts(_rows(days)) if d.measure == "bias")


@pytest.mark.parametrize(("lean", "sign"), [(0.4, 1), (-0.4, -1)])
def test_forecasts_that_lean_are_found_on_their_side(lean: float, sign: int) -> None:
    noise = [float(v) for v in np.random.default_rng(5).normal(0, 0.1, 29)]
    bias = [value + (lean if n >= 24 else 0.0) for n, value in enumerate(noise)]
    found = drifts(_rows(_steady(29), bias))
    assert _one(found, "bias", sign).evidence > 5
    assert _one(found, "bias", -sign).evidence < 1


def test_few_forecasts_baselines_and_categories_are_not_judged() -> None:
    rows = _rows([*_steady(24), *_steady(5, 2, mean=1.5)])
    few = {name: {1: [9, *sums[1][1:]]} for name, sums in rows.items()}
    assert not drifts(few)
    assert not drifts({RowName(name.day, "baseline", "all"): sums for name, sums in rows.items()})
    assert not drifts({RowName(name.day, "1", "category:mugs"): sums for name, sums in rows.items()})
    assert not drifts(_rows(_steady(FEWEST_DAYS)))
    assert not drifts({})


def test_an_episode_opens_worsens_and_closes_once() -> None:
    noted: dict[str, str] = {}
    told: list[Alert] = []
    days = [*_steady(24), *_steady(9, 2, mean=1.1), *_steady(20, 4, mean=0.6)]
    for now in range(20, len(days) + 1):
        first = max(now - 35, 0)
        news = drift_news(drifts(_rows(days[first:now])), noted, _ORIGIN)
        told += [alert for _, alert in news.messages if alert.channel == "wql"]
        noted = {name: note for name, note in (noted | news.notes).items() if name not in news.gone}
    assert (told[0].episode_state, told[-1].episode_state) == ("open", "close")
    assert [alert.sequence for alert in told] == list(range(1, len(told) + 1))
    assert len({alert.alert_id for alert in told}) == 1
    assert [alert.severity for alert in told[:2]] == ["minor", "major"]
    assert told[0].kind == "error_drift"
    assert told[0].subject == "m version 1, 1d, partition 3"
    assert not noted


def test_an_episode_of_a_version_that_is_scored_no_longer_closes() -> None:
    opened = drift_news(drifts(_rows([*_steady(24), *_steady(5, 2, mean=1.1)])), {}, _ORIGIN)
    closed = drift_news([], opened.notes, _ORIGIN)
    assert [alert.episode_state for _, alert in closed.messages] == ["close"] * len(opened.messages)
    assert sorted(closed.gone) == sorted(opened.notes)
    assert drift_news([], {}, _ORIGIN) == DriftNews([], {}, [])


async def test_a_lane_tells_of_drift_once_whoever_owns_it(redis_url: str) -> None:
    shop = ScoredShop(redis_url, "drift")
    lane = await shop.begin()
    sums = shop.store.accuracy()

    def reporter(topic_alerts: str) -> AccuracyReporter:
        return AccuracyReporter(ReportRules("accuracy", topic_alerts, "m", _DAY_MS // 4, {"1d": 4}), sums)

    rows = _rows([*_steady(24), *_steady(5, 2, mean=1.1)])
    await sums.challenged(lane.claim, "1d", {}, rows)
    await reporter("").report(lane)
    assert not [m for t, m in shop.sent if t == "alerts"], "nobody wants to know"
    for _ in range(3):
        shop.now_ms += _DAY_MS
        await reporter("alerts").report(lane)  # of a worker that has just been given the lane
    alerts = [msgspec.json.decode(m.value or b"", type=Alert) for t, m in shop.sent if t == "alerts"]
    assert [(alert.episode_state, alert.channel) for alert in alerts] == [("open", "wql")]
    assert alerts[0].observed > 0.9
    assert alerts[0].expected == pytest.approx(0.6, rel=0.1)
    # Its notes stand beside those of published windows, which they do not disturb.
    assert [name for name in (await sums.read(lane.claim, "1d")).sent if name.startswith("drift")] == ["drift 1 wql +1"]
