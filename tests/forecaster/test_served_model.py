"""The model in a real Triton, against the same weights called directly."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from forecaster import contract
from forecaster.export import export_folder
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.models.gbm_training import GbmPlan, train
from forecaster.predictor import load_model
from forecaster.serving import Serving
from tests.forecaster.builders import random_inputs, small_table
from worker.local_triton import LocalTriton

SHIPPED = Path(__file__).parents[2] / "triton_models" / contract.MODEL_NAME / "1"
Ask = Callable[[ModelInputs], ModelOutputs]


@pytest.fixture(scope="module")
def ask(triton_server: LocalTriton) -> Ask:
    return asking(triton_server)


def asking(server: LocalTriton) -> Ask:
    client = triton.InferenceServerClient(server.url)

    def infer(inputs: ModelInputs) -> ModelOutputs:
        sent = []
        for tensor, values in zip(contract.INPUTS, inputs, strict=True):
            one = triton.InferInput(tensor.name, list(values.shape), tensor.triton_type.removeprefix("TYPE_"))
            one.set_data_from_numpy(values)
            sent.append(one)
        result = client.infer(contract.MODEL_NAME, sent)
        return ModelOutputs(*(result.as_numpy(tensor.name) for tensor in contract.OUTPUTS))

    return infer


@pytest.mark.parametrize("freq", ["1h", "1d"])
def test_triton_gives_the_very_forecasts_of_the_weights(ask: Ask, freq: str) -> None:
    inputs = random_inputs(freq, 100, 3)
    direct = load_model(SHIPPED).forecast(inputs)
    assert all(np.array_equal(a, b) for a, b in zip(ask(inputs), direct, strict=True))


def test_a_bad_request_fails_alone(ask: Ask) -> None:
    good, bad = random_inputs("1d", 3, 1), random_inputs("1d", 3, 2)
    bad.freq.fill(contract.FREQ_CODES["1h"])
    expected = ask(good)
    answers: list[ModelOutputs] = []
    errors: list[str] = []

    def send(inputs: ModelInputs) -> None:
        try:
            answers.append(ask(inputs))
        except InferenceServerException as error:
            errors.append(str(error))

    # At once, so that the server may put them into one batch.
    threads = [threading.Thread(target=send, args=(inputs,)) for inputs in (good, bad) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    assert all("1h" in message for message in errors)
    assert len(answers) == 4
    for answer in answers:
        assert all(np.array_equal(a, b) for a, b in zip(answer, expected, strict=True))


def test_the_server_says_which_features_the_model_was_trained_on(triton_server: LocalTriton) -> None:
    config = triton.InferenceServerClient(triton_server.url).get_model_config(contract.MODEL_NAME).config
    assert config.parameters["features_hash"].string_value == contract.features_hash()


def test_trees_are_exported_and_served_like_any_model(tmp_path: Path) -> None:
    table = small_table()
    rows = np.flatnonzero(table.first_bucket < table.end_bucket.max() - 60)
    running = np.full(len(rows), table.end_bucket.max() - 30)
    plan = GbmPlan(mean_trees=5, quantile_trees=5, leaves=4, least_rows=5, levels=(0.1, 0.5, 0.9))
    train({"1d": [table.windows(rows, running, 28)]}, {}, plan, contract.NO_COVARIATES).save(tmp_path / "trees")
    export_folder(tmp_path / "trees", tmp_path / "models", None, Serving())
    inputs = random_inputs("1d", 100, 3)
    with LocalTriton(tmp_path / "triton", tmp_path / "models") as server:
        served = asking(server)(inputs)
    assert all(
        np.array_equal(a, b) for a, b in zip(served, load_model(tmp_path / "trees").forecast(inputs), strict=True)
    )
