"""Ways of serving one model: each gives the forecasts of the plain one, and of a row whatever stands beside it."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from forecaster.inputs import ModelOutputs
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import PatchTransformer
from forecaster.predictor import load_model
from forecaster.serving import PRECISIONS, Serving
from tests.forecaster.builders import random_inputs, take

WAYS = list(itertools.product(PRECISIONS, ["none", "trace"]))
PLAIN = Serving("fp32", "none")
TOLERANCE = {"fp32": 1e-5, "bf16": 0.01, "fp16": 0.001}  # sum of differences / sum of forecasts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with every head at work."""
    target = tmp_path_factory.mktemp("model")
    PatchTransformer(PatchTransformerConfig(width=32, layers=2, heads=2, step_width=16)).save_pretrained(target)
    return target


def difference(a: ModelOutputs, b: ModelOutputs) -> float:
    return max(float(np.abs(x - y).sum() / np.abs(y).sum()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("precision", "compile_"), WAYS)
def test_a_way_of_serving_gives_the_plain_forecasts(folder: Path, precision: str, compile_: str) -> None:
    model, plain = load_model(folder, serving=Serving(precision, compile_)), load_model(folder, serving=PLAIN)
    for freq, steps in (("1d", None), ("1d", 5), ("1h", None)):
        inputs = random_inputs(freq, 40, 3, steps)
        served, expected = model.forecast(inputs), plain.forecast(inputs)
        assert served.quantiles.dtype == np.float32
        assert difference(served, expected) <= TOLERANCE[precision]
        assert precision == "fp32" or difference(served, expected) > 0, "the precision is not in use"


@pytest.mark.parametrize(("precision", "compile_"), WAYS)
def test_a_row_is_the_same_bits_whatever_stands_beside_it(folder: Path, precision: str, compile_: str) -> None:
    inputs = random_inputs("1d", 100, 4)
    serving = Serving(precision, compile_)
    together = load_model(folder, serving=serving, threads=2).forecast(inputs)
    model = load_model(folder, serving=serving)
    for rows in ([7], [99, 7, 0], [31, 32, 33]):
        alone = model.forecast(take(inputs, rows))
        assert all(np.array_equal(a, b[rows]) for a, b in zip(alone, together, strict=True))


def test_compiled_kernels_give_the_plain_forecasts_of_any_rows(folder: Path) -> None:
    """The one way that needs a C++ compiler, and half a minute for one length."""
    inputs = random_inputs("1d", 40, 3)
    model = load_model(folder, serving=Serving("fp32", "compile"), threads=2)
    together = model.forecast(inputs)
    assert difference(together, load_model(folder, serving=PLAIN).forecast(inputs)) <= TOLERANCE["fp32"]
    alone = model.forecast(take(inputs, [39, 2]))
    assert all(np.array_equal(a, b[[39, 2]]) for a, b in zip(alone, together, strict=True))


def test_a_graph_is_the_same_bits_from_its_first_call_on(folder: Path) -> None:
    inputs = random_inputs("1h", 3, 4)
    model = load_model(folder)
    first = model.forecast(inputs)
    for _ in range(4):
        assert all(np.array_equal(a, b) for a, b in zip(model.forecast(inputs), first, strict=True))


def test_the_config_says_how_a_model_is_served(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"serving": {"precision": "bf16", "compile": "none"}}))
    inputs = random_inputs("1d", 5, 1)
    expected = load_model(folder, serving=Serving("bf16", "none")).forecast(inputs)
    assert np.array_equal(load_model(tmp_path).forecast(inputs).quantiles, expected.quantiles)
    (tmp_path / "config.json").write_text(json.dumps(config | {"serving": {"precision": "int3"}}))
    with pytest.raises(ValueError, match="precision is one of fp32, bf16, fp16"):
        load_model(tmp_path)
