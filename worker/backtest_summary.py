"""What a backtest writes down: backtest.json, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from feature_store.recording_files import Recording
from forecaster.contract import QUANTILE_LEVELS
from forecaster.score_sums import ScoreSums
from worker.backtest_alerts import alerts_summary
from worker.backtest_changes import Changes
from worker.backtest_process import ProcessResult
from worker.backtest_variants import Variant

# Steps that are scored together, 1 = the running bucket.
HORIZONS: dict[str, tuple[tuple[int, int], ...]] = {
    "1h": ((1, 1), (2, 6), (7, 24), (25, 48)),
    "1d": ((1, 1), (2, 7), (8, 14), (15, 28)),
    "1w": ((1, 1), (2, 4), (5, 13)),
}


def recording_summary(recording: Recording, span_ms: tuple[int, int]) -> dict[str, Any]:
    """Which recording it was."""
    return {
        "name": recording.path.resolve().name,
        "source": recording.manifest.source,
        "topics": {topic: recording.rows(topic) for topic in recording.topics},
        "first_ms": span_ms[0],
        "last_ms": span_ms[1],
    }


def variant_summary(
    variant: Variant, results: Sequence[ProcessResult], wall_s: float, sums: Mapping[tuple[str, str], ScoreSums]
) -> dict[str, Any]:
    """One variant: what was run, how fast, and how accurate it was by freq, kind of forecast and steps."""
    events, forecasts = sum(r.lanes.events for r in results), sum(r.forecasts for r in results)
    seconds = max(r.seconds for r in results)
    set_aside: dict[str, int] = {}
    for result in results:
        for topic, count in result.lanes.set_aside.items():
            set_aside[topic] = set_aside.get(topic, 0) + count
    everything = {freq: own for (freq, kind), own in sums.items() if kind == "all"}
    return {
        "label": variant.label,
        "model": variant.model,
        "settings": dict(variant.own),
        "config_hash": variant.settings.config_hash(),
        "time_zone": variant.settings.time_zone,
        "processes": len(results),
        "events": events,
        "forecasts": forecasts,
        "seconds": round(seconds, 3),
        "wall_s": round(wall_s, 3),
        "events_per_s": round(events / seconds, 1),
        "forecasts_per_s": round(forecasts / seconds, 1),
        "set_aside": set_aside,
        "alerts": alerts_summary([alert for r in results for alert in [*r.found.get("alerts", []), *r.lanes.alerts]]),
        "accuracy": [row for (freq, kind), own in sums.items() for row in _accuracy(freq, kind, own)],
        "by_step": {
            freq: {name: [_plain(value) for value in values] for name, values in own.by_step().items()}
            for freq, own in everything.items()
        },
        "quantile_levels": list(QUANTILE_LEVELS),
        "calibration": {
            freq: {name: [_plain(share) for share in shares] for name, shares in own.calibration().items()}
            for freq, own in everything.items()
        },
    }


def _accuracy(freq: str, kind: str, sums: ScoreSums) -> list[dict[str, Any]]:
    groups = [(first, min(last, sums.steps)) for first, last in HORIZONS[freq] if first <= sums.steps]
    if groups and groups[-1] != (1, sums.steps):
        groups.append((1, sums.steps))
    return [
        {"freq": freq, "kind": kind, "first_step": first, "last_step": last}
        | {name: _plain(value) for name, value in sums.scores(slice(first - 1, last)).items()}
        for first, last in groups
    ]


def changes_summary(label_a: str, label_b: str, changes: Changes) -> dict[str, Any]:
    """How two variants' forecasts differ."""
    counts = {"compared": changes.compared, "changed": changes.changed}
    largest = [change._asdict() for change in changes.largest]
    return {
        "a": label_a,
        "b": label_b,
        **counts,
        "only_a": changes.only_a,
        "only_b": changes.only_b,
        "largest": largest,
    }


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return round(value, 6) if math.isfinite(value) else None
