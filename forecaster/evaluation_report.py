"""report.html of an evaluation: one file that needs nothing else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from forecaster.contract import QUANTILE_LEVELS
from forecaster.evaluation import Evaluation, Told
from forecaster.evaluation_plots import (
    Band,
    ItemHistory,
    Line,
    calibration,
    error_by_step,
    error_distribution,
    item_history,
)
from forecaster.evaluation_summary import MEASURES, best, headline, local_times, number, ranked
from forecaster.plot_style import COLOURS
from forecaster.rolling_origins import targets
from forecaster.series import SeriesTable

_TEMPLATE = Path(__file__).with_name("evaluation_report.html.j2")
# More lines than colours can't be told apart: the lead, and the best of the others.
_LINES = len(COLOURS)
_CALIBRATION_PANELS = 3
_BANDS = [QUANTILE_LEVELS.index(level) for level in (0.025, 0.1, 0.5, 0.9, 0.975)]
# Of the better-selling items those at these places, from the best forecast to the worst.
_EXAMPLES = (("well forecast", 0.05), ("in the middle", 0.5), ("badly forecast", 0.95))
_EXAMPLES_EACH = 2
_PAST_SHOWN = 3  # horizons before the first origin


def render_report(evaluation: Evaluation, table: SeriesTable, summary: Mapping[str, Any]) -> str:
    """The page. `summary`: of `evaluation_summary.summarise`."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.lstrip_blocks = True
    environment.filters |= {"number": number}
    names = ranked(summary["on_sample"])
    shown = [evaluation.lead, *[name for name in names if name != evaluation.lead]][:_LINES]
    lines = [Line(name, COLOURS[n]) for n, name in enumerate(shown)]
    results = evaluation.results
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        headline=headline(summary),
        summary=summary,
        measures=MEASURES,
        groups=_groups(summary),
        colours=dict(lines),
        lines=lines,
        by_level=_by_level(summary, names),
        step_plot=error_by_step(table.freq, lines, summary["loss_by_step"]),
        calibration_plot=calibration(lines[:_CALIBRATION_PANELS], summary["quantile_levels"], summary["calibration"]),
        distribution_plot=error_distribution(
            lines[:4],
            {name: _series_mase(results[name].series_error) for name in shown},
            {name: np.concatenate(results[name].signed) for name in shown},
        ),
        items=[(label, wql, item_history(item), item.item_id) for label, wql, item in _examples(evaluation, table)],
    )


def _groups(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of scores: title, rows best first, and the best value of each measure."""
    whole = not summary["on_all"]
    titles = {
        "on_all": f"All {summary['series']:,} series",
        "on_sample": "All series" if whole else f"Everyone on the same sample of {summary['sample']:,} series",
    }
    return [
        {
            "title": titles[key],
            "rows": [(name, summary[key][name]) for name in ranked(summary[key])],
            "best": best(summary[key]),
        }
        for key in ("on_all", "on_sample")
        if summary[key]
    ]


def _by_level(summary: Mapping[str, Any], names: Sequence[str]) -> list[tuple[float, list[float | None]]]:
    """Pinball loss by level: a row a level, a column a contestant."""
    scores = summary["on_sample"]
    return [(level, [scores[name][f"pinball_{level:g}"] for name in names]) for level in QUANTILE_LEVELS]


def _series_mase(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    known = errors[:, 1] > 0
    return np.asarray(errors[known, 0] / errors[known, 1])


def _examples(evaluation: Evaluation, table: SeriesTable) -> list[tuple[str, float, ItemHistory]]:
    """Items to look at, each with what it is an example of and its WQL (over all levels)."""
    loss, units = evaluation.results[evaluation.lead].series_loss.T
    if not (units > 0).any():
        return []
    selling = np.flatnonzero(units >= np.median(units[units > 0]))
    order = selling[np.argsort(loss[selling] / units[selling], kind="stable")]
    chosen: dict[int, str] = {}
    for label, share in _EXAMPLES:
        first = min(int(share * len(order)), max(len(order) - _EXAMPLES_EACH, 0))
        for place in order[first : first + _EXAMPLES_EACH].tolist():
            chosen.setdefault(place, label)
    return [
        (label, float(loss[place] / units[place]), _history(evaluation, table, int(evaluation.plan.sample[place])))
        for place, label in chosen.items()
    ]


def _history(evaluation: Evaluation, table: SeriesTable, row: int) -> ItemHistory:
    steps = evaluation.plan.prediction_length
    told = [part for part in evaluation.told if row in part.rows]
    begin = max(told[0].running - _PAST_SHOWN * steps, int(table.first_bucket[row]))
    length = told[-1].running + steps - begin
    units = targets(table, np.array([row]), begin, length)[0].astype(np.float64)
    bands = [_band(part, row, table, steps) for part in told]
    return ItemHistory(table.item_ids[row], _times(table, begin, length), units, bands)


def _band(told: Told, row: int, table: SeriesTable, steps: int) -> Band:
    at = int(np.flatnonzero(told.rows == row)[0])
    ends = told.forecasts.quantiles[at][:, _BANDS].astype(np.float64).T
    return Band(_times(table, told.running, steps), *ends)


def _times(table: SeriesTable, first: int, buckets: int) -> list[dt.datetime]:
    # Plots take local time as it is on the shop's clock.
    return [start.replace(tzinfo=None) for start in local_times(table, first + np.arange(buckets))]
