"""Long tables as series: what each row, gap, weekday and null becomes. Expected values are worked by hand."""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store.calendar_time import bucket_of
from forecaster.contract import Covariates
from forecaster.inputs import hash_code
from forecaster.table_files import Layout, SeriesFileError, covariates_of, future_columns, read_series
from tests.forecaster.tables import cells_of, write_table

D = [dt.date(2024, 3, 4) + dt.timedelta(days=n) for n in range(20)]  # the first is a Monday
DAY = [(d - dt.date(1970, 1, 1)).days for d in D]
NAN = float("nan")


def small(path: Path, **more: Any) -> Path:
    """Two items; a: 2, (no row), 3, 1; b: begins two days later."""
    columns = {
        "item_id": ["a", "b", "a", "a", "b", "b"],
        "bucket_start": [D[0], D[1], D[2], D[3], D[2], D[3]],
        "units": [2, 0, 3, 1, 5, 0],
    }
    return write_table(path, **(columns | more))


@pytest.mark.parametrize("name", ["series.parquet", "series.csv"])
def test_rows_become_cells_from_the_first_sale_to_the_tables_last_bucket(tmp_path: Path, name: str) -> None:
    table = read_series(small(tmp_path / name), "1d")
    assert table.item_ids == ("a", "b")
    assert table.first_bucket.tolist() == [DAY[0], DAY[2]]
    assert cells_of(table, "a") == [2, 0, 3, 1]
    assert cells_of(table, "b") == [5, 0]
    assert table.end_bucket.tolist() == [DAY[4], DAY[4]]
    assert table.launch_bucket.tolist() == table.first_bucket.tolist()


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pairs = list(itertools.product(["x", "y", "z"], range(12)))
    units = {pair: int(rng.integers(0, 4)) for pair in pairs}
    shuffled = [pairs[i] for i in rng.permutation(len(pairs))]
    tables = [
        read_series(
            write_table(
                tmp_path / f"{n}.parquet",
                item_id=[i for i, _ in order],
                bucket_start=[D[d] for _, d in order],
                units=[units[pair] for pair in order],
            ),
            "1d",
        )
        for n, order in enumerate((pairs, shuffled))
    ]
    for item in "xyz":
        own = [units[item, d] for d in range(12)]
        expected = own[next(d for d, u in enumerate(own) if u > 0) :]
        assert [cells_of(table, item) for table in tables] == [expected, expected]


def test_what_a_bucket_without_a_row_means_is_asked_for(tmp_path: Path) -> None:
    path = small(
        tmp_path / "s.parquet",
        unit_price=[4.0, 1.0, 5.0, None, 1.5, 1.5],
        views=[10, 1, None, 3, 2, 2],
        promotion=[True, False, False, True, False, False],
        available_fraction=[0.5, 1, 1, 1, 1, 1],
        temperature=[20.5, 1, 2, 3, 4, 5],
    )
    zero, missing = (read_series(path, "1d", layout=Layout(absent)) for absent in ("zero", "missing"))
    assert cells_of(zero, "a") == [2, 0, 3, 1]
    assert cells_of(missing, "a") == [2, None, 3, 1]
    # A price holds until another is told. Views of a row that does not tell them are not known.
    for table in (zero, missing):
        assert cells_of(table, "a", "unit_price") == [4, 4, 5, 5]
        assert cells_of(table, "a", "promotion") == [1, None, 0, 1]
        assert cells_of(table, "a", "available_fraction") == [0.5, 1, 1, 1]
        assert cells_of(table, "a", "temperature") == [20.5, None, 2, 3]
    assert cells_of(zero, "a", "views") == [10, 0, None, 3]
    assert cells_of(missing, "a", "views") == [10, None, None, 3]


def test_units_that_are_null_are_not_known(tmp_path: Path) -> None:
    path = small(tmp_path / "s.parquet", units=[2, 0, None, 1, 5, None])
    table = read_series(path, "1d")
    assert cells_of(table, "a") == [2, 0, None, 1]
    assert cells_of(table, "b") == [5, None]
    assert table.end_bucket.tolist() == [DAY[4], DAY[3]]


def test_an_item_that_never_sold_begins_with_its_first_row(tmp_path: Path) -> None:
    table = read_series(small(tmp_path / "s.parquet", units=[2, 0, 3, 1, 0, 0]), "1d")
    assert cells_of(table, "b") == [0, 0, 0]


@pytest.mark.parametrize(
    ("starts", "time_zone"),
    [
        (pa.array(D[:2]), "Europe/London"),
        (pa.array([dt.datetime.combine(d, dt.time()) for d in D[:2]]), "Europe/London"),
        (pa.array([f"{d}T00:00:00" for d in D[:2]]), "Europe/London"),
        # Midnight of 4 March 2024 in Berlin is 23:00 UTC of the day before.
        (pa.array([(day * 24 - 1) * 3_600_000 for day in DAY[:2]], pa.int64()), "Europe/Berlin"),
        (
            pa.array([dt.datetime.combine(d, dt.time(), dt.UTC) - dt.timedelta(hours=1) for d in D[:2]]),
            "Europe/Berlin",
        ),
    ],
    ids=["date", "local timestamp", "text", "milliseconds", "instant"],
)
def test_times_of_any_kind_are_the_same_days(tmp_path: Path, starts: pa.Array, time_zone: str) -> None:
    path = write_table(tmp_path / "s.parquet", item_id=["a", "a"], bucket_start=starts, units=[1, 2])
    table = read_series(path, "1d", time_zone)
    assert table.first_bucket.tolist() == [DAY[0]]
    assert cells_of(table, "a") == [1, 2]


def test_local_hours_are_hours_of_utc(tmp_path: Path) -> None:
    hours = [dt.datetime(2024, 7, 1, 9), dt.datetime(2024, 7, 1, 10)]
    path = write_table(tmp_path / "s.parquet", item_id=["a", "a"], bucket_start=hours, units=[1, 2])
    table = read_series(path, "1h", "Europe/London")
    utc_ms = np.array([int(dt.datetime(2024, 7, 1, 8, tzinfo=dt.UTC).timestamp()) * 1000])
    assert table.first_bucket.tolist() == bucket_of("1h", utc_ms, "UTC").tolist()


def test_an_hour_that_comes_twice_in_autumn_is_named_with_the_remedy(tmp_path: Path) -> None:
    hours = [dt.datetime(2024, 10, 27, 1), dt.datetime(2024, 10, 27, 1)]
    path = write_table(tmp_path / "s.parquet", item_id=["a", "a"], bucket_start=hours, units=[1, 2])
    with pytest.raises(SeriesFileError, match=r"a at 2024-10-27 00:00 UTC has a row already.*twice in autumn"):
        read_series(path, "1h", "Europe/London")


def test_weeks_that_begin_on_another_day_are_those_that_hold_it(tmp_path: Path) -> None:
    fridays = [dt.date(2024, 3, 8), dt.date(2024, 3, 15), dt.date(2024, 3, 29)]
    path = write_table(tmp_path / "s.parquet", item_id=["a"] * 3, bucket_start=fridays, units=[1, 2, 3])
    table = read_series(path, "1w")
    assert cells_of(table, "a") == [1, 2, 0, 3]
    assert table.first_bucket.tolist() == [(DAY[0] + 3) // 7]
    assert table.week_begins_on == 4
    mixed = write_table(tmp_path / "m.parquet", item_id=["a"] * 2, bucket_start=[D[0], D[8]], units=[1, 2])
    with pytest.raises(SeriesFileError, match=r"row 2: bucket_start 2024-03-12 is a Tuesday, .* begin on a Monday"):
        read_series(mixed, "1w")


@pytest.mark.parametrize(
    ("columns", "freq", "message"),
    [
        ({"bucket_start": [D[0], D[0], D[0], D[3], D[2], D[3]]}, "1d", "row 3: a at 2024-03-04 has a row already"),
        ({"bucket_start": [D[0], None, D[2], D[3], D[2], D[3]]}, "1d", "row 2: bucket_start is missing"),
        ({"bucket_start": [1, 2, 3, 4, 5, 6]}, "1d", "row 1: bucket_start 1 is not the start of a day in UTC"),
        ({"bucket_start": [dt.datetime(2024, 1, 1, 3, 30)] * 6}, "1h", "not the start of an hour"),
        ({"bucket_start": [dt.datetime(1, 1, 1)] * 6}, "1d", "not in 1970 to 2069"),
        ({"bucket_start": ["soon"] * 6}, "1d", "bucket_start holds something that is no time"),
        ({"bucket_start": [1.5] * 6}, "1d", "bucket_start holds double; dates, timestamps"),
        ({"item_id": ["a", None, "a", "a", "b", "b"]}, "1d", "row 2: item_id is missing"),
        ({"item_id": ["a", "", "a", "a", "b", "b"]}, "1d", "row 2: item_id is empty"),
        ({"units": ["many"] * 6}, "1d", "units holds string, and units is a number"),
        ({"units": [None] * 6}, "1d", "no row has units"),
        ({"promotion": ["yes"] * 6}, "1d", "promotion holds string"),
        ({}, "5m", "frequencies 1h, 1d, 1w, not 5m"),
    ],
)
def test_what_can_not_be_is_named_with_its_row(
    tmp_path: Path, columns: dict[str, Any], freq: str, message: str
) -> None:
    with pytest.raises(SeriesFileError, match=message):
        read_series(small(tmp_path / "s.parquet", **columns), freq)


def test_files_and_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "s.parquet", sku=["a"], bucket_start=[D[0]], units=[1])
    with pytest.raises(SeriesFileError, match=r"no column item_id: its columns are sku, .*--column item_id=COLUMN"):
        read_series(path, "1d")
    with pytest.raises(SeriesFileError, match="there is no column price"):
        read_series(path, "1d", columns={"item_id": "sku", "unit_price": "price"})
    with pytest.raises(SeriesFileError, match=r"end in \.parquet or \.csv"):
        read_series(tmp_path / "s.xlsx", "1d")
    (tmp_path / "broken.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(SeriesFileError, match="can't be read"):
        read_series(tmp_path / "broken.parquet", "1d")
    with pytest.raises(SeriesFileError, match="unknown time zone 'Berlin'"):
        read_series(small(tmp_path / "t.parquet"), "1h", "Berlin")


def test_columns_go_by_the_files_own_names(tmp_path: Path) -> None:
    path = write_table(tmp_path / "s.csv", sku=["007", "007"], date=D[:2], qty=[1, 2], units=["box", "box"])
    table = read_series(path, "1d", columns={"item_id": "sku", "bucket_start": "date", "units": "qty"})
    assert table.item_ids == ("007",)
    assert cells_of(table, "007") == [1, 2]
    assert table.columns == {}


def test_items_are_told_apart_whatever_their_type(tmp_path: Path) -> None:
    numbers = write_table(tmp_path / "n.parquet", item_id=[7, 8], bucket_start=D[:2], units=[1, 2])
    coded = pa.array(["b", "a"]).dictionary_encode()
    dictionary = write_table(tmp_path / "d.parquet", item_id=coded, bucket_start=D[:2], units=[1, 2])
    assert read_series(numbers, "1d").item_ids == ("7", "8")
    assert read_series(dictionary, "1d").item_ids == ("b", "a")


def test_names_of_events_and_mean_ratings_become_numbers(tmp_path: Path) -> None:
    path = small(
        tmp_path / "s.parquet",
        event=["Easter", None, "", "Fair", None, None],
        rating=[4.5, None, 0, 3.0, 2.0, None],
        review_count=[2, 0, 0, 1, 3, 0],
    )
    table = read_series(path, "1d")
    assert cells_of(table, "a", "event") == [1, None, 0, 1]
    assert cells_of(table, "a", "rating_sum") == [9, 0, 0, 3]
    assert cells_of(table, "b", "rating_sum") == [6, 0]
    alone = small(tmp_path / "t.parquet", rating=[4.5, None, 0, 3.0, 2.0, None])
    assert cells_of(read_series(alone, "1d"), "a", "rating_sum") == [4.5, 0, 0, 3]
    assert cells_of(read_series(alone, "1d"), "a", "review_count") == [1, 0, 0, 1]


def test_what_is_known_ahead_fills_the_future_and_gaps_of_the_past(tmp_path: Path) -> None:
    series = small(tmp_path / "s.parquet", unit_price=[4.0, 1.0, 5.0, None, 1.5, 1.5], heat=[1, 2, 3, 4, 5, 6])
    future = write_table(
        tmp_path / "f.parquet",
        item_id=["a", "a", "b", "a", "stranger"],
        bucket_start=[D[5], D[4], D[4], D[2], D[4]],
        unit_price=[7.0, None, 2.0, 9.0, 1.0],
        snow=[1, 0, 1, 1, 1],
        units=[99, 99, 99, 99, 99],
    )
    table = read_series(series, "1d", future=future)
    assert table.item_ids == ("a", "b")
    assert cells_of(table, "a") == [2, 0, 3, 1, None, None]
    assert cells_of(table, "b") == [5, 0, None, None]
    assert cells_of(table, "a", "unit_price") == [4, 4, 5, 5, 5, 7]
    assert cells_of(table, "b", "unit_price") == [1.5, 1.5, 2, 2]
    assert cells_of(table, "a", "snow") == [None, None, 1, None, 0, 1]
    assert table.end_bucket.tolist() == [DAY[4], DAY[4]]
    ahead = future_columns(future)
    assert covariates_of(table, ahead) == Covariates(past=("heat",), known=("snow",))
    assert covariates_of(table) == Covariates(past=("heat", "snow"))


def test_a_future_without_items_holds_for_all(tmp_path: Path) -> None:
    future = write_table(tmp_path / "f.csv", bucket_start=[D[2], D[4], D[6]], event=["fair", "", "feast"])
    table = read_series(small(tmp_path / "s.parquet"), "1d", future=future)
    assert cells_of(table, "a", "event") == [None, None, 1, None, 0, None, 1]
    assert cells_of(table, "b", "event") == [1, None, 0, None, 1]
    twice = write_table(tmp_path / "t.csv", bucket_start=[D[2], D[2]], event=["fair", ""])
    with pytest.raises(SeriesFileError, match="2024-03-06 has two rows"):
        read_series(small(tmp_path / "s.parquet"), "1d", future=twice)


def test_a_future_of_other_items_or_with_repeated_rows_is_refused(tmp_path: Path) -> None:
    series = small(tmp_path / "s.parquet")
    strangers = write_table(tmp_path / "f.parquet", item_id=["c"], bucket_start=[D[4]], promotion=[1])
    with pytest.raises(SeriesFileError, match="tells of none of the items"):
        read_series(series, "1d", future=strangers)
    twice = write_table(tmp_path / "t.parquet", item_id=["a"] * 2, bucket_start=[D[4]] * 2, promotion=[1, 0])
    with pytest.raises(SeriesFileError, match=r"t\.parquet row 2: a at 2024-03-08 has a row already"):
        read_series(series, "1d", future=twice)


def test_every_series_reaches_over_the_horizon_at_its_last_price(tmp_path: Path) -> None:
    path = small(tmp_path / "s.parquet", unit_price=[4.0, 1.0, 5.0, None, 1.5, 1.5])
    table = read_series(path, "1d", layout=Layout(horizon=2))
    assert cells_of(table, "a") == [2, 0, 3, 1, None, None]
    assert cells_of(table, "a", "unit_price") == [4, 4, 5, 5, 5, 5]


def test_items_have_codes_texts_and_a_launch(tmp_path: Path) -> None:
    static = write_table(
        tmp_path / "static.csv",
        item_id=["b", "c", "a"],
        category=["tea", "tin", "cups"],
        title=["Green tea", "Tin", None],
        dept=["D1", "D2", "D3"],
        launch_time=[None, D[0], D[1]],
    )
    series = small(tmp_path / "s.parquet", units=[0, 0, 0, 1, 5, 0])
    table = read_series(series, "1d", static=static)
    assert table.category_code.tolist() == [hash_code("cups"), hash_code("tea")]
    assert table.brand_code.tolist() == [0, 0]
    assert table.texts["title"] == ("", "Green tea")
    assert table.texts["dept"] == ("D3", "D1")
    # a was launched on the second day and sold first on the fourth: in between it sold nothing.
    assert cells_of(table, "a") == [0, 0, 1]
    assert table.launch_bucket.tolist() == [DAY[1], DAY[2]]
    again = write_table(tmp_path / "twice.csv", item_id=["b", "b"], category=["tea", "tin"])
    with pytest.raises(SeriesFileError, match="row 2: b has a row already"):
        read_series(series, "1d", static=again)


def test_a_launch_before_the_table_begins_with_the_table(tmp_path: Path) -> None:
    static = write_table(tmp_path / "static.csv", item_id=["b"], launch_time=[dt.date(2020, 1, 1)])
    table = read_series(small(tmp_path / "s.parquet"), "1d", static=static)
    assert cells_of(table, "b") == [0, 0, 5, 0]
    assert table.launch_bucket[1] == (dt.date(2020, 1, 1) - dt.date(1970, 1, 1)).days


def test_a_table_of_many_row_groups_equals_one_read_row_by_row(tmp_path: Path) -> None:
    """Against a dict of rows: ragged items, several row groups, duplicates of none."""
    rng = np.random.default_rng(3)
    rows = {
        (f"i{i}", int(d)): (int(rng.poisson(1)), float(np.round(rng.random(), 3)))
        for i in range(50)
        for d in rng.choice(400, size=int(rng.integers(1, 300)), replace=False)
    }
    keys = [list(rows)[i] for i in rng.permutation(len(rows))]
    start = dt.date(2023, 1, 1)
    arrow = pa.table(
        {
            "item_id": [i for i, _ in keys],
            "bucket_start": [start + dt.timedelta(days=d) for _, d in keys],
            "units": [rows[k][0] for k in keys],
            "unit_price": pa.array([rows[k][1] for k in keys], pa.float64()),
        }
    )
    path = tmp_path / "s.parquet"
    pq.write_table(arrow, path, row_group_size=97)
    table = read_series(path, "1d")
    end = max(d for _, d in rows) + 1
    base = (start - dt.date(1970, 1, 1)).days
    for item in table.item_ids:
        own = sorted(d for i, d in rows if i == item)
        first = next((d for d in own if rows[item, d][0] > 0), own[0])
        expected = [float(rows.get((item, d), (0, 0))[0]) for d in range(first, end)]
        assert cells_of(table, item) == expected
        assert table.first_bucket[table.item_ids.index(item)] == base + first
        price: float | None = None
        for d, got in zip(range(first, end), cells_of(table, item, "unit_price"), strict=True):
            price = rows[item, d][1] if (item, d) in rows else price
            assert got == pytest.approx(price, abs=1e-4)
