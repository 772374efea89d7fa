"""Small tables of series as files, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from forecaster.series import SeriesTable


def write_table(path: Path, **columns: Sequence[Any] | pa.Array) -> Path:
    """A file of the columns, Parquet or CSV by its ending."""
    table = pa.table(dict(columns))
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def cells_of(table: SeriesTable, item: str, name: str = "units") -> list[float]:
    """One series' values of a column, oldest first; NaN as None, so that lists compare."""
    row = table.item_ids.index(item)
    column = table.units if name == "units" else table.columns[name]
    values = column[table.offsets[row] : table.offsets[row + 1]]
    return [None if np.isnan(value) else round(float(value), 4) for value in values]  # type: ignore[misc]
