"""Invented tables: seeded, plausible, and with the patterns that they promise."""

import numpy as np
import pytest

from forecaster.synthetic_series import generate_series


@pytest.mark.parametrize("freq", ["1h", "1d", "1w"])
def test_the_same_arguments_give_the_same_table(freq: str) -> None:
    a, b, other = (generate_series(20, 400, seed, freq) for seed in (1, 1, 2))
    assert np.array_equal(a.units, b.units)
    assert all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)
    assert not np.array_equal(a.units, other.units)


def test_units_are_counts_and_series_begin_with_a_sale() -> None:
    for seed in range(5):
        table = generate_series(40, 400, seed)
        assert (table.units == table.units.round()).all()
        assert table.units.min() >= 0
        assert len(table.units) == table.offsets[-1]
        sold = table.units[table.offsets[:-1]] > 0
        ever = np.maximum.reduceat(table.units, table.offsets[:-1]) > 0
        assert (sold == ever).all()


def test_nothing_sells_where_nothing_is_to_be_had() -> None:
    tables = [generate_series(40, 400, seed) for seed in range(60)]
    told = [table for table in tables if "available_fraction" in table.columns]
    out = [table.units[table.columns["available_fraction"] == 0] for table in told]
    assert sum(len(units) for units in out) > 0
    assert all((units == 0).all() for units in out)


def test_what_shops_record_differs() -> None:
    columns = [generate_series(5, 100, seed).columns for seed in range(60)]
    assert sum(not recorded for recorded in columns) > 10, "many keep sales alone"
    clicked = [recorded["views"].any() for recorded in columns if "views" in recorded]
    assert 0 < sum(clicked) < len(clicked), "some hear of no clicks, which a worker counts as none"


def test_promotions_sell_more() -> None:
    ratios = []
    for seed in range(30):
        table = generate_series(60, 500, seed)
        if "promotion" in table.columns:
            on = table.columns["promotion"] > 0
            if on.any():
                ratios.append(table.units[on].mean() / table.units[~on].mean())
    assert len(ratios) > 5
    assert np.median(ratios) > 1.1


def test_views_lead_sales() -> None:
    """Tomorrow's units speak of today's views more than yesterday's do, over many shops."""
    leads = []
    for seed in range(40):
        table = generate_series(30, 500, seed)
        if not table.columns.get("views", np.zeros(1)).any():
            continue  # not recorded, or a shop without clicks
        item = int(np.argmax(np.add.reduceat(table.units, table.offsets[:-1])))
        cells = slice(int(table.offsets[item]), int(table.offsets[item + 1]))
        units, views = table.units[cells].astype(float), table.columns["views"][cells].astype(float)
        after = np.corrcoef(views[1:-1], units[2:])[0, 1]
        before = np.corrcoef(views[1:-1], units[:-2])[0, 1]
        leads.append(after - before)
    assert len(leads) > 3
    assert np.mean(leads) > 0


def test_a_week_is_the_sum_of_its_days() -> None:
    days, weeks = generate_series(25, 300, 7), generate_series(25, 300, 7, "1w")
    assert weeks.units.sum() <= days.units.sum()
    assert weeks.units.sum() > 0.95 * days.units.sum()


def test_a_days_hours_sum_to_it() -> None:
    days, hours = generate_series(25, 60, 7), generate_series(25, 60, 7, "1h")
    assert hours.units.sum() == days.units.sum()
    assert np.array_equal(hours.offsets, 24 * days.offsets)
    assert np.array_equal(np.add.reduceat(hours.units, np.arange(0, len(hours.units), 24)), days.units)


def test_shops_differ_in_size_and_evenness() -> None:
    means, dispersions = [], []
    for seed in range(40):
        table = generate_series(30, 400, seed)
        by_item = [table.units[a:b] for a, b in zip(table.offsets[:-1], table.offsets[1:], strict=True)]
        sold = [units for units in by_item if units.sum() > 0]
        means.append(np.median([units.mean() for units in sold]))
        dispersions.append(np.median([units.var() / units.mean() for units in sold]))
    assert min(means) < 0.3
    assert max(means) > 100
    assert min(dispersions) < 1.5
    assert max(dispersions) > 20


def test_other_frequencies_are_refused() -> None:
    with pytest.raises(ValueError, match="not by 5m"):
        generate_series(2, 100, 0, "5m")
