"""The models that a backtest knows: baselines, weights in this process, a model that Triton serves."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from forecaster.baselines import empirical_forecast, seasonal_naive_forecast
from forecaster.contract import MODEL_NAME
from forecaster.inputs import ModelInputs, ModelOutputs
from worker.errors import BacktestError
from worker.forecast_client import ForecastClient
from worker.settings import Settings

SHIPPED = Path(__file__).resolve().parent.parent / "triton_models" / MODEL_NAME / "1"
NONE = "none"
_TRITON = "triton:"
_BASELINES: dict[str, Callable[[ModelInputs, int], ModelOutputs]] = {
    "empirical": empirical_forecast,
    "seasonal_naive": seasonal_naive_forecast,
}
# By name: it needs torch, which only those who ask for such a model pay for.
_PREDICTOR = "forecaster.predictor"


class BacktestModel(NamedTuple):
    """A model that answers one request after another."""

    name: str
    version: str
    forecast: Callable[[ModelInputs], Awaitable[ModelOutputs]]
    close: Callable[[], Awaitable[None]]


def refuse_unknown(text: str) -> None:
    """Raise BacktestError when `text` names no model that can be."""
    if text == NONE or text in _BASELINES or text.startswith(_TRITON) or (Path(text) / "config.json").is_file():
        return
    raise BacktestError(
        f"--model {text}: not a model. Name empirical, seasonal_naive, none, triton:NAME of a model that Triton "
        "serves, or a folder with config.json and model.safetensors"
    )


def calibrated_freqs(text: str, settings: Settings) -> tuple[str, ...]:
    """Of which frequencies the model's quantiles are adjusted: a baseline's never are, as in a worker."""
    return () if text in _BASELINES else settings.calibrated_freqs


async def load_model(text: str, settings: Settings) -> BacktestModel:
    """The model that `--model` names.

    Raises:
        BacktestError: it can't be loaded here.
        ModelError, ForecastUnavailableError: of a served model; see ForecastClient.
    """
    if text in _BASELINES:
        baseline = _BASELINES[text]

        async def by_baseline(inputs: ModelInputs) -> ModelOutputs:
            return baseline(inputs, inputs.known.shape[1] - inputs.context.shape[1])

        return BacktestModel(text, "1", by_baseline, _nothing_to_close)
    if text.startswith(_TRITON):
        return await _served(text.removeprefix(_TRITON), settings)
    return _weights(Path(text))


async def _nothing_to_close() -> None:
    return


async def _served(name: str, settings: Settings) -> BacktestModel:
    client = ForecastClient(
        settings.triton_url,
        model_name=name,
        model_version=settings.model_version,
        timeout_s=settings.triton_timeout_s,
        tls=settings.triton_tls,
    )
    await client.check_model()

    async def by_triton(inputs: ModelInputs) -> ModelOutputs:
        return (await client.forecast(inputs, wait=True)).outputs

    return BacktestModel(name, settings.model_version, by_triton, client.close)


def _weights(folder: Path) -> BacktestModel:
    try:
        predictor = importlib.import_module(_PREDICTOR).load_model(folder)
    except ModuleNotFoundError as error:
        raise BacktestError(f"a model of this process needs {error.name}: pip install 'shelfcast[embedded]'") from error
    except (OSError, ValueError) as error:
        raise BacktestError(f"the model in {folder} can't be loaded: {error}") from error

    async def by_weights(inputs: ModelInputs) -> ModelOutputs:
        outputs: ModelOutputs = predictor.forecast(inputs)
        return outputs

    # A version of a model repository is named by its number, below the model's own folder.
    name, version = (folder.parent.name, folder.name) if folder.name.isdigit() else (folder.name, "1")
    return BacktestModel(name, version, by_weights, _nothing_to_close)
