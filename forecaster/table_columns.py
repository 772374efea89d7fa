"""Columns of long tables (Parquet, CSV) as compact numpy: item codes, bucket numbers, float32 values. No torch.

Files are read batch by batch and each batch is made small at once, so that sixty million rows take two gigabytes and
not twenty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, parquet

from feature_store.calendar_time import DAY_MS, FIXED_MS, bucket_of, bucket_start_ms, local_to_utc_ms, week_of_day

_BATCH_ROWS = 1 << 20
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_LAST_DAY = 36_524  # calendar_time counts days from 1970 to 2070
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ITEM, TIME = "item_id", "bucket_start"

Codes = NDArray[np.int32]
Floats = NDArray[np.float32]


class SeriesFileError(ValueError):
    """A table can't be read, or says something that can't be; names the file, the place and the remedy."""


class Column(NamedTuple):
    """A column of a file: our name for it, the file's, its Arrow type."""

    name: str
    source: str
    arrow_type: Any

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers (or nothing at all); True and False are 1 and 0."""
        kind = _value_type(self.arrow_type)
        return bool(
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_decimal(kind)
            or pa.types.is_null(kind)
        )

    @property
    def is_text(self) -> bool:
        """Whether it holds texts."""
        kind = _value_type(self.arrow_type)
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _value_type(arrow_type: Any) -> Any:
    return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type


class LongTable:
    """A file, its columns under our names. `columns`: the file's name of a column by ours, where they differ."""

    def __init__(self, path: Path, columns: Mapping[str, str], texts: Iterable[str] = (ITEM,)) -> None:
        """
        `texts` names columns that hold text whatever they look like: an item's number may begin with zeros.

        Raises:
            SeriesFileError: the file can't be read.
        """
        self.path = path
        ending = next((s.lower() for s in reversed(path.suffixes) if s.lower() not in _COMPRESSED), "")
        if ending not in (".parquet", ".csv"):
            raise SeriesFileError(f"{path}: series are read from files that end in .parquet or .csv (.csv.gz)")
        self._whole: Any = None  # of a CSV file
        try:
            if ending == ".csv":
                kept = {columns.get(name, name): pa.dictionary(pa.int32(), pa.string()) for name in texts}
                self._whole = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=kept))
                schema = self._whole.schema
            else:
                schema = parquet.read_schema(path)
        except (OSError, pa.ArrowException) as error:
            raise SeriesFileError(f"{path} can't be read: {error}") from error
        self.columns = _named(schema, columns)

    def need(self, *names: str) -> None:
        """Raise SeriesFileError where the file lacks one of the columns."""
        for name in names:
            if name not in self.columns:
                found = ", ".join(column.source for column in self.columns.values())
                raise SeriesFileError(
                    f"{self.path} has no column {name}: its columns are {found}. Say which one it is with "
                    f"--column {name}=COLUMN"
                )

    def numbers(self) -> tuple[str, ...]:
        """Our names of its columns of numbers, and of `event` whatever it holds."""
        chosen = [c for c in self.columns.values() if c.name not in (ITEM, TIME)]
        return tuple(c.name for c in chosen if c.is_number or (c.name == "event" and c.is_text))

    def texts(self) -> tuple[str, ...]:
        """Our names of its columns of text."""
        return tuple(c.name for c in self.columns.values() if c.is_text and c.name not in (ITEM, TIME))

    def batches(self, names: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Some columns, some rows at a time: (number of the first row, Arrow arrays by our name).

        Raises:
            SeriesFileError: the file is damaged.
        """
        chosen = [self.columns[name] for name in names]
        sources = [column.source for column in chosen]
        row = 0
        try:
            for batch in self._batches(sources, [c.source for c in chosen if c.is_text]):
                yield row, {column.name: batch.column(column.source) for column in chosen}
                row += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise SeriesFileError(f"{self.path} can't be read: {error}") from error

    def _batches(self, sources: list[str], texts: list[str]) -> Iterator[Any]:
        if self._whole is not None:
            yield from self._whole.select(sources).to_batches(max_chunksize=_BATCH_ROWS)
            return
        with parquet.ParquetFile(self.path, read_dictionary=texts, memory_map=True) as file:
            yield from file.iter_batches(_BATCH_ROWS, columns=sources)


def _named(schema: Any, columns: Mapping[str, str]) -> dict[str, Column]:
    ours = {theirs: name for name, theirs in columns.items() if theirs in schema.names}
    taken = set(ours.values())
    out = {}
    for source, arrow_type in zip(schema.names, schema.types, strict=True):
        name = ours.get(source, source)
        if source in ours or name not in taken:  # a column that another one was named for is left out
            out[name] = Column(name, source, arrow_type)
    return out


def to_numpy(array: Any, arrow_type: Any) -> NDArray[Any]:
    """An Arrow array without nulls as numpy of its own memory."""
    # from_dlpack and not to_numpy: it needs no numpy inside pyarrow, whose newer versions refuse numpy 1.
    return np.array(np.from_dlpack(array.cast(arrow_type, safe=False)))


def to_floats(array: Any) -> Floats:
    """float32 of numbers or truth values; null is NaN. Of texts 1 where there is one that is not empty, else 0."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = pc.fill_null(pc.greater(pc.utf8_length(array), 0), False)
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    array = array.cast(pa.float32(), safe=False)
    if array.null_count:
        array = pc.fill_null(array, pa.scalar(float("nan"), pa.float32()))
    return np.asarray(to_numpy(array, pa.float32()), dtype=np.float32)


class ItemCodes:
    """Numbers items in the order in which they are first met."""

    def __init__(self) -> None:
        self._code: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The items, by code."""
        return tuple(self._code)

    def of(self, path: Path, first_row: int, column: Any, *, grow: bool = True) -> Codes:
        """Code of each row's item: int32 (row,); without `grow` items not met before are -1.

        Raises:
            SeriesFileError: a row names no item.
        """
        coded = column if pa.types.is_dictionary(column.type) else column.cast(pa.string()).dictionary_encode()
        if coded.null_count:
            row = first_row + pc.index(coded.is_null(), True).as_py()
            raise SeriesFileError(f"{path} row {row + 1}: {ITEM} is missing, and every row needs its item")
        index = to_numpy(coded.indices, pa.int32())
        names = [str(name) for name in coded.dictionary.to_pylist()]
        used = np.flatnonzero(np.bincount(index, minlength=len(names)))
        codes = np.full(len(names), -1, dtype=np.int32)
        for place in used.tolist():
            name = names[place]
            if not name:
                row = first_row + int(np.flatnonzero(index == place)[0])
                raise SeriesFileError(f"{path} row {row + 1}: {ITEM} is empty, and every row needs its item")
            codes[place] = self._code.setdefault(name, len(self._code)) if grow else self._code.get(name, -1)
        return np.asarray(codes[index], dtype=np.int32)


class BucketReader:
    """From a column of times to bucket numbers. A time is the start of a bucket of `freq`: dates and times without a
    zone are local ones of `time_zone`, times with a zone and whole numbers (milliseconds) are instants.

    A `1w` bucket begins on a Monday. Weeks that begin on another day are taken for the one that holds that day, if all
    rows share the weekday; `weekday` (Monday 0) then says which.
    """

    def __init__(self, freq: str, time_zone: str) -> None:
        self._freq, self._time_zone = freq, time_zone
        self.weekday: int | None = None

    def of(self, path: Path, first_row: int, column: Any) -> Codes:
        """Bucket number of each row: int32 (row,).

        Raises:
            SeriesFileError: a time is missing, is none, or starts no bucket.
        """
        if column.null_count:
            row = first_row + pc.index(column.is_null(), True).as_py()
            raise SeriesFileError(f"{path} row {row + 1}: {TIME} is missing, and every row needs its bucket")
        local, time_ms = times_ms(path, TIME, column)
        if self._freq in FIXED_MS:
            utc_ms = local_to_utc_ms(time_ms, self._time_zone) if local else time_ms
            bucket, rest = np.divmod(utc_ms, FIXED_MS[self._freq])
            day = utc_ms // DAY_MS
        elif local:
            day, rest = np.divmod(time_ms, DAY_MS)
            bucket = day
        else:
            day = bucket = bucket_of("1d", time_ms, self._time_zone)
            rest = time_ms - bucket_start_ms("1d", bucket, self._time_zone)
        self._refuse(path, first_row, column, rest != 0)
        outside = np.flatnonzero((day < 1) | (day > _LAST_DAY))
        if len(outside):
            told = column[int(outside[0])].as_py()
            raise SeriesFileError(f"{path} row {first_row + int(outside[0]) + 1}: {TIME} {told} is not in 1970 to 2069")
        if self._freq == "1w":
            self._one_weekday(path, first_row, column, day)
            bucket = week_of_day(day)
        return bucket.astype(np.int32)

    def _refuse(self, path: Path, first_row: int, column: Any, wrong: NDArray[np.bool_]) -> None:
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            start = "an hour (UTC)" if self._freq in FIXED_MS else f"a day in {self._time_zone}"
            raise SeriesFileError(
                f"{path} row {first_row + row + 1}: {TIME} {column[row].as_py()} is not the start of {start}. Round "
                f"times down to the bucket's start, or say with --freq and --time-zone which buckets these are"
            )

    def _one_weekday(self, path: Path, first_row: int, column: Any, day: NDArray[np.int64]) -> None:
        weekday = (day + 3) % 7  # 1970-01-01 was a Thursday
        if self.weekday is None and len(weekday):
            self.weekday = int(weekday[0])
        other = np.flatnonzero(weekday != self.weekday)
        if len(other):
            row, mine = int(other[0]), _WEEKDAYS[int(weekday[int(other[0])])]
            raise SeriesFileError(
                f"{path} row {first_row + row + 1}: {TIME} {column[row].as_py()} is a {mine}, earlier weeks begin "
                f"on a {_WEEKDAYS[self.weekday or 0]}. All weeks begin on the same weekday, best on Monday"
            )


def times_ms(path: Path, name: str, column: Any) -> tuple[bool, NDArray[np.int64]]:
    """Whether a column holds local times, and its times: milliseconds since the epoch, int64 (row,). No nulls.

    Raises:
        SeriesFileError: a value is no time.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    try:
        if pa.types.is_integer(kind):
            return False, to_numpy(column, pa.int64())
        if pa.types.is_date32(kind):
            return True, to_numpy(column.cast(pa.int32()), pa.int64()) * DAY_MS
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            try:
                column = column.cast(pa.timestamp("ms"))
            except pa.ArrowInvalid:
                column = column.cast(pa.timestamp("ms", tz="UTC"))
        elif pa.types.is_date(kind):
            column = column.cast(pa.timestamp("ms"))
        if not pa.types.is_timestamp(column.type):
            raise SeriesFileError(
                f"{path}: {name} holds {kind}; dates, timestamps, or whole numbers of milliseconds since 1970 are read"
            )
        zone = column.type.tz
        return zone is None, to_numpy(column.cast(pa.timestamp("ms", tz=zone), safe=False), pa.int64())
    except pa.ArrowInvalid as error:
        raise SeriesFileError(f"{path}: {name} holds something that is no time ({error})") from error


class Rows(NamedTuple):
    """Rows of a long table. Without an item column `item` is None: the rows hold for all items."""

    item: Codes | None
    bucket: Codes
    values: dict[str, Floats]


def read_rows(
    table: LongTable, names: Iterable[str], items: ItemCodes, buckets: BucketReader, *, grow: bool = True
) -> Rows:
    """The rows of a file with the values of `names`. Without `grow` rows of items not met before are left out.

    Raises:
        SeriesFileError: see above.
    """
    names = list(names)
    has_item = ITEM in table.columns
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (ITEM, TIME, *names)}
    for row, batch in table.batches([*([ITEM] if has_item else []), TIME, *names]):
        bucket = buckets.of(table.path, row, batch[TIME])
        kept: Any = slice(None)
        if has_item:
            item = items.of(table.path, row, batch[ITEM], grow=grow)
            if not grow and (item < 0).any():
                kept = item >= 0
            parts[ITEM].append(item[kept])
        parts[TIME].append(bucket[kept])
        for name in names:
            parts[name].append(to_floats(batch[name])[kept])
    # One column after the other, so that only one is held twice.
    joined = {name: _joined(parts.pop(name), np.float32) for name in names}
    item_of = _joined(parts.pop(ITEM), np.int32) if has_item else None
    return Rows(item_of, _joined(parts.pop(TIME), np.int32), joined)


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)
