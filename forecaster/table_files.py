"""Tables of past sales as series: long Parquet or CSV files, read into a SeriesTable. No torch.

    series   item_id, bucket_start, units and any more columns, one row an item and bucket, in any order
    future   item_id, bucket_start and what is known ahead; without item_id a row holds for every item
    static   item_id, category, brand, title, description, launch_time and any more texts, one row an item

`bucket_start` is a date, a timestamp (without a zone: local time of `time_zone`) or int64 milliseconds UTC. These
columns of numbers mean the same as in a worker: unit_price, promotion, open, event (0 to 1, or a name),
available_fraction, returned_units, order_lines, revenue, views, add_to_carts, review_count, rating_sum; `rating` is a
bucket's mean and becomes rating_sum; `one_off` marks rows for cleaning. Every other column of numbers is a covariate,
for models that were trained on it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar, UnknownTimeZoneError, bucket_of, bucket_start_ms, local_to_utc_ms
from feature_store.known_future import KNOWN_CHANNELS
from forecaster.contract import PAST_CHANNELS, WINDOWS, Covariates
from forecaster.inputs import hash_code
from forecaster.series import SeriesTable
from forecaster.series_cells import (
    ONLY_PAST,
    Layout,
    add_rating_sum,
    carry_forward,
    fill,
    is_covariate,
    kept_names,
    lay_out,
    tell,
)
from forecaster.table_columns import (
    ITEM,
    TIME,
    BucketReader,
    ItemCodes,
    LongTable,
    SeriesFileError,
    read_rows,
    times_ms,
)

__all__ = ["Layout", "SeriesFileError", "covariates_of", "future_columns", "read_series"]

Integers = NDArray[np.int64]
_MEANT = (*PAST_CHANNELS, *KNOWN_CHANNELS[:4], "available_fraction", "rating", "one_off")


class _Items(NamedTuple):
    """What a static table says of each item."""

    launch: Integers  # bucket; below 0 = not told
    texts: dict[str, tuple[str, ...]]  # "" = not told


def read_series(  # noqa: PLR0913 - each argument is a file or a way to read it
    series: Path,
    freq: str,
    time_zone: str = "UTC",
    *,
    static: Path | None = None,
    future: Path | None = None,
    columns: Mapping[str, str] | None = None,
    layout: Layout | None = None,
) -> SeriesTable:
    """The series of a long table; see above for the files.

    An item begins with its first bucket with units above 0, or with its `launch_time`; zeros before it are left out.
    From there on a bucket without a row, up to the last bucket of the whole table, has 0 units and 0 of all that is
    counted (or, with layout.absent "missing", nobody knows). Units that are null are not known. A price holds until
    another is told. Weeks begin on Monday; other weekdays are taken for the week that holds the day, if all rows share
    it.

    Args:
        freq: a key of `contract.WINDOWS`.
        columns: the file's name of a column by ours, where they differ: {"units": "qty"}.

    Raises:
        SeriesFileError: a file can't be read, or holds something that can't be; names the place and the remedy.
    """
    columns, layout = columns or {}, layout or Layout()
    try:
        ShopCalendar(time_zone)
    except UnknownTimeZoneError as error:
        raise SeriesFileError(str(error)) from error
    if freq not in WINDOWS:
        raise SeriesFileError(f"series have one of the frequencies {', '.join(WINDOWS)}, not {freq}")
    files = {path: LongTable(path, columns) for path in (series, future) if path is not None}
    if static is not None:
        files[static] = LongTable(static, columns, (ITEM, *_STATIC_TEXTS))
    _refuse_unknown(columns, files)
    codes, buckets = ItemCodes(), BucketReader(freq, time_zone)
    return _read(files, (series, future, static), _Reading(freq, time_zone, codes, buckets, layout))


class _Reading(NamedTuple):
    freq: str
    time_zone: str
    codes: ItemCodes
    buckets: BucketReader
    layout: Layout

    def describe(self, item: int, bucket: int) -> str:
        """A row, as a person would name it."""
        start = np.array([bucket], dtype=np.int64)
        if self.freq == "1w":
            start = start * 7 - 3 + (self.buckets.weekday or 0)
        day_ms = bucket_start_ms("1h" if self.freq == "1h" else "1d", start, self.time_zone)
        if self.freq == "1h":
            when = f"{dt.datetime.fromtimestamp(int(day_ms[0]) / 1000, dt.UTC):%Y-%m-%d %H:%M} UTC"
        else:
            when = str(dt.date(1970, 1, 1) + dt.timedelta(days=int(start[0])))
        return f"{self.codes.names[item]} at {when}" if item >= 0 else when


def _read(
    files: Mapping[Path, LongTable], paths: tuple[Path, Path | None, Path | None], reading: _Reading
) -> SeriesTable:
    series, future, static = paths
    table = files[series]
    table.need(ITEM, TIME, "units")
    _refuse_texts(table)
    rows = read_rows(table, kept_names(table.numbers()), reading.codes, reading.buckets)
    names = reading.codes.names
    told = None
    if future is not None:
        files[future].need(TIME)
        _refuse_texts(files[future])
        ahead_names = _known_ahead(files[future])
        told = read_rows(files[future], ahead_names, reading.codes, reading.buckets, grow=False)
        if not len(told.bucket) and ITEM in files[future].columns:
            raise SeriesFileError(f"{future} tells of none of the items in {series}: are these the same {ITEM}s?")
    about = _Items(np.full(len(names), -1, dtype=np.int64), {})
    if static is not None:
        about = _static(files[static], names, reading)
    ahead = int(told.bucket.max()) + 1 if told is not None and len(told.bucket) else 0
    try:
        spans = lay_out(rows, len(names), about.launch, ahead, reading.layout.horizon)
        cells = fill(rows, spans, reading.layout.absent, reading.describe)
    except ValueError as error:
        raise SeriesFileError(f"{series} {error}{_hint(reading)}") from error
    if told is not None:
        try:
            tell(cells, told, spans, reading.describe)
        except SeriesFileError as error:
            raise SeriesFileError(f"{future} {error}") from error
    if "unit_price" in cells:
        carry_forward(cells["unit_price"], spans)
    add_rating_sum(cells)
    nobody = ("",) * len(names)
    return SeriesTable(
        freq=reading.freq,
        time_zone=reading.time_zone,
        item_ids=names,
        first_bucket=spans.first,
        offsets=spans.offsets,
        units=cells.pop("units"),
        columns=cells,
        category_code=_codes(about.texts.get("category", nobody)),
        brand_code=_codes(about.texts.get("brand", nobody)),
        launch_bucket=np.where(about.launch >= 0, about.launch, spans.first),
        texts=about.texts,
        week_begins_on=reading.buckets.weekday or 0,
    )


def _hint(reading: _Reading) -> str:
    if reading.freq == "1h" and reading.time_zone != "UTC":
        return f". Local hours of {reading.time_zone} come twice in autumn: give times with their zone, or in UTC"
    return ""


def _codes(names: Sequence[str]) -> Integers:
    return np.array([hash_code(name) for name in names], dtype=np.int64)


def _refuse_unknown(columns: Mapping[str, str], files: Mapping[Path, LongTable]) -> None:
    """Raise SeriesFileError where a named column is in no file."""
    for name, source in columns.items():
        if not any(c.source == source for table in files.values() for c in table.columns.values()):
            found = "; ".join(f"{path} has {', '.join(table.columns)}" for path, table in files.items())
            raise SeriesFileError(f"--column {name}={source}: there is no column {source}: {found}")


def _refuse_texts(table: LongTable) -> None:
    for column in table.columns.values():
        if column.name in _MEANT and column.name != "event" and not column.is_number:
            raise SeriesFileError(
                f"{table.path}: {column.source} holds {column.arrow_type}, and {column.name} is a number. Mend it, or "
                f"name another column with --column {column.name}=COLUMN"
            )


def _known_ahead(table: LongTable) -> list[str]:
    return [name for name in kept_names(table.numbers()) if name not in ONLY_PAST]


def future_columns(future: Path, columns: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Our names of what a table of the future tells ahead.

    Raises:
        SeriesFileError: the file can't be read.
    """
    return tuple(_known_ahead(LongTable(future, columns or {})))


def covariates_of(table: SeriesTable, known_ahead: Sequence[str] = ()) -> Covariates:
    """The table's channels beyond the contract's: known where the future is told of them too, else of the past. Sorted
    by name."""
    names = sorted(name for name in table.columns if is_covariate(name))
    known = tuple(name for name in names if name in known_ahead)
    return Covariates(tuple(name for name in names if name not in known), known)


_STATIC_TEXTS = ("category", "brand", "title", "description")


def _static(table: LongTable, items: tuple[str, ...], reading: _Reading) -> _Items:
    """A static table, in the order of `items`; it may tell of others, which are left out."""
    table.need(ITEM)
    place = {item: i for i, item in enumerate(items)}
    names = [name for name in dict.fromkeys((*_STATIC_TEXTS, *table.texts())) if name in table.columns]
    has_launch = "launch_time" in table.columns
    if "launch_time" in names:
        names.remove("launch_time")
    seen: set[int] = set()
    launch = np.full(len(items), -1, dtype=np.int64)
    texts = {name: [""] * len(items) for name in names}
    for row, batch in table.batches([ITEM, *names, *(["launch_time"] if has_launch else [])]):
        item_of = [place.get(str(item), -1) for item in batch[ITEM].to_pylist()]
        for number, item in enumerate(item_of):
            if item in seen:
                raise SeriesFileError(f"{table.path} row {row + number + 1}: {items[item]} has a row already: keep one")
            if item >= 0:
                seen.add(item)
        chosen = [(number, item) for number, item in enumerate(item_of) if item >= 0]
        for name in names:
            told = batch[name].to_pylist()
            for number, item in chosen:
                texts[name][item] = "" if told[number] is None else str(told[number])
        if has_launch:
            _launches(table.path, batch["launch_time"], reading, item_of, launch)
    return _Items(launch, {name: tuple(values) for name, values in texts.items()})


def _launches(path: Path, column: Any, reading: _Reading, item_of: Sequence[int], launch: Integers) -> None:
    known = np.array(column.is_valid().to_pylist(), dtype=np.bool_)
    local, ms = times_ms(path, "launch_time", column.drop_null())
    utc_ms = local_to_utc_ms(ms, reading.time_zone) if local else ms
    item = np.array(item_of, dtype=np.int64)[known]
    launch[item[item >= 0]] = bucket_of(reading.freq, utc_ms, reading.time_zone)[item >= 0]
