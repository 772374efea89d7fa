"""Plots of a simulation's report, as SVG."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np

from forecaster.plot_style import COLOURS, STYLE, panels, svg
from forecaster.stock_comparison import Found, Question

_LOWEST_SERVICE = 0.75


def cost_by_service(question: Question, found: Mapping[str, Found]) -> str:
    """Total cost against both measures of service, a curve a contestant over its safety factors; a dot where the factor
    was tuned to."""
    with mpl.rc_context(STYLE):
        figure, axes = panels(2, 10.4, 4.2)
        top = _highest_shown(found)
        for axis, measure, title in zip(
            axes, ("cycle_service", "fill_rate"), ("cycles without shortage", "units served from stock"), strict=True
        ):
            for n, (name, one) in enumerate(found.items()):
                colour = COLOURS[n % len(COLOURS)]
                x, tuned = getattr(one.judged, measure), float(getattr(one.tuned, measure)[0])
                if len(one.factors) > 1:
                    axis.plot(100 * x, one.judged.cost, color=colour, lw=1.6 if n else 2.4, label=name, zorder=9 - n)
                    label = None
                else:
                    label = name
                axis.plot([100 * tuned], one.tuned.cost, "o", color=colour, ms=6, label=label, zorder=10)
            if measure == question.service:
                axis.axvline(100 * question.target, color="#94a3b8", lw=0.9, ls=":")
            axis.set(xlim=(100 * _LOWEST_SERVICE, 100.4), ylim=(0, top), xlabel=f"{title}, %", ylabel="cost a day")
        axes[0].legend(frameon=False, fontsize=8, loc="upper left")
        return svg(figure)


def _highest_shown(found: Mapping[str, Found]) -> float:
    """Where the plots end: above the dearest of the tuned costs. Curves go on upwards at both ends."""
    return 1.6 * max(float(one.tuned.cost[0]) for one in found.values())


def cost_parts(found: Mapping[str, Found]) -> str:
    """What the tuned policies cost, by kind."""
    with mpl.rc_context(STYLE):
        figure, (axis,) = panels(1, 10.4, 0.6 + 0.42 * len(found))
        names = list(found)[::-1]
        left = np.zeros(len(names))
        for part, colour in (("holding", "#2563eb"), ("shortage", "#dc2626"), ("ordering", "#94a3b8")):
            width = np.array([float(getattr(found[name].tuned, part)[0]) for name in names])
            axis.barh(names, width, left=left, color=colour, height=0.62, label=part)
            left += width
        axis.set_xlabel("cost a day")
        axis.set_axisbelow(True)
        axis.grid(axis="y", visible=False)
        axis.legend(frameon=False, fontsize=8, loc="lower right", ncols=3)
        return svg(figure)
