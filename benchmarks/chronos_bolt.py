"""The architecture of Chronos-Bolt tiny, with random weights: a forward pass takes as long with any."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from chronos.chronos_bolt import ChronosBoltModelForForecasting
from numpy.typing import NDArray
from transformers import T5Config

# Of the published config.json of amazon/chronos-bolt-tiny, where context and horizon are 2,048 and 64.
_SIZES = {
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}


class ChronosBoltTiny:
    """Quantiles of `prediction_length` steps from `context_length` of one channel, in one forward pass."""

    def __init__(self, context_length: int, prediction_length: int, threads: int) -> None:
        config = T5Config(
            **_SIZES,
            chronos_config={
                "context_length": context_length,
                "prediction_length": prediction_length,
                "input_patch_size": 16,
                "input_patch_stride": 16,
                "quantiles": [level / 10 for level in range(1, 10)],
                "use_reg_token": True,
            },
        )
        torch.manual_seed(0)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = ChronosBoltModelForForecasting(config).eval().to(self._device)
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def forecast(self, units: NDArray[np.float32]) -> NDArray[np.float32]:
        """(item, context_length) to (item, quantile, step): all items in one batch, as its own pipeline does it."""
        torch.set_num_threads(self._threads)
        return self._one_batch(units)

    def forecast_in_parts(self, units: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same in one batch a thread: faster where other programs want the cores, since no thread waits for
        another within a product."""
        parts = [part for part in np.array_split(units, self._threads) if len(part)]
        return np.concatenate(list(self._executor.map(self._one_batch, parts)))

    def _one_batch(self, units: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            quantiles = self._model(context=torch.from_numpy(units).to(self._device)).quantile_preds
        made: NDArray[np.float32] = quantiles.cpu().numpy()
        return made
