"""Forecasts as a file: one row an item and step, Parquet or CSV. No torch.

item_id       as in the series
bucket_start  `1d` and `1w`: the local date on which the bucket begins (a week's by the weekday that the series name
              their weeks with); `1h`: that instant
step          1 = the first bucket after the cutoff
mean          of the bucket's units
q0.005 …      the quantiles, one column a level of `contract.QUANTILE_LEVELS`, ascending in each row
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from feature_store.calendar_time import FIXED_MS
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import ModelOutputs
from forecaster.rolling_origins import Forecasts
from forecaster.series import SeriesTable

QUANTILE_COLUMNS: tuple[str, ...] = tuple(f"q{level:g}" for level in QUANTILE_LEVELS)
_MONDAY = -3  # of week 0, in days since 1970-01-01


def bucket_dates(table: SeriesTable, bucket: NDArray[np.int64]) -> NDArray[np.int64]:
    """What names buckets in files: days since 1970-01-01 (`1d`, `1w`) or milliseconds UTC (`1h`), elementwise."""
    if table.freq in FIXED_MS:
        return bucket * FIXED_MS[table.freq]
    return bucket if table.freq == "1d" else bucket * 7 + _MONDAY + table.week_begins_on


def refuse_ending(path: Path) -> None:
    """Raise ValueError where a path does not say which kind of file it is to be."""
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise ValueError(f"{path}: forecasts are written to a file that ends in .parquet or .csv")


class ForecastFile:
    """A file of forecasts, written block by block and put in its place when it is whole.

    Raises:
        ValueError: the path ends in neither .parquet nor .csv.
        OSError: it can't be written.
    """

    def __init__(self, path: Path, table: SeriesTable) -> None:
        refuse_ending(path)
        self._path, self._table = path, table
        self._starts = pa.timestamp("ms", tz="UTC") if table.freq in FIXED_MS else pa.date32()
        numbers = [pa.field(name, pa.float32()) for name in ("mean", *QUANTILE_COLUMNS)]
        self.schema = pa.schema(
            [
                pa.field("item_id", pa.string()),
                pa.field("bucket_start", self._starts),
                pa.field("step", pa.int16()),
                *numbers,
            ]
        )
        self._partial = path.with_name(f".{path.name}.partial")
        self._writer: Any = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.suffix.lower() == ".csv":
            self._writer = csv.CSVWriter(str(self._partial), self.schema)
        else:
            self._writer = pq.ParquetWriter(self._partial, self.schema, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def write(self, rows: NDArray[np.int64], running: int, outputs: Forecasts | ModelOutputs) -> None:
        """Forecasts of the series `rows`, whose first step is the bucket `running`."""
        items, steps = outputs.mean.shape
        named = pa.array([self._table.item_ids[row] for row in rows.tolist()], pa.string())
        starts = bucket_dates(self._table, running + np.arange(steps))
        as_numbers = pa.array(np.tile(starts, items)).cast(pa.int64() if self._table.freq in FIXED_MS else pa.int32())
        columns = [
            named.take(pa.array(np.repeat(np.arange(items), steps))),
            as_numbers.cast(self._starts),
            pa.array(np.tile(np.arange(1, steps + 1, dtype=np.int16), items)),
            pa.array(outputs.mean.ravel()),
            *(pa.array(outputs.quantiles[:, :, level].ravel()) for level in range(len(QUANTILE_LEVELS))),
        ]
        self._writer.write(pa.Table.from_arrays(columns, schema=self.schema))
