"""Plots of a backtest's report, as SVG texts to stand in an HTML page."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import bucket_start_ms
from forecaster.plot_style import COLOURS, STEP_NAMES, STYLE, panels, svg
from worker.backtest_scores import Band, Sample


def error_by_step(variants: Sequence[Mapping[str, Any]]) -> str:
    """Quantile loss by step: a panel a frequency, a line a variant."""
    freqs = _freqs(variants)
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(freqs), 4.6 * max(len(freqs), 1.4), 3.0)
        for axis, freq in zip(axes, freqs, strict=True):
            for n, variant in enumerate(variants):
                values = variant["by_step"].get(freq, {}).get("loss")
                if values:
                    known = [np.nan if value is None else value for value in values]
                    steps = np.arange(1, len(known) + 1)
                    axis.plot(steps, known, color=_colour(n), label=variant["label"], marker="o", ms=2.5, lw=1.4)
            axis.set_ylim(bottom=0)
            axis.set_xlabel(f"{STEP_NAMES[freq]} of the forecast (1 = the one running)")
            axis.set_ylabel("loss / mean units")
            axis.set_title(freq, loc="left", fontweight="bold", color="#0f172a")
        _legend(axes, variants)
        return svg(figure)


def calibration(variants: Sequence[Mapping[str, Any]]) -> str:
    """Shares of targets below and not above each quantile, against the share promised."""
    freqs = _freqs(variants)
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(freqs), 3.7 * max(len(freqs), 1.4), 3.5)
        for axis, freq in zip(axes, freqs, strict=True):
            axis.plot([0, 1], [0, 1], color="#94a3b8", lw=1, ls="--")
            for n, variant in enumerate(variants):
                shares = variant["calibration"].get(freq)
                if shares and None not in shares["below"]:
                    levels, colour = variant["quantile_levels"], _colour(n)
                    axis.fill_between(levels, shares["below"], shares["not_above"], color=colour, alpha=0.15, lw=0)
                    middle = np.mean([shares["below"], shares["not_above"]], axis=0)
                    axis.plot(levels, middle, color=colour, label=variant["label"], marker="o", ms=3, lw=1.4)
            axis.set_xlim(0, 1)
            axis.set_ylim(0, 1.02)
            axis.set_aspect("equal")
            axis.set_xlabel("quantile level")
            axis.set_ylabel("share of outcomes below it")
            axis.set_title(freq, loc="left", fontweight="bold", color="#0f172a")
        _legend(axes, variants)
        return svg(figure)


def item_history(sample: Sample) -> str:
    """What was sold of one item, and what some forecasts said of it: medians and 80 % intervals."""
    with mpl.rc_context(STYLE):
        figure, (axis,) = panels(1, 9.4, 2.6)
        times = _times(sample, sample.first, len(sample.units))
        axis.step(times, sample.units, where="mid", color="#334155", lw=1.1, label="sold")
        for n, band in enumerate(sample.bands):
            _draw_band(axis, sample, band, COLOURS[0], labelled=n == 0)
        top = max(float(np.quantile(sample.units, 0.995)), *(float(band.high.max()) for band in sample.bands), 1.0)
        axis.set_ylim(0, 1.15 * top)
        axis.set_ylabel("units")
        axis.legend(frameon=False, fontsize=8, loc="upper left", ncols=4)
        return svg(figure)


def _draw_band(axis: Any, sample: Sample, band: Band, colour: str, *, labelled: bool) -> None:
    times = _times(sample, band.running, len(band.middle))
    axis.fill_between(
        times, band.low, band.high, color=colour, alpha=0.2, lw=0, label="80 % of outcomes" if labelled else None
    )
    axis.plot(times, band.middle, color=colour, lw=1.4, label="forecast, median" if labelled else None)
    axis.axvline(times[0], color=colour, lw=0.8, ls=":", label="when it was made" if labelled else None)


def _times(sample: Sample, first: int, buckets: int) -> list[dt.datetime]:
    starts: NDArray[np.int64] = bucket_start_ms(sample.freq, first + np.arange(buckets), sample.time_zone)
    return [dt.datetime.fromtimestamp(ms / 1000, dt.UTC) for ms in starts.tolist()]


def _freqs(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({freq for variant in variants for freq in variant["by_step"]})


def _legend(axes: Sequence[Any], variants: Sequence[Mapping[str, Any]]) -> None:
    if len(variants) > 1 and axes:
        axes[0].legend(frameon=False, fontsize=8)


def _colour(n: int) -> str:
    return COLOURS[n % len(COLOURS)]
