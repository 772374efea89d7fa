from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from feature_store.features import FEATURE_INDEX
from forecaster import contract
from forecaster.inputs import ModelInputs, ModelOutputs, check
from forecaster.models.normalise import RESOLUTIONS
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import FeaturesMismatchError, PatchTransformer, load, parameter_count
from forecaster.passes import forecast
from tests.forecaster.builders import random_inputs, take

UNITS = FEATURE_INDEX["units"]
FREQS = sorted(RESOLUTIONS)
SHIPPED = Path(__file__).parents[2] / "triton_models" / contract.MODEL_NAME / "1"


@pytest.fixture(scope="module", params=["untrained", "shipped"])
def model(request: pytest.FixtureRequest) -> PatchTransformer:
    """Promises are kept by construction: by weights that have learnt nothing and by those that are served."""
    if request.param == "shipped":
        return load(SHIPPED)
    torch.manual_seed(1)
    made = PatchTransformer(PatchTransformerConfig(freqs=FREQS))
    with torch.no_grad():  # far from any initialisation, so that nothing holds by smallness
        for parameter in made.outputs.parameters():
            parameter.add_(torch.randn_like(parameter))
    made.eval()
    return made


def same(a: ModelOutputs, b: ModelOutputs) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("freq", FREQS)
@pytest.mark.parametrize("seed", range(2))
def test_any_forecast_keeps_the_contracts_promises(model: PatchTransformer, freq: str, seed: int) -> None:
    inputs = random_inputs(freq, 64, seed)
    steps = contract.WINDOWS[freq].max_prediction_length
    quantiles, mean, cumulative = forecast(model, inputs)
    running = inputs.running[:, UNITS]
    assert quantiles.shape == cumulative.shape == (64, steps, len(contract.QUANTILE_LEVELS))
    assert mean.shape == (64, steps)
    assert all(np.isfinite(values).all() for values in (quantiles, mean, cumulative))
    assert (np.diff(quantiles, axis=2) >= 0).all()
    assert quantiles.min() >= 0
    assert (quantiles[:, 0] >= running[:, None]).all()
    assert (mean[:, 0] >= running).all()
    assert (np.diff(cumulative, axis=1) >= 0).all()
    assert (np.diff(cumulative, axis=2) >= 0).all()
    assert cumulative[:, 0] == pytest.approx(quantiles[:, 0] - running[:, None], rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("freq", FREQS)
def test_a_rows_forecast_is_the_same_bits_whatever_stands_beside_it(model: PatchTransformer, freq: str) -> None:
    inputs = random_inputs(freq, 70, 9)
    together = forecast(model, inputs)
    for row in (0, 63, 66):
        alone = forecast(model, take(inputs, [row]))
        assert same(alone, ModelOutputs(*(values[row : row + 1] for values in together)))
    shuffled = np.random.default_rng(0).permutation(70).tolist()
    mixed = forecast(model, take(inputs, shuffled))
    assert same(mixed, ModelOutputs(*(values[shuffled] for values in together)))


@pytest.mark.parametrize("freq", FREQS)
def test_nothing_known_of_an_item_still_gives_a_forecast(model: PatchTransformer, freq: str) -> None:
    inputs = random_inputs(freq, 2, 0)
    inputs.context.fill(np.nan)
    inputs.available_fraction.fill(np.nan)
    inputs.running.fill(0)
    inputs.static.fill(np.nan)
    for values in forecast(model, inputs):
        assert np.isfinite(values).all()


@pytest.mark.parametrize("freq", FREQS)
def test_an_ended_bucket_is_its_observed_total(model: PatchTransformer, freq: str) -> None:
    inputs = random_inputs(freq, 8, 4)
    inputs.elapsed_fraction.fill(1.0)
    quantiles, mean, cumulative = forecast(model, inputs)
    assert np.array_equal(quantiles[:, 0], np.repeat(inputs.running[:, UNITS, None], quantiles.shape[2], axis=1))
    assert np.array_equal(mean[:, 0], inputs.running[:, UNITS])
    assert cumulative[:, 0].max() == 0


@pytest.mark.parametrize("freq", FREQS)
def test_what_lies_before_an_items_first_bucket_is_not_read(model: PatchTransformer, freq: str) -> None:
    inputs = random_inputs(freq, 16, 5)
    noisy = inputs.context.copy()
    unseen = np.isnan(noisy[:, :, UNITS])
    noisy[unseen, 1:] = 1234.0  # units stay NaN: the bucket was not observed
    assert same(forecast(model, inputs), forecast(model, inputs._replace(context=noisy)))


def test_fewer_steps_than_the_longest_can_be_asked_for(model: PatchTransformer) -> None:
    for freq in FREQS:
        assert forecast(model, random_inputs(freq, 3, 1, steps=5)).mean.shape == (3, 5)


def test_saved_and_loaded_it_forecasts_the_same(model: PatchTransformer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    inputs = random_inputs("1d", 3, 6)
    assert same(forecast(load(tmp_path), inputs), forecast(model, inputs))


def test_weights_of_other_features_are_refused(tmp_path: Path) -> None:
    PatchTransformer(PatchTransformerConfig()).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace(contract.features_hash(), "0123456789abcdef"))
    with pytest.raises(FeaturesMismatchError, match="0123456789abcdef"):
        load(tmp_path)
    with pytest.raises(FeaturesMismatchError):
        PatchTransformer.from_pretrained(tmp_path)


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    PatchTransformer(PatchTransformerConfig()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("norm.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm\.weight"):
        load(tmp_path)


def test_its_weights_are_a_few_megabytes() -> None:
    assert parameter_count(load(SHIPPED)) < 1_500_000


def spoilt(inputs: ModelInputs, name: str, value: NDArray[Any]) -> ModelInputs:
    return inputs._replace(**{name: value})


def test_inputs_that_are_not_the_contracts_are_refused_by_name() -> None:
    inputs = random_inputs("1d", 4, 0)
    check(inputs)
    mixed = inputs.freq.copy()
    mixed[0] = contract.FREQ_CODES["1h"]
    for wrong, message in (
        (spoilt(inputs, "freq", mixed), "freq"),
        (spoilt(inputs, "freq", np.full((4, 1), 99, dtype=np.int32)), "freq"),
        (spoilt(inputs, "context", inputs.context[:, 1:]), "context"),
        (spoilt(inputs, "known", inputs.known[:, : inputs.context.shape[1]]), "prediction"),
        (spoilt(inputs, "static", inputs.static[:, :2]), "static"),
        (spoilt(inputs, "running", inputs.running[:3]), "running"),
    ):
        with pytest.raises(ValueError, match=message):
            check(wrong)


def test_a_freq_that_was_not_trained_is_refused() -> None:
    daily = PatchTransformer(PatchTransformerConfig(freqs=("1d",)))
    with pytest.raises(ValueError, match=r"this model forecasts \['1d'\]"):
        forecast(daily, random_inputs("1w", 2, 0))


@pytest.mark.parametrize("freq", FREQS)
def test_an_item_that_sells_whole_units_gets_whole_quantiles(model: PatchTransformer, freq: str) -> None:
    inputs = random_inputs(freq, 32, 3)
    made = forecast(model, inputs)
    assert np.array_equal(made.quantiles, made.quantiles.round())
    assert np.array_equal(made.cumulative_quantiles, made.cumulative_quantiles.round())
    by_weight = inputs._replace(context=inputs.context * np.float32(0.313))
    assert not np.array_equal(forecast(model, by_weight).quantiles.round(), forecast(model, by_weight).quantiles)


def test_covariates_are_read_in_their_own_units() -> None:
    """The mean and deviation of the training data are part of the weights: scaling both changes nothing."""
    torch.manual_seed(0)
    config = PatchTransformerConfig(freqs=("1d",), past_covariates=("rain",), known_covariates=("snap",))
    rng = np.random.default_rng(0)
    plain = random_inputs("1d", 8, 0)
    rain = rng.normal(5, 2, (*plain.context.shape[:2], 1)).astype(np.float32)
    snap = (rng.random((*plain.known.shape[:2], 1)) < 0.4).astype(np.float32)

    def asked(rain_factor: float, snap_factor: float) -> ModelOutputs:
        torch.manual_seed(1)
        made = PatchTransformer(config).eval()
        inputs = plain._replace(
            context=np.concatenate([plain.context, rain * np.float32(rain_factor)], axis=2),
            known=np.concatenate([plain.known, snap * np.float32(snap_factor)], axis=2),
            running=np.concatenate([plain.running, np.zeros((8, 1), np.float32)], axis=1),
        )
        made.fit_covariates(torch.from_numpy(inputs.context), torch.from_numpy(inputs.known))
        return forecast(made, inputs, config.covariates)

    first, scaled = asked(1, 1), asked(10, 0.01)
    assert scaled.mean == pytest.approx(first.mean, rel=1e-3)
    assert not same(first, asked(1, 0))
