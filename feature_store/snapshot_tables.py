"""The tables of a snapshot: their columns, and rows of them as Arrow tables of a bearable size. No files here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import unquote

import msgspec
import numpy as np

from feature_store.chunks import FREQ_LETTERS, SOURCE_LETTERS, ChunkTexts, unpack_chunks
from feature_store.features import FEATURES, BucketRows
from feature_store.layout import ForecastSummary

_SERIES_AT_ONCE = 500  # a row group of `sums` holds all rows of so many
_ROWS_AT_ONCE = 50_000
_SUMMARY_FIELDS = tuple(info.name for info in msgspec.structs.fields(ForecastSummary))


def product_of(series_id: str) -> str:
    """The product of a series; see events.item_id_of."""
    return unquote(series_id.partition("@")[0])


ITEM_COLUMNS = {
    "item_id": "string",
    "product_id": "string",
    "location_id": "string",
    "first_event_ms": "int64",
    "last_event_ms": "int64",
}
PRODUCT_COLUMNS = {"product_id": "string", "state": "string"}
DIRTY_COLUMNS = {"freq": "string", "item_id": "string", "mark": "int64"}
FORECAST_COLUMNS = {
    "freq": "string",
    "item_id": "string",
    **dict.fromkeys(_SUMMARY_FIELDS, "list"),
    **dict.fromkeys(("forecast_id", "model_name", "model_version"), "string"),
    **dict.fromkeys(("revision", "running_bucket", "cutoff", "issued_at"), "int64"),
    "degraded": "bool",
}
CALIBRATION_COLUMNS = {"freq": "string", "item_id": "string", "state": "string"}
SCORE_COLUMNS = CALIBRATION_COLUMNS
ALERT_LEVEL_COLUMNS = {"freq": "string", "name": "string", "state": "string"}
ACCURACY_COLUMNS = {"freq": "string", "row": "string", "sums": "string"}
SENT_COLUMNS = {"freq": "string", "window": "string", "sent": "string"}
SEGMENT_COLUMNS = {"freq": "string", "time_zone": "string", "state": "string"}
ID_COLUMNS = {"source": "string", "generation": "int64", "event_id": "string"}
SUMS_COLUMNS = {
    "series_id": "string",
    "product_id": "string",
    "location_id": "string",
    "freq": "string",
    "bucket": "int64",
    **{feature.name: "int64" for feature in FEATURES},
}
CALENDAR_COLUMNS = {"key": "binary", "value": "binary", "timestamp_ms": "int64"}
COLUMNS = {
    "sums": SUMS_COLUMNS,
    "items": ITEM_COLUMNS,
    "products": PRODUCT_COLUMNS,
    "dirty": DIRTY_COLUMNS,
    "forecasts": FORECAST_COLUMNS,
    "calibration": CALIBRATION_COLUMNS,
    "segments": SEGMENT_COLUMNS,
    "scores": SCORE_COLUMNS,
    "challenges": SCORE_COLUMNS,
    "alerts": CALIBRATION_COLUMNS,
    "alert_levels": ALERT_LEVEL_COLUMNS,
    "accuracy": ACCURACY_COLUMNS,
    "accuracy_sent": SENT_COLUMNS,
    "event_ids": ID_COLUMNS,
}


def texts(by_freq: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, str, str]]:
    return ((freq, name, value.decode()) for freq, named in by_freq.items() for name, value in named.items())


def schema_of(columns: Mapping[str, str]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - a worker needs none

    kinds = {
        "string": pa.string(),
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "binary": pa.binary(),
        "list": pa.list_(pa.float64()),
    }
    return pa.schema([(name, kinds[kind]) for name, kind in columns.items()])


def row_tables(columns: Mapping[str, str], rows: Any) -> Iterator[Any]:
    """Rows as tables of a bearable size."""
    import pyarrow as pa  # noqa: PLC0415 - a worker needs none

    schema = schema_of(columns)
    for _, some in groupby(enumerate(rows), key=lambda numbered: numbered[0] // _ROWS_AT_ONCE):
        parts = zip(*(row for _, row in some), strict=True)
        yield pa.table([pa.array(part, field.type) for part, field in zip(parts, schema, strict=True)], schema=schema)


def sums_tables(sums: Mapping[str, Sequence[bytes]]) -> Iterator[Any]:
    """One row a series, frequency and bucket, from the chunks of chunks.py."""
    import pyarrow as pa  # noqa: PLC0415 - a worker needs none

    names = sorted(sums)
    for start in range(0, len(names), _SERIES_AT_ONCE):
        some = names[start : start + _SERIES_AT_ONCE]
        parts = [(freq, _rows_of(freq, [sums[name] for name in some])) for freq in FREQ_LETTERS]
        item = np.concatenate([rows.item for _, rows in parts])
        freq = np.repeat([freq for freq, _ in parts], [len(rows.item) for _, rows in parts])
        bucket = np.concatenate([rows.bucket for _, rows in parts])
        values = np.concatenate([rows.values for _, rows in parts])
        products = np.array([product_of(name) for name in some], dtype=object)
        locations = np.array([unquote(name.partition("@")[2]) for name in some], dtype=object)
        series = np.array(some, dtype=object)
        columns = [series[item], products[item], locations[item], freq.astype(object), bucket, *values.T]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema_of(SUMS_COLUMNS), strict=True)]
        yield pa.table(arrays, schema=schema_of(SUMS_COLUMNS))


def _rows_of(freq: str, hashes: Sequence[Sequence[bytes]]) -> BucketRows:
    """All rows of some series at one frequency, added up by bucket, sorted by series and bucket."""
    by_source = {}
    for source, letter in SOURCE_LETTERS.items():
        prefix = (FREQ_LETTERS[freq] + letter).encode()
        found = [
            (i, int(field[2:]), text)
            for i, parts in enumerate(hashes)
            for field, text in zip(parts[::2], parts[1::2], strict=True)
            if field.startswith(prefix)
        ]
        by_source[source] = ChunkTexts(
            np.array([i for i, _, _ in found], dtype=np.int64),
            np.array([number for _, number, _ in found], dtype=np.int64),
            [text for _, _, text in found],
        )
    rows = unpack_chunks(freq, by_source)
    if not len(rows.item):
        return rows
    order = np.lexsort((rows.bucket, rows.item))
    item, bucket = rows.item[order], rows.bucket[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(item) != 0) | (np.diff(bucket) != 0)])
    return BucketRows(item[starts], bucket[starts], np.add.reduceat(rows.values[order], starts, axis=0))
