"""Training end to end on an invented shop, in seconds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from forecaster import contract, train
from forecaster.accuracy import pinball as scored_pinball
from forecaster.dataset import Window
from forecaster.models.loss import loss, pinball
from forecaster.models.patch_transformer import PatchTransformer, PatchTransformerConfig, Scaled, load
from forecaster.passes import forecast
from tests.forecaster.builders import random_inputs, small_history

DAY_MS = 86_400_000
SLICE = Path(__file__).parents[2] / "worker" / "demo_data" / "online_retail_ii_march_2011.parquet"
TINY = train.Plan(steps=8, windows_per_batch=2, items_per_window=4, validate_every=4)


def trained(seed: int) -> tuple[PatchTransformer, float, float]:
    """A tiny model, its validation loss before training and after."""
    history = small_history()
    sources = [train.Source(history, 1.0, history.end_ms - 30 * DAY_MS)]
    validation = [train.draw_batch(sources, TINY, np.random.default_rng(99), freq) for freq in ("1d", "1h")]
    torch.manual_seed(seed)
    model = PatchTransformer(PatchTransformerConfig(width=16, layers=1, heads=2, step_width=8))
    before = train.validation_loss(model, validation)
    rng = np.random.default_rng(seed)
    after = train.fit(model, lambda: train.draw_batch(sources, TINY, rng), validation, TINY, quiet=True)
    return model, before, after


def test_training_learns_and_is_the_same_for_the_same_seed() -> None:
    model, before, after = trained(0)
    again, _, after_again = trained(0)
    assert after < before
    assert after == after_again
    inputs = random_inputs("1d", 4, 0)
    assert np.array_equal(forecast(model, inputs).quantiles, forecast(again, inputs).quantiles)


def test_an_interrupt_keeps_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    history = small_history()
    sources = [train.Source(history, 1.0, history.end_ms)]
    rng = np.random.default_rng(0)
    batch = train.draw_batch(sources, TINY, rng, "1d")

    def interrupted() -> Iterator[Window]:
        yield batch
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "prefetched", lambda _: interrupted())
    model = PatchTransformer(PatchTransformerConfig(width=16, layers=1, heads=2, step_width=8))
    train.fit(model, lambda: batch, [batch], TINY, quiet=True)
    assert np.isfinite(forecast(model, random_inputs("1d", 2, 0)).quantiles).all()


def test_the_command_writes_a_model_that_triton_can_serve(tmp_path: Path) -> None:
    options = ["--synthetic", "40", "--steps", "2", "--minutes", "0.2", "--output", str(tmp_path), "--seed", "1"]
    result = CliRunner().invoke(train.command, options)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "config.pbtxt").read_text() == contract.render_config_pbtxt()
    assert load(tmp_path / "1").config.features_hash == contract.features_hash()


def test_training_on_nothing_is_refused() -> None:
    result = CliRunner().invoke(train.command, ["--synthetic", "0"])
    assert result.exit_code == 2
    assert "nothing to train on" in result.output


def test_pinball_agrees_with_the_score() -> None:
    rng = np.random.default_rng(0)
    target, quantiles = rng.random((3, 4)), rng.random((3, 4, 19))
    levels = torch.tensor(contract.QUANTILE_LEVELS, dtype=torch.float64)
    trained_on = pinball(torch.from_numpy(target), torch.from_numpy(quantiles), levels).numpy()
    scored = scored_pinball(target, quantiles, contract.QUANTILE_LEVELS).mean(axis=-1) / 2
    assert trained_on == pytest.approx(scored)


def test_the_means_loss_is_least_at_the_mean_of_skewed_demand() -> None:
    demand = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 9.0])[:, None]  # mean 10 / 6, median 0

    def by_mean(mean: float) -> float:
        levels = len(contract.QUANTILE_LEVELS)
        nothing = torch.zeros(6, 1, levels)
        one = torch.ones(6, 1)
        scaled = Scaled(nothing, torch.full((6, 1), float(np.log(mean))), nothing, one, one, one)
        return float(loss(scaled, torch.zeros(6), demand, demand).mean)

    losses = {mean: by_mean(mean) for mean in (0.5, 1.0, 10 / 6, 2.5, 4.0)}
    assert min(losses, key=lambda mean: losses[mean]) == 10 / 6


def test_unknown_targets_do_not_touch_the_loss() -> None:
    torch.manual_seed(0)
    model = PatchTransformer(PatchTransformerConfig(width=16, layers=1, heads=2, step_width=8)).eval()
    inputs = random_inputs("1d", 3, 0)
    units = np.abs(np.random.default_rng(0).normal(20, 9, (3, 28))).astype(np.float32) + inputs.running[:, :1]
    window = Window(inputs, units.copy(), np.cumsum(units, axis=1, dtype=np.float32))
    window.units[:, 10:] = np.nan
    window.cumulative_units[:, 10:] = np.nan
    total = float(train.loss_of(model, window).total.detach())
    assert np.isfinite(total)
    window.cumulative_units[:, 20:] = 1e6  # units are still unknown there
    assert float(train.loss_of(model, window).total.detach()) == total
