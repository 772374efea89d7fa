"""The models that a backtest knows, each against what it stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forecaster import predictor
from forecaster.baselines import empirical_forecast, seasonal_naive
from forecaster.contract import MODEL_NAME, QUANTILE_LEVELS
from tests.forecaster.builders import random_inputs
from worker.backtest_models import SHIPPED, load_model
from worker.errors import BacktestError, ForecastUnavailableError
from worker.local_server import free_port
from worker.local_triton import LocalTriton
from worker.settings import Settings


@pytest.mark.parametrize("freq", ["1h", "1d"])
async def test_a_folder_of_weights_forecasts_in_this_process(freq: str) -> None:
    inputs = random_inputs(freq, 40, 3)
    model = await load_model(str(SHIPPED), Settings())
    made, expected = await model.forecast(inputs), predictor.load_model(SHIPPED).forecast(inputs)
    assert all(np.array_equal(a, b) for a, b in zip(made, expected, strict=True))
    assert (model.name, model.version) == (MODEL_NAME, "1")  # as Triton would tell them


async def test_a_served_model_is_asked_as_a_worker_would(triton_server: LocalTriton) -> None:
    inputs = random_inputs("1d", 5, 4)
    model = await load_model(f"triton:{MODEL_NAME}", Settings(triton_url=triton_server.url))
    made = await model.forecast(inputs)
    await model.close()
    assert all(np.array_equal(a, b) for a, b in zip(made, predictor.load_model(SHIPPED).forecast(inputs), strict=True))


async def test_baselines_need_neither() -> None:
    inputs = random_inputs("1d", 6, 5)
    steps = inputs.known.shape[1] - inputs.context.shape[1]
    made = await (await load_model("empirical", Settings())).forecast(inputs)
    expected = empirical_forecast(inputs, steps)
    assert all(np.array_equal(a, b) for a, b in zip(made, expected, strict=True))
    naive = await (await load_model("seasonal_naive", Settings())).forecast(inputs)
    point = seasonal_naive(inputs, steps)
    assert np.array_equal(naive.mean, point)
    assert all(np.array_equal(naive.quantiles[:, :, level], point) for level in range(len(QUANTILE_LEVELS)))


async def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BacktestError, match=str(tmp_path)):
        await load_model(str(tmp_path), Settings())
    with pytest.raises(ForecastUnavailableError, match="does not answer"):
        await load_model("triton:any", Settings(triton_url=f"127.0.0.1:{free_port()}"))
