"""Where forecasts are made, what then happened, and on what scale errors are told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from forecaster import accuracy
from forecaster.rolling_origins import filled_past, origins_of, seasonal_scale, targets
from tests.forecaster.series_tables import FIRST_DAY, made_table

_END = FIRST_DAY + 200


def test_the_last_origin_leaves_room_for_the_whole_horizon() -> None:
    origins = origins_of(made_table(), 3, 5, 14)
    assert [origin.running for origin in origins] == [_END - 24, _END - 19, _END - 14]


def test_an_origin_has_the_series_that_had_begun_and_go_on() -> None:
    table = made_table(items=4)  # the last one is 20 days long
    first, last = origins_of(table, 2, 10, 14)
    assert first.rows.tolist() == [0, 1, 2]
    assert last.rows.tolist() == [0, 1, 2, 3]
    units = table.units.copy()
    units[table.offsets[1] :][-20:] = np.nan  # nothing is known of the last series any more
    assert origins_of(dataclasses.replace(table, units=units), 1, 1, 14)[0].rows.tolist() == [0, 1, 2]


def test_a_table_that_is_too_short_is_refused_with_what_would_fit() -> None:
    with pytest.raises(ValueError, match="at most 15 do"):
        origins_of(made_table(), 16, 13, 14)
    assert len(origins_of(made_table(), 15, 13, 14)) == 15


def test_targets_are_the_units_from_the_origin_on() -> None:
    table = made_table(items=3)
    found = targets(table, np.array([0, 2]), _END - 3, 5)
    assert found[0, :3].tolist() == table.units[table.offsets[1] - 3 : table.offsets[1]].tolist()
    assert np.isnan(found[:, 3:]).all()
    assert np.isnan(targets(table, np.array([2]), FIRST_DAY, 5)).all()


@pytest.mark.parametrize("season", [1, 7])
def test_the_scale_is_the_seasonal_error_of_all_that_was_sold_before(season: int) -> None:
    table = made_table()
    units = table.units.copy()
    units[::11] = np.nan
    table = dataclasses.replace(table, units=units)
    running = _END - 15
    found = seasonal_scale(table, np.arange(len(table)), running, season)
    for row in range(len(table)):
        past = units[table.offsets[row] : table.offsets[row + 1]][: running - int(table.first_bucket[row])]
        expected = accuracy.seasonal_error(past, season)
        assert found[row] == pytest.approx(float(expected), nan_ok=True)
    assert np.isnan(found[-1]) == (season == 7)  # five days of past hold no step of a week
    assert found[-2] == 0


def test_what_is_not_known_is_taken_to_be_as_a_season_before() -> None:
    table = made_table(items=3)
    units = table.units.copy()
    units[[0, 20, 27]] = np.nan
    past = filled_past(dataclasses.replace(table, units=units), 0, _END - 1, 7, 1_000)
    assert past[0] == 0
    assert past[20] == past[27] == units[13]
    assert len(past) == 199
    assert filled_past(table, 0, _END - 1, 7, 30).tolist() == table.units[169:199].tolist()
