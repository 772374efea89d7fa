"""How the plots of all reports look, and how a figure becomes part of a page."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#475569")
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "shelfcast",  # the same report gives the same bytes
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.7,
}
_SIZE = re.compile(r' (?:width|height)="[0-9.]+pt"')
STEP_NAMES = {"1h": "hour", "1d": "day", "1w": "week"}


def svg(figure: Figure) -> str:
    """The figure as an element of a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    # The page decides how wide a plot is.
    return _SIZE.sub("", text[text.index("<svg") :], count=2)


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A figure with `count` plots side by side, in inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False)[0]
        return figure, list(axes)
