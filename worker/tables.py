"""Tables from files: Parquet, CSV, JSON Lines; and their times."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, json, parquet

from feature_store.calendar_time import local_to_utc_ms
from worker.errors import TableError

_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_ENDINGS = (".parquet", ".csv", ".jsonl", ".ndjson")


def read_file(path: Path, texts: Collection[str] = (), columns: Collection[str] | None = None) -> Any:
    """pyarrow.Table of a file, which its ending says how to read (.csv.gz and the like also).

    `texts` names columns that hold text whatever they look like: a product's number may begin with zeros. Of a Parquet
    file only `columns` are read, those that it has.

    Raises:
        TableError: the file can't be read, or is of another kind; names the remedy.
    """
    ending = next((s.lower() for s in reversed(path.suffixes) if s.lower() not in _COMPRESSED), "")
    if ending not in _ENDINGS:
        raise TableError(f"{path}: tables are read from files that end in {', '.join(_ENDINGS)}")
    try:
        if ending == ".parquet":
            names = parquet.read_schema(path).names
            return parquet.read_table(path, columns=[n for n in names if columns is None or n in columns])
        if ending == ".csv":
            as_text = csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
            return csv.read_csv(path, convert_options=as_text)
        return json.read_json(path)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path} can't be read: {error}") from error


def read_table(path: Path, columns: Sequence[str], texts: Collection[str] = ()) -> Any:
    """pyarrow.Table of some columns of a file, as `read_file`.

    Raises:
        TableError: also when there is no such column.
    """
    table = read_file(path, texts, columns)
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise TableError(
            f"{path} has no column {', '.join(missing)}: its columns are {', '.join(read_file(path).column_names)}"
        )
    return table.select(list(columns))


def numbers(column: Any, arrow_type: Any) -> NDArray[Any]:
    """A column without nulls as numpy."""
    # from_dlpack and not to_numpy: it needs no numpy inside pyarrow, whose newer versions refuse numpy 1.
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.array(np.from_dlpack(array.cast(arrow_type, safe=False)))


def utc_ms(path: Path, name: str, column: Any, time_zone: str) -> NDArray[np.int64]:
    """Milliseconds since the epoch of a column of times: timestamps, dates and ISO texts, in `time_zone` unless they
    tell their own; whole numbers are milliseconds already.

    Raises:
        TableError: a value is missing, or is no time.
    """
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise TableError(f"{path} row {row + 1}: {name} is missing, and every event needs its time")
    kind = column.type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            try:
                column = column.cast(pa.timestamp("ms"))
            except pa.ArrowInvalid:
                column = column.cast(pa.timestamp("ms", tz="UTC"))
        elif pa.types.is_date(kind):
            column = column.cast(pa.timestamp("ms"))
        elif pa.types.is_integer(kind):
            return np.asarray(numbers(column, pa.int64()), dtype=np.int64)
        if not pa.types.is_timestamp(column.type):
            raise TableError(f"{path}: {name} holds {kind}, not times")
        ms = numbers(column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False), pa.int64())
    except pa.ArrowInvalid as error:
        raise TableError(f"{path}: {name} holds something that is no time ({error})") from error
    return ms if column.type.tz else local_to_utc_ms(ms, time_zone)
