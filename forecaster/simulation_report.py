"""report.html of a simulation: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from forecaster.evaluation_summary import number
from forecaster.plot_style import COLOURS
from forecaster.simulation_plots import cost_by_service, cost_parts
from forecaster.stock_comparison import Found, Question

_TEMPLATE = Path(__file__).with_name("simulation_report.html.j2")
_COLUMNS = (
    ("cost", "cost a day"),
    ("holding", "holding"),
    ("shortage", "shortage"),
    ("ordering", "ordering"),
    ("mean_stock", "stock"),
    ("lost_units", "short"),
    ("turns", "turns"),
    ("orders", "orders"),
)


def render_report(question: Question, found: Mapping[str, Found], summary: Mapping[str, Any]) -> str:
    """The page. `summary`: of `stock_comparison.summarise`, with a headline."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.lstrip_blocks = True
    environment.filters |= {"number": number, "percent": lambda share: "–" if share is None else f"{share:.2%}"}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        summary=summary,
        service="fill rate" if question.service == "fill_rate" else "share of cycles without shortage",
        columns=_COLUMNS,
        colours={name: COLOURS[n % len(COLOURS)] for n, name in enumerate(found)},
        curves=cost_by_service(question, found),
        parts=cost_parts(found),
    )
