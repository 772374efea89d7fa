"""What a backtest over tables found, as one JSON-ready object, and as tables for the terminal."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from feature_store.calendar_time import bucket_start_ms
from forecaster.contract import QUANTILE_LEVELS
from forecaster.evaluation import Evaluation
from forecaster.score_table import DECILES, table_of
from forecaster.series import SeriesTable

# Columns of the table: key, title, and whether lower is better (for the others nothing is marked).
MEASURES: tuple[tuple[str, str, bool], ...] = (
    ("wql", "WQL", True),
    ("sql", "SQL", True),
    ("mase", "MASE", True),
    ("wape", "WAPE", True),
    ("mape", "MAPE", True),
    ("mae", "MAE", True),
    ("rmse", "RMSE", True),
    ("mse", "MSE", True),
    ("r2", "R²", False),
    ("bias", "bias", False),
    ("coverage_50", "in 50 %", False),
    ("coverage_80", "in 80 %", False),
    ("coverage_95", "in 95 %", False),
    ("calibration_worst", "miscal.", True),
)
_ON_SCREEN = ("wql", "sql", "mase", "wape", "rmse", "bias", "coverage_80", "calibration_worst")


def summarise(evaluation: Evaluation, table: SeriesTable) -> dict[str, Any]:
    """The whole backtest as an object for JSON: NaN is null.

    `on_all` has the scores of who forecast all series, `on_sample` everyone's; where the sample is all there is,
    `on_all` is empty. Loss by step is a share of the mean units of a bucket.
    """
    plan, results = evaluation.plan, evaluation.results
    starts = local_times(table, np.array([origin.running for origin in plan.origins]))
    summary: dict[str, Any] = _plain(
        {
            "freq": table.freq,
            "time_zone": table.time_zone,
            "prediction_length": plan.prediction_length,
            "origins": [start.isoformat() for start in starts],
            "season": plan.season,
            "levels_of_sql_and_wql": list(DECILES),
            "quantile_levels": list(QUANTILE_LEVELS),
            "series": evaluation.series,
            "sample": len(plan.sample),
            "lead": evaluation.lead,
            "on_all": {n: table_of(r.on_all) for n, r in results.items() if r.on_all is not None},
            "on_sample": {n: table_of(r.on_sample) for n, r in results.items()},
            "loss_by_step": {n: r.on_sample.by_step()["loss"] for n, r in results.items()},
            "calibration": {n: r.on_sample.calibration() for n, r in results.items()},
            "fallbacks": dict(evaluation.fallbacks),
            "seconds": {n: round(r.seconds, 3) for n, r in results.items()},
        }
    )
    return summary


def headline(summary: Mapping[str, Any]) -> str:
    """What was asked of everyone, in a sentence."""
    origins, digits = summary["origins"], len("2026-01-31T12:00" if summary["freq"] == "1h" else "2026-01-31")
    dates = origins[0][:digits].replace("T", " ")
    if len(origins) > 1:
        dates += f" to {origins[-1][:digits].replace('T', ' ')}"
    return (
        f"{summary['prediction_length']} buckets of {summary['freq']} ahead from {len(origins)} "
        f"origin{'s' if len(origins) > 1 else ''}, {dates}"
    )


def local_times(table: SeriesTable, buckets: NDArray[np.int64]) -> list[dt.datetime]:
    """Starts of buckets in the table's time zone."""
    zone = ZoneInfo(table.time_zone)
    starts = bucket_start_ms(table.freq, buckets, table.time_zone).tolist()
    return [dt.datetime.fromtimestamp(ms / 1000, zone) for ms in starts]


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """The scores for a terminal, best WQL first; the best of each column is bold."""
    found = []
    whole = summary["sample"] == summary["series"]
    for key, label in (("on_all", f"all {summary['series']:,} series"), ("on_sample", _sample_label(summary, whole))):
        if summary[key]:
            found.append(_table(f"{label}, {headline(summary)}", summary[key]))
    return found


def best(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The lowest value of each measure that is the better the lower."""
    found = {}
    for key, _, lower in MEASURES:
        values = [row[key] for row in scores.values() if row[key] is not None]
        if lower and len(values) > 1:
            found[key] = min(values)
    return found


def ranked(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names by WQL, the best first; where there is none (nothing was sold), last."""
    return sorted(scores, key=lambda name: (scores[name]["wql"] is None, scores[name]["wql"] or 0.0))


def number(value: float | None) -> str:
    """Four digits at most, and no more than three after the point."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3f}"


def _sample_label(summary: Mapping[str, Any], whole: bool) -> str:
    if whole:
        return f"all {summary['series']:,} series"
    drawn = "a sample of " if summary["on_all"] else ""
    return f"{drawn}{summary['sample']:,} series"


def _table(title: str, scores: Mapping[str, Mapping[str, Any]]) -> Table:
    shown: Sequence[tuple[str, str, bool]] = [m for m in MEASURES if m[0] in _ON_SCREEN]
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for _, heading, _ in shown:
        table.add_column(heading, justify="right")
    top = best(scores)
    for name in ranked(scores):
        row = scores[name]
        cells = [
            f"[bold]{number(row[key])}[/bold]" if key in top and row[key] == top[key] else number(row[key])
            for key, _, _ in shown
        ]
        table.add_row(name, *cells)
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
