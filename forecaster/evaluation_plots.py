"""Plots of an evaluation's report, as SVG texts to stand in an HTML page."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from forecaster.plot_style import COLOURS, STEP_NAMES, STYLE, panels, svg


class Line(NamedTuple):
    """One contestant in a plot: its name and its colour."""

    name: str
    colour: str


class Band(NamedTuple):
    """One forecast of an item: times of its buckets, and float64 (step,) each: the ends of the 95 % and 80 % intervals
    and the median."""

    times: Sequence[dt.datetime]
    lowest: NDArray[np.float64]
    low: NDArray[np.float64]
    middle: NDArray[np.float64]
    high: NDArray[np.float64]
    highest: NDArray[np.float64]


class ItemHistory(NamedTuple):
    """What was sold of one item (units float64 (bucket,), NaN = not known), and what was forecast from each origin."""

    item_id: str
    times: Sequence[dt.datetime]
    units: NDArray[np.float64]
    bands: Sequence[Band]


def error_by_step(freq: str, lines: Sequence[Line], losses: Mapping[str, Sequence[float | None]]) -> str:
    """Quantile loss by step, a line a contestant."""
    with mpl.rc_context(STYLE):
        figure, (axis,) = panels(1, 9.4, 3.2)
        for line in lines:
            values = [np.nan if value is None else value for value in losses[line.name]]
            steps = np.arange(1, len(values) + 1)
            axis.plot(steps, values, color=line.colour, label=line.name, marker="o", ms=2.5, lw=1.4)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(f"{STEP_NAMES[freq]} of the forecast")
        axis.set_ylabel("loss / mean units")
        axis.legend(frameon=False, fontsize=8, ncols=2)
        return svg(figure)


def calibration(lines: Sequence[Line], levels: Sequence[float], shares: Mapping[str, Mapping[str, Any]]) -> str:
    """Shares of outcomes below and not above each quantile against the share promised, a panel a contestant."""
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(lines), 3.1 * max(len(lines), 2), 3.3)
        for axis, line in zip(axes, lines, strict=True):
            below, not_above = shares[line.name]["below"], shares[line.name]["not_above"]
            axis.plot([0, 1], [0, 1], color="#475569", lw=1, ls="--")
            if None not in below:
                axis.fill_between(levels, below, not_above, color=line.colour, alpha=0.2, lw=0)
                axis.plot(levels, below, color=line.colour, marker="o", ms=2.5, lw=1.0)
                axis.plot(levels, not_above, color=line.colour, marker="o", ms=2.5, lw=1.0)
            axis.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal", xlabel="quantile level")
            axis.set_title(line.name, loc="left", fontweight="bold", color="#0f172a")
        axes[0].set_ylabel("share of outcomes")
        return svg(figure)


def error_distribution(
    lines: Sequence[Line], by_series: Mapping[str, NDArray[np.float64]], signed: Mapping[str, NDArray[np.float32]]
) -> str:
    """Left: share of series whose MASE is at most so much. Right: how far means were above or below what happened."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = panels(2, 9.4, 3.2)
        limit = max((float(np.quantile(v, 0.98)) for v in by_series.values() if len(v)), default=1.0)
        edges = np.linspace(-3, 3, 61)
        for line in lines:
            values = np.sort(by_series[line.name])
            left.plot(values, np.arange(1, len(values) + 1) / max(len(values), 1), color=line.colour, lw=1.4)
            errors = np.clip(signed[line.name], edges[0], edges[-1])
            counts, _ = np.histogram(errors, edges)
            right.stairs(counts / max(len(errors), 1), edges, color=line.colour, lw=1.3, label=line.name)
        left.set(xlim=(0, limit), ylim=(0, 1.02), xlabel="a series' MASE", ylabel="share of series at most")
        left.axvline(1.0, color="#94a3b8", lw=0.8, ls=":")
        right.set(xlabel="(mean forecast − sold) / scale of the series", ylabel="share of outcomes", xlim=(-3, 3))
        right.axvline(0.0, color="#94a3b8", lw=0.8, ls=":")
        right.legend(frameon=False, fontsize=8)
        return svg(figure)


def item_history(item: ItemHistory) -> str:
    """What was sold of one item, and what was forecast of it: medians, 80 % and 95 % intervals."""
    with mpl.rc_context(STYLE):
        figure, (axis,) = panels(1, 9.4, 2.6)
        axis.step(item.times, item.units, where="mid", color="#334155", lw=1.0, label="sold")
        for n, band in enumerate(item.bands):
            labels = ("median", "80 %", "95 %") if n == 0 else (None, None, None)
            axis.fill_between(
                band.times, band.lowest, band.highest, color=COLOURS[0], alpha=0.12, lw=0, label=labels[2]
            )
            axis.fill_between(band.times, band.low, band.high, color=COLOURS[0], alpha=0.22, lw=0, label=labels[1])
            axis.plot(band.times, band.middle, color=COLOURS[0], lw=1.4, label=labels[0])
            axis.axvline(band.times[0], color=COLOURS[0], lw=0.8, ls=":")
        known = item.units[np.isfinite(item.units)]
        top = max(
            float(np.quantile(known, 0.995)) if len(known) else 1.0, *(float(b.high.max()) for b in item.bands), 1
        )
        axis.set_ylim(0, 1.15 * top)
        axis.set_ylabel("units")
        axis.legend(frameon=False, fontsize=8, loc="upper left", ncols=4)
        return svg(figure)
