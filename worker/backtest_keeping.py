"""Forecasts of a backtest in Parquet, and how two variants' differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forecaster.contract import QUANTILE_LEVELS
from worker.backtest_collector import ForecastBatch

_LEVELS = {name: QUANTILE_LEVELS.index(level) for name, level in (("q10", 0.1), ("q50", 0.5), ("q90", 0.9))}
_UNITS = pa.list_(pa.field("element", pa.float32(), nullable=False))
FORECAST_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("freq", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("cutoff_ms", pa.int64(), nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        *(pa.field(name, _UNITS, nullable=False) for name in ("mean", *_LEVELS)),  # units by step
    ]
)
_ROWS_A_GROUP = 16_384


class ForecastFile:
    """An evaluator that writes forecasts down: Parquet (zstd) of FORECAST_SCHEMA."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = pq.ParquetWriter(path, FORECAST_SCHEMA, compression="zstd", compression_level=1)
        self._batches: list[Any] = []
        self._rows = 0

    def take(self, batch: ForecastBatch) -> None:
        """Write a batch, or keep it until there is enough for a row group."""
        rows = len(batch.items)
        quantiles = [batch.outputs.quantiles[:, :, level] for level in _LEVELS.values()]
        columns = [
            pa.array([item.item_id for item in batch.items]).dictionary_encode(),
            pa.array([batch.freq] * rows).dictionary_encode(),
            pa.array(batch.cutoff_ms),
            pa.array(batch.revisions, type=pa.int32()),
            *(_lists(values) for values in (batch.outputs.mean, *quantiles)),
        ]
        self._batches.append(pa.Table.from_arrays(columns, schema=FORECAST_SCHEMA))
        self._rows += rows
        if self._rows >= _ROWS_A_GROUP:
            self._write()

    def result(self) -> str:
        """Name of the file, which is complete then."""
        self._write()
        self._file.close()
        return self._path.name

    def _write(self) -> None:
        if self._batches:
            self._file.write_table(pa.concat_tables(self._batches).unify_dictionaries())
        self._batches, self._rows = [], 0


def _lists(values: NDArray[np.float32]) -> Any:
    rows, steps = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(steps))
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).ravel()), type=_UNITS)
