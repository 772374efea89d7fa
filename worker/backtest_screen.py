"""What a backtest prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

MEASURES: dict[str, str] = {
    "wql": "WQL",
    "wape": "WAPE",
    "rmse": "RMSE",
    "bias": "bias",
    "mase": "MASE",
    "coverage_50": "in 50 %",
    "coverage_80": "in 80 %",
    "coverage_95": "in 95 %",
}


def steps_text(row: Mapping[str, Any]) -> str:
    """Which steps a row of an accuracy table is of."""
    first, last = row["first_step"], row["last_step"]
    return str(first) if first == last else f"{first}–{last}"


def number_text(value: float | None) -> str:
    """A measure in a table."""
    return "–" if value is None else f"{value:.3f}"


def accuracy_rows(summary: Mapping[str, Any], kind: str = "all") -> list[dict[str, Any]]:
    """Rows of all variants of one kind of forecast, those to be compared next to each other."""
    rows = [
        row | {"label": variant["label"]}
        for variant in summary["variants"]
        for row in variant["accuracy"]
        if row["kind"] == kind
    ]
    return sorted(rows, key=lambda row: (row["freq"], row["last_step"] - row["first_step"] + 1, row["first_step"]))


def accuracy_table(summary: Mapping[str, Any]) -> Table:
    """Scores as a table, one line a variant, frequency and group of steps."""
    # Fits into 80 columns: a number that is cut off says nothing.
    title = "accuracy by horizon; lower WQL and WAPE are better; share of outcomes in 50, 80, 95 % intervals"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("freq", "steps", ""):
        table.add_column(column, no_wrap=True)
    for column in MEASURES.values():
        table.add_column(column.removeprefix("in "), justify="right", no_wrap=True)
    rows = accuracy_rows(summary)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        last = following is None or (following["freq"], steps_text(following)) != (row["freq"], steps_text(row))
        table.add_row(
            row["freq"], steps_text(row), row["label"], *(number_text(row[m]) for m in MEASURES), end_section=last
        )
    return table
