"""Cleaning, rule by rule. Expected values are worked by hand or by scipy-free numpy on one item at a time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from forecaster.cleaning import CleaningReport, CleaningRules, clean
from forecaster.series import SeriesTable
from tests.forecaster.tables import cells_of

NAN = float("nan")


def table_of(*series: list[float], future: int = 0, **columns: list[list[float]]) -> SeriesTable:
    """Items i0, i1, … ; `future` cells of which nothing is known end each."""
    tail = [NAN] * future
    flat = {
        name: np.array([v for own in values for v in [*own, *tail]], np.float32) for name, values in columns.items()
    }
    count = len(series)
    return SeriesTable(
        freq="1d",
        time_zone="UTC",
        item_ids=tuple(f"i{n}" for n in range(count)),
        first_bucket=np.full(count, 19_000, dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum([len(own) + future for own in series])]),
        units=np.array([v for own in series for v in [*own, *tail]], dtype=np.float32),
        columns=flat,
        category_code=np.zeros(count, dtype=np.int64),
        brand_code=np.zeros(count, dtype=np.int64),
        launch_bucket=np.full(count, 19_000, dtype=np.int64),
    )


def cleaned(table: SeriesTable, **rules: Any) -> tuple[SeriesTable, CleaningReport]:
    before = table.units.copy()
    columns = {name: column.copy() for name, column in table.columns.items()}
    out = clean(table, CleaningRules(**rules))
    assert np.array_equal(table.units, before, equal_nan=True)
    assert all(np.array_equal(table.columns[name], column, equal_nan=True) for name, column in columns.items())
    return out


def test_as_it_stands_only_negative_units_are_touched() -> None:
    wild = [1.0, NAN, 0.0, 900.0, 1, 1, 1, 1, 1, 1]
    table, report = cleaned(table_of(wild, [1.0, -3.0, 2.0], future=1))
    assert cells_of(table, "i0") == [1, None, 0, 900, 1, 1, 1, 1, 1, 1, None]
    assert cells_of(table, "i1") == [1, 0, 2, None]
    assert cells_of(table, "i1", "returned_units") == [0, 3, 0, None]
    assert [tuple(change) for change in report.changes] == [("negative: returns", 1, 1, -3, 0)]
    assert (report.buckets, report.items, report.units_before, report.units_after) == (12, 2, 907, 910)


def test_negative_units_add_to_what_is_known_to_have_come_back() -> None:
    source = table_of([1.0, -3.0, -1.0], returned_units=[[0, 2, NAN]], revenue=[[2, -6, -2]])
    table, _ = cleaned(source)
    assert cells_of(table, "i0", "returned_units") == [0, 5, 1]
    assert cells_of(table, "i0", "revenue") == [2, 0, 0]
    assert cells_of(cleaned(source, negative="missing")[0], "i0") == [1, None, None]
    assert cells_of(cleaned(source, negative="keep")[0], "i0") == [1, -3, -1]


def test_gaps_are_filled_between_known_buckets_and_nowhere_else() -> None:
    source = table_of([2.0, NAN, NAN, 5.0, NAN], [NAN, 1.0, NAN, 0.0, NAN], [NAN] * 5, future=1)
    zero, report = cleaned(source, missing="zero")
    assert cells_of(zero, "i0") == [2, 0, 0, 5, None, None]
    assert cells_of(zero, "i1") == [None, 1, 0, 0, None, None]
    assert cells_of(zero, "i2") == [None] * 6
    line, _ = cleaned(source, missing="interpolate")
    assert cells_of(line, "i0") == [2, 3, 4, 5, None, None]
    assert cells_of(line, "i1") == [None, 1, 0.5, 0, None, None]
    assert tuple(report.changes[-1]) == ("missing: zero", 3, 2, 0, 0)


SELLING = [4.0, 0, 6, 5, 7, 0, 5, 4, 6, 5, 100, 0, 5]  # quartiles of what sells: 4.75, 5, 6


def test_outliers_are_judged_on_buckets_with_sales() -> None:
    by_hand = np.quantile([4, 6, 5, 7, 5, 4, 6, 5, 100, 5], [0.25, 0.5, 0.75])
    limit = by_hand[2] + 3 * max(by_hand[2] - by_hand[0], np.sqrt(by_hand[1]))
    source = table_of(SELLING, [1.0, 100.0], revenue=[[2 * v for v in SELLING], [1.0, 100.0]])
    table, report = cleaned(source, outliers="iqr")
    assert [place for place, v in enumerate(cells_of(table, "i0")) if v is None] == [10]
    # Two buckets with sales say nothing about what is usual.
    assert cells_of(table, "i1") == [1, 100]
    assert cells_of(table, "i0", "revenue")[10] is None
    assert tuple(report.changes[-1]) == ("outliers: iqr, mask", 1, 1, 100, 0)
    clipped, report = cleaned(source, outliers="iqr", outlier_action="clip")
    assert cells_of(clipped, "i0")[10] == pytest.approx(limit, rel=1e-5)
    assert cells_of(clipped, "i0", "revenue")[10] == pytest.approx(2 * limit, rel=1e-5)
    assert report.changes[-1].units_after == pytest.approx(limit, rel=1e-5)


def test_z_scores_are_robust() -> None:
    values = np.array([v for v in SELLING if v > 0])
    median = np.median(values)
    spread = max(1.4826 * np.median(np.abs(values - median)), np.sqrt(median))
    table, _ = cleaned(table_of(SELLING), outliers="zscore", outlier_factor=2.0, outlier_action="clip")
    assert cells_of(table, "i0")[10] == pytest.approx(median + 2 * spread, rel=1e-5)


def test_the_second_piece_of_an_item_that_sells_singly_is_no_outlier() -> None:
    single = [1.0, 0, 1, 1, 0, 1, 1, 1, 2, 1, 1, 3]
    for outliers in ("iqr", "zscore"):
        table, report = cleaned(table_of(single), outliers=outliers)
        assert cells_of(table, "i0") == single
        assert report.changes[-1].buckets == 0


def test_stock_outs_that_were_recorded_are_zeros_of_unavailable_items() -> None:
    source = table_of([3.0, 0, 0, 2, 0], available_fraction=[[1, 0, 1, 0, NAN]])
    table, report = cleaned(source, stock_outs="recorded")
    assert cells_of(table, "i0") == [3, None, 0, 2, 0]
    assert report.changes[-1].buckets == 1
    with pytest.raises(ValueError, match="no column available_fraction"):
        clean(table_of([1.0]), CleaningRules(stock_outs="recorded"))


def test_stock_outs_are_suspected_of_runs_too_long_for_how_often_an_item_sells() -> None:
    rng = np.random.default_rng(0)
    daily = (1.0 + rng.poisson(2, 100)).tolist()
    often = [*daily, *[0.0] * 20, *daily, 0.0, 0.0, *daily, *[0.0] * 30]
    seldom = (rng.random(352) < 0.05).astype(float).tolist()
    source = table_of(often, seldom, available_fraction=[[1.0] * 352, [1.0] * 352])
    table, report = cleaned(source, stock_outs="suspected")
    masked = [place for place, v in enumerate(cells_of(table, "i0")) if v is None]
    # The twenty days are; two days are chance enough; the last thirty may be the item's end.
    assert masked == list(range(100, 120))
    assert None not in cells_of(table, "i1")
    assert [change.rule for change in report.changes[1:]] == ["stock-outs: recorded", "stock-outs: suspected"]


def test_one_offs_are_taken_out_by_flag_or_by_size() -> None:
    source = table_of([*SELLING, 99.0], one_off=[[*([0.0] * 3), 1.0, *([NAN] * 10)]])
    table, _ = cleaned(source, one_off="flagged")
    assert [place for place, v in enumerate(cells_of(table, "i0")) if v is None] == [3]
    table, report = cleaned(source, one_off="large", one_off_factor=18)
    assert [place for place, v in enumerate(cells_of(table, "i0")) if v is None] == [3, 10]
    assert [change.units_before for change in report.changes] == [0, 5, 100]
    by_size_alone, _ = cleaned(table_of(SELLING), one_off="large", one_off_factor=18)
    assert [place for place, v in enumerate(cells_of(by_size_alone, "i0")) if v is None] == [10]
    with pytest.raises(ValueError, match="no column one_off"):
        clean(table_of([1.0]), CleaningRules(one_off="flagged"))


def test_what_a_rule_takes_out_is_not_filled_again() -> None:
    source = table_of([*SELLING[:4], NAN, *SELLING[4:]])
    table, _ = cleaned(source, missing="interpolate", outliers="iqr")
    assert [place for place, v in enumerate(cells_of(table, "i0")) if v is None] == [11]


def test_the_report_is_json_and_a_table() -> None:
    _, report = cleaned(table_of(SELLING, [1.0, -1.0]), outliers="iqr")
    read = json.loads(json.dumps(report.as_dict()))
    assert read["changes"][1] == {
        "rule": "outliers: iqr, mask",
        "buckets": 1,
        "items": 1,
        "units_before": 100.0,
        "units_after": 0.0,
    }
    console = Console(width=100, record=True, file=None)
    with console.capture() as printed:
        console.print(report.table())
    assert "outliers: iqr, mask" in printed.get()
    assert "all series" in printed.get()


def test_cleaning_equals_a_recomputation_item_by_item() -> None:
    rng = np.random.default_rng(8)
    series = [(rng.poisson(rng.exponential(4), size=rng.integers(1, 90)) * 1.0).tolist() for _ in range(60)]
    for own in series:
        for place in range(len(own)):
            own[place] = NAN if rng.random() < 0.05 else own[place] * (40.0 if rng.random() < 0.02 else 1.0)
    table, _ = cleaned(table_of(*series), outliers="iqr", outlier_factor=1.5)
    for number, own in enumerate(series):
        values = np.array(own)
        selling = values[values > 0]
        expected = values.copy()
        if len(selling) >= 8:
            low, median, high = np.quantile(selling, [0.25, 0.5, 0.75])
            expected[values > high + 1.5 * max(high - low, np.sqrt(median), 1)] = np.nan
        assert cells_of(table, f"i{number}") == [None if np.isnan(v) else v for v in expected]
