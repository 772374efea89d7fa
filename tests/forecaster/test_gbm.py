"""Boosted trees by the contract: promises, files, and what they learn of a pattern that is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from feature_store.features import FEATURE_INDEX
from forecaster import contract
from forecaster.contract import Covariates
from forecaster.dataset import Window
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.models import gbm
from forecaster.models.gbm import GbmModel, add_up
from forecaster.models.gbm_features import build_rows
from forecaster.models.gbm_training import GbmPlan, train
from forecaster.predictor import load_model
from forecaster.series import SeriesTable
from tests.forecaster.builders import random_inputs, take

UNITS = FEATURE_INDEX["units"]
FIRST, DAYS, ITEMS = 19_000, 500, 60
PLAN = GbmPlan(mean_trees=60, quantile_trees=40, learning_rate=0.2, leaves=15, least_rows=20, levels=(0.1, 0.5, 0.9))


def saturdays_table() -> SeriesTable:
    """Items that sell about three times as much on Saturdays (day numbers 2 mod 7), and twice on days with `snap`."""
    rng = np.random.default_rng(0)
    day = FIRST + np.arange(DAYS)
    snap = (rng.random(DAYS) < 0.3).astype(np.float32)
    rate = 4.0 * np.where(day % 7 == 2, 3.0, 1.0) * (1 + snap) * np.exp(rng.normal(0, 0.5, (ITEMS, 1)))
    nobody = np.zeros(ITEMS, dtype=np.int64)
    return SeriesTable(
        freq="1d",
        time_zone="UTC",
        item_ids=tuple(f"i{i}" for i in range(ITEMS)),
        first_bucket=np.full(ITEMS, FIRST),
        offsets=np.arange(ITEMS + 1) * DAYS,
        units=rng.poisson(rate).astype(np.float32).ravel(),
        columns={"snap": np.tile(snap, ITEMS)},
        category_code=nobody,
        brand_code=nobody,
        launch_bucket=np.full(ITEMS, FIRST),
    )


TABLE = saturdays_table()
SNAP = Covariates(known=("snap",))


def windows(running: range) -> list[Window]:
    return [TABLE.windows(np.arange(ITEMS), np.full(ITEMS, FIRST + at), 28, SNAP) for at in running]


@pytest.fixture(scope="module")
def model() -> GbmModel:
    return train({"1d": windows(range(120, 420, 30))}, {"1d": windows(range(440, 441))}, PLAN, SNAP)


def with_snap(inputs: ModelInputs) -> ModelInputs:
    more = np.full((*inputs.known.shape[:2], 1), np.nan, dtype=np.float32)
    return inputs._replace(known=np.concatenate([inputs.known, more], axis=2))


def same(a: ModelOutputs, b: ModelOutputs) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_saturdays_and_covariates_are_learnt(model: GbmModel) -> None:
    window = windows(range(470, 471))[0]
    made = model.forecast(window.inputs)
    day = FIRST + 470 + np.arange(28)
    snap = window.inputs.known[0, -28:, -1]
    plain = made.mean[:, (day % 7 != 2) & (snap == 0)].mean()
    assert made.mean[:, (day % 7 == 2) & (snap == 0)].mean() == pytest.approx(3 * plain, rel=0.2)
    assert made.mean[:, (day % 7 != 2) & (snap == 1)].mean() == pytest.approx(2 * plain, rel=0.2)
    assert made.mean.sum() == pytest.approx(window.units.sum(), rel=0.08)


@pytest.mark.parametrize("seed", range(3))
def test_any_forecast_keeps_the_contracts_promises(model: GbmModel, seed: int) -> None:
    inputs = with_snap(random_inputs("1d", 40, seed))
    quantiles, mean, cumulative = model.forecast(inputs)
    running = inputs.running[:, UNITS]
    assert quantiles.shape == cumulative.shape == (40, 28, len(contract.QUANTILE_LEVELS))
    assert all(np.isfinite(values).all() for values in (quantiles, mean, cumulative))
    assert (np.diff(quantiles, axis=2) >= 0).all()
    assert (quantiles[:, 0] >= running[:, None]).all()
    assert (mean[:, 0] >= running).all()
    assert quantiles.min() >= 0
    assert (np.diff(cumulative, axis=1) >= 0).all()
    assert (np.diff(cumulative, axis=2) >= 0).all()


def test_quantiles_are_whole_where_units_are(model: GbmModel) -> None:
    whole = windows(range(440, 441))[0].inputs
    halves = whole._replace(context=whole.context.copy())
    halves.context[:, -9, UNITS] += 0.5
    assert all((values == values.round()).all() for values in (model.forecast(whole)[0], model.forecast(whole)[2]))
    assert not all((values == values.round()).all() for values in model.forecast(halves)[0])


def test_a_rows_forecast_is_the_same_bits_whatever_stands_beside_it(model: GbmModel) -> None:
    inputs = with_snap(random_inputs("1d", 20, 5))
    together = model.forecast(inputs)
    for row in (0, 11, 19):
        alone = model.forecast(take(inputs, [row]))
        assert same(alone, ModelOutputs(*(values[row : row + 1] for values in together)))


def test_a_saved_model_forecasts_the_same(model: GbmModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.freqs == ("1d",)
    assert loaded.covariates == SNAP
    inputs = windows(range(450, 451))[0].inputs
    assert same(loaded.forecast(inputs), model.forecast(inputs))


def test_trees_of_other_features_are_refused(model: GbmModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"features_hash": "0123456789abcdef"}))
    with pytest.raises(ValueError, match="0123456789abcdef"):
        gbm.load(tmp_path)


def test_a_damaged_file_is_named(model: GbmModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    (tmp_path / "1d_mean.txt").write_text("tree\n")
    with pytest.raises(ValueError, match=r"1d_mean\.txt"):
        gbm.load(tmp_path)


def test_a_freq_that_was_not_trained_is_refused(model: GbmModel) -> None:
    inputs = with_snap(random_inputs("1w", 2, 0))
    with pytest.raises(ValueError, match=r"\['1d'\], not 1w"):
        model.forecast(inputs)


def test_season_features_are_the_means_of_the_same_weekday() -> None:
    window = windows(range(400, 401))[0]
    rows = build_rows(window.inputs, SNAP)
    named = dict(zip(rows.names, rows.values.T, strict=True))
    units = TABLE.units.reshape(ITEMS, DAYS) / rows.level[:, None]
    for item, step in ((0, 0), (3, 6), (7, 13), (20, 27)):
        at = item * 28 + step
        last = [400 + step % 7 - 7 * week for week in range(1, 5)]
        assert named["season_4"][at] == pytest.approx(units[item, last].mean(), rel=1e-5)
        assert named["snap"][at] == TABLE.columns["snap"][400 + step]
        assert named["year_ago_3"][at] == pytest.approx(
            units[item, 400 + step - 365 : 400 + step - 362].mean(), rel=1e-5
        )
    assert named["mean_28"][0] == pytest.approx(units[0, 372:400].mean(), rel=1e-5)
    assert named["lag_1"][0] == pytest.approx(units[0, 399], rel=1e-5)


@pytest.mark.parametrize(("addition", "spread"), [(0.5, np.sqrt(7.0)), (1.0, 7.0)])
def test_sums_spread_as_the_exponent_says(addition: float, spread: float) -> None:
    mean = np.full((1, 7), 10.0)
    quantiles = mean[:, :, None] + np.array([-2.0, 0.0, 3.0])
    sums = add_up(quantiles, mean, addition)
    assert sums[0, -1] == pytest.approx([70 - 2 * spread, 70, 70 + 3 * spread])
