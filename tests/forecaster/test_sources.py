"""Sources of training windows: what they may tell, what they draw, and that it is a function of the generator."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from forecaster.contract import PAST_CHANNELS, WINDOWS, Covariates
from forecaster.dataset import Window
from forecaster.sources import HistorySource, SeriesSource, widened
from tests.forecaster.builders import small_history, small_table

DAY_MS = 86_400_000
UNITS = PAST_CHANNELS.index("units")
LENGTH = WINDOWS["1d"].context_length


def source(**changes: object) -> SeriesSource:
    """Cutoffs from day 1 to day 179 of 220, units of day 180 and later untold."""
    fields: dict[str, object] = {"first_bucket": 20_001, "last_bucket": 20_179, "known_end": 20_180} | changes
    return SeriesSource(small_table(), **fields)  # type: ignore[arg-type]


def columns_of(window: Window) -> list[NDArray[Any]]:
    return [*window.inputs, window.units, window.cumulative_units]


def ages(window: Window) -> NDArray[np.float32]:
    """Days from each item's first bucket to its cutoff."""
    return window.inputs.static[:, 0]


def test_the_same_generator_draws_the_same_windows() -> None:
    one, other = (source().draw("1d", 40, np.random.default_rng(4)) for _ in range(2))
    assert one is not None
    assert other is not None
    for a, b in zip(columns_of(one), columns_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_windows_are_those_of_the_table_and_end_where_units_are_not_told() -> None:
    table = small_table()
    window = source().draw("1d", 300, np.random.default_rng(1))
    assert window is not None
    # The price tells the item, and the age its cutoff.
    price = table.columns["unit_price"][table.offsets[:-1]]
    for row in range(300):
        item = int(np.argmin(np.abs(price - window.inputs.known[row, -1, 0])))
        cutoff = int(ages(window)[row])
        units = table.units[table.offsets[item] : table.offsets[item + 1]]
        told = np.full(28, np.nan, dtype=np.float32)
        rest = units[cutoff : min(cutoff + 28, 180 - 3 * item)]
        told[: len(rest)] = rest
        np.testing.assert_array_equal(window.units[row], told)
        np.testing.assert_array_equal(window.cumulative_units[row], np.cumsum(told))
        past = units[max(cutoff - LENGTH, 0) : cutoff]
        np.testing.assert_array_equal(window.inputs.context[row, LENGTH - len(past) :, UNITS], past)
    assert np.isnan(window.units).any()
    assert np.isfinite(window.units[:, 0]).all()


def test_half_of_the_windows_are_recent() -> None:
    table = small_table()
    even = source(recent_share=0.0, volume_power=0.0).draw("1d", 4000, np.random.default_rng(0))
    half = source(recent_buckets=20, volume_power=0.0).draw("1d", 4000, np.random.default_rng(0))
    assert even is not None
    assert half is not None
    price = table.columns["unit_price"][table.offsets[:-1]]

    def share_recent(window: Window) -> float:
        item = np.argmin(np.abs(price - window.inputs.known[:, -1:, 0]), axis=1)
        return float((ages(window) + 3 * item >= 160).mean())

    by_chance = share_recent(even)  # 20 of 179 - 3 i days
    assert 0.1 < by_chance < 0.16
    assert share_recent(half) == pytest.approx(0.5 + 0.5 * by_chance, abs=0.03)


def test_items_come_by_a_power_of_their_volume_and_none_never() -> None:
    table = small_table()
    price = table.columns["unit_price"][table.offsets[:-1]]
    window = source(volume_power=1.0).draw("1d", 6000, np.random.default_rng(0))
    assert window is not None
    drawn = np.bincount(np.argmin(np.abs(price - window.inputs.known[:, -1:, 0]), axis=1), minlength=12) / 6000
    pairs = zip(table.offsets[:-1], table.offsets[1:], range(12), strict=True)
    volume = np.array([table.units[a:b][: 180 - 3 * i].mean() for a, b, i in pairs])
    np.testing.assert_allclose(drawn, volume / volume.sum(), atol=0.02)
    assert (drawn > 0).all()


def test_a_source_with_no_cutoff_left_draws_nothing() -> None:
    assert (
        source(first_bucket=20_400, last_bucket=20_500, known_end=20_600).draw("1d", 4, np.random.default_rng()) is None
    )
    assert source().draw("1h", 4, np.random.default_rng()) is None


@pytest.mark.parametrize("freq", ["1h", "1d", "1w"])
def test_a_history_draws_as_many_rows_as_asked_for(freq: str) -> None:
    history = small_history()
    events = HistorySource(history, history.start_ms + 40 * DAY_MS, history.end_ms, ("1h", "1d", "1w"))
    window = events.draw(freq, 33, np.random.default_rng(0))
    assert window is not None
    assert len(window.units) == 33
    assert np.isfinite(window.units).any()


def test_missing_covariates_are_unknown_channels_and_present_ones_stay() -> None:
    covariates = Covariates(past=("footfall",), known=("snap", "heat"))
    window = source().draw("1d", 3, np.random.default_rng(0))
    assert window is not None
    wide = widened(window, covariates)
    assert wide.inputs.context.shape[-1] == window.inputs.context.shape[-1] + 1
    assert wide.inputs.known.shape[-1] == window.inputs.known.shape[-1] + 2
    assert np.isnan(wide.inputs.context[..., -1]).all()
    np.testing.assert_array_equal(wide.inputs.known[..., :-2], window.inputs.known)
    again = widened(wide, covariates)
    assert again.inputs.running.shape == wide.inputs.running.shape == (3, len(PAST_CHANNELS) + 1)
