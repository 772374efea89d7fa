from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from feature_store.features import FEATURE_INDEX
from feature_store.known_future import KNOWN_CHANNELS
from forecaster.baselines import empirical_forecast, seasonal_naive
from forecaster.contract import FREQ_CODES, PAST_CHANNELS, QUANTILE_LEVELS, WINDOWS
from forecaster.inputs import ModelInputs
from tests.forecaster.builders import random_inputs, take

UNITS = FEATURE_INDEX["units"]
MEDIAN = QUANTILE_LEVELS.index(0.5)


def of_one_item(freq: str, units: NDArray[Any], running: float = 0.0, elapsed: float = 0.0) -> ModelInputs:
    """Inputs of one item with this past of units."""
    inputs = take(random_inputs(freq, 1, 0), [0])
    context = np.repeat(units.astype(np.float32)[None, :, None], len(PAST_CHANNELS), axis=2)
    now = np.full((1, len(PAST_CHANNELS)), running, dtype=np.float32)
    available = np.where(np.isnan(context[:, :, 0]), np.nan, 1).astype(np.float32)
    share = np.full((1, 1), elapsed, dtype=np.float32)
    return inputs._replace(context=context, running=now, available_fraction=available, elapsed_fraction=share)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), freq=st.sampled_from(sorted(WINDOWS)))
def test_any_empirical_forecast_keeps_the_contracts_promises(seed: int, freq: str) -> None:
    inputs = random_inputs(freq, 12, seed)
    steps = WINDOWS[freq].max_prediction_length
    quantiles, mean, cumulative = empirical_forecast(inputs, steps)
    assert quantiles.shape == cumulative.shape == (12, steps, len(QUANTILE_LEVELS))
    assert mean.shape == (12, steps)
    assert all(np.isfinite(values).all() for values in (quantiles, mean, cumulative))
    assert (np.diff(quantiles, axis=2) >= 0).all()
    assert (quantiles[:, 0] >= inputs.running[:, UNITS, None]).all()
    assert (mean[:, 0] >= inputs.running[:, UNITS]).all()
    assert (cumulative >= 0).all()
    assert (np.diff(cumulative, axis=1) >= 0).all()
    assert (np.diff(cumulative, axis=2) >= 0).all()
    assert cumulative[:, 0] == pytest.approx(quantiles[:, 0] - inputs.running[:, UNITS, None], rel=1e-4, abs=1e-2)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_an_items_forecast_does_not_depend_on_the_others(seed: int) -> None:
    inputs = random_inputs("1d", 6, seed)
    together = empirical_forecast(inputs, 28)
    alone = empirical_forecast(take(inputs, [4]), 28)
    assert all(np.array_equal(a[4:5], b) for a, b in zip(together, alone, strict=True))


def test_a_weekly_pattern_is_repeated() -> None:
    week = np.array([0, 5, 10, 15, 20, 25, 0])
    out = empirical_forecast(of_one_item("1d", np.tile(week, 26)), 28)
    assert out.quantiles[0, :, MEDIAN].tolist() == np.tile(week, 4).tolist()
    assert seasonal_naive(of_one_item("1d", np.tile(week, 26)), 28)[0].tolist() == np.tile(week, 4).tolist()


def test_an_hour_of_the_week_beats_the_hour_of_other_days() -> None:
    week = np.zeros(168)
    week[34] = 8.0  # one hour of one weekday
    out = empirical_forecast(of_one_item("1h", np.tile(week, 2)), 48)
    assert out.quantiles[0, 34, MEDIAN] == 8.0
    assert out.quantiles[0, 10, MEDIAN] == 0.0


def test_the_running_bucket_adds_what_is_left_of_it() -> None:
    out = empirical_forecast(of_one_item("1d", np.full(182, 12.0), running=30.0, elapsed=0.75), 2)
    assert out.quantiles[0, 0, MEDIAN] == pytest.approx(30 + 12 * 0.25)
    assert out.quantiles[0, 1, MEDIAN] == pytest.approx(12)
    assert out.cumulative_quantiles[0, 1, MEDIAN] == pytest.approx(12 * 1.25, rel=0.05)


def test_an_item_without_a_closed_bucket_is_forecast_from_the_running_one() -> None:
    new = of_one_item("1d", np.full(182, np.nan), running=6.0, elapsed=0.5)
    out = empirical_forecast(new, 28)
    assert out.quantiles[0, 1, MEDIAN] == pytest.approx(12.0)
    assert out.quantiles[0, 1, -1] > 12.0
    assert seasonal_naive(new, 28)[0, 1] == pytest.approx(12.0)


def test_closed_days_to_come_sell_nothing() -> None:
    inputs = of_one_item("1d", np.full(182, 12.0))
    inputs.known[0, 182 + 3, KNOWN_CHANNELS.index("open")] = 0.0
    out = empirical_forecast(inputs, 28)
    assert out.quantiles[0, 3].max() == 0.0
    assert out.quantiles[0, 4].max() > 0.0


def test_seasonal_naive_is_never_below_the_running_units() -> None:
    out = seasonal_naive(of_one_item("1h", np.zeros(336), running=3.0, elapsed=0.1), 48)
    assert out[0, 0] == 3.0
    assert out[0, 1:].max() == 0.0


def test_every_freq_of_the_contract_has_a_season() -> None:
    for freq in FREQ_CODES:
        if freq in WINDOWS:
            empirical_forecast(random_inputs(freq, 2, 1), 1)
