"""report.html of a backtest: one file that needs nothing else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from forecaster.plot_style import COLOURS
from worker.backtest_plots import calibration, error_by_step, item_history
from worker.backtest_scores import Sample
from worker.backtest_screen import MEASURES, accuracy_rows, number_text, steps_text

_TEMPLATE = Path(__file__).with_name("backtest_report.html.j2")
_BETTER_LOW = ("wql", "wape", "rmse", "mase")


def write_report(path: Path, summary: Mapping[str, Any], samples: Sequence[tuple[str, Sample]]) -> None:
    """Write the page. `samples` are items to look at, each with what it is an example of."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.lstrip_blocks = True
    environment.filters |= {"when": _when, "number": number_text, "steps": steps_text, "count": _count}
    scored = [variant for variant in summary["variants"] if variant["accuracy"]]
    common = _common_settings(summary["variants"])
    variants = [variant | {"own": _without(variant["settings"], common)} for variant in summary["variants"]]
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        recording=summary["recording"],
        variants=variants,
        common=common,
        colours=COLOURS,
        measures=MEASURES,
        groups=_groups(summary),
        kinds=[row | {"label": v["label"]} for v in scored for row in v["accuracy"] if _is_total(row, v["accuracy"])],
        error_plot=error_by_step(scored) if scored else "",
        calibration_plot=calibration(scored) if scored else "",
        samples=[(name, sample, item_history(sample)) for name, sample in samples],
        changes=summary["changes"],
    )
    path.write_text(page, encoding="utf-8")


def _common_settings(variants: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Settings that were given to every variant, with the same value."""
    first, *others = (variant["settings"] for variant in variants)
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _without(settings: Mapping[str, str], common: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name not in common}


def _groups(summary: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Rows of the accuracy table by frequency and steps; in each the best of a measure is named in `best`."""
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in accuracy_rows(summary):
        found.setdefault((row["freq"], row["first_step"], row["last_step"]), []).append(row)
    for rows in found.values():
        for row in rows:
            row["best"] = [
                measure
                for measure in _BETTER_LOW
                if len(rows) > 1
                and row[measure] is not None
                and row[measure] == min(r[measure] for r in rows if r[measure] is not None)
            ]
    return list(found.values())


def _is_total(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a row is of all steps, and not of all kinds together."""
    last = max(r["last_step"] for r in rows if r["freq"] == row["freq"])
    return row["kind"] != "all" and (row["first_step"], row["last_step"]) == (1, last)


def _when(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M")


def _count(value: float) -> str:
    return f"{value:,.0f}"
