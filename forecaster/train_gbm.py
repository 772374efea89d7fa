"""`shelfcast train --model gbm`: windows drawn once, trees grown of them, written to the run's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np

from forecaster.accuracy import wql
from forecaster.batches import FREQ_SHARES
from forecaster.contract import QUANTILE_LEVELS
from forecaster.dataset import Window
from forecaster.models.gbm import GbmModel
from forecaster.models.gbm_training import GbmPlan, train
from forecaster.run_folder import RunFolder
from forecaster.train_options import stored_form
from forecaster.train_sources import Named

_BATCHES = 200


def grow(named: Named, arguments: Mapping[str, Any], run: RunFolder) -> None:
    """Trees of the named sources, of `--steps` batches together.

    Raises:
        click.UsageError: nothing is held out, so nothing says when to stop.
    """
    batches, validation = named.batches, named.validation
    missing = [freq for freq in batches.freqs if freq not in validation]
    if missing:
        raise click.UsageError(f"trees need held-out {missing[0]} buckets to know when to stop: --held-out above 0")
    started = time.monotonic()
    shares = sum(FREQ_SHARES[freq] for freq in batches.freqs)
    windows = {}
    for freq in batches.freqs:
        count = max(round((arguments["steps"] or _BATCHES) * FREQ_SHARES[freq] / shares), 1)
        windows[freq] = [batches.draw(step, freq=freq) for step in range(1, count + 1)]
    model = train(windows, validation, GbmPlan(seed=arguments["seed"]), batches.covariates)
    model.save(run.folder)
    scores = {freq: _score(model, some) for freq, some in validation.items()}
    run.write_summary(
        {
            "status": "finished",
            "arguments": stored_form(arguments),
            "seed": arguments["seed"],
            "data": named.described(),
            "minutes": round((time.monotonic() - started) / 60, 3),
            "scores": scores,
        }
    )
    told = ", ".join(f"{freq} {score:.4f}" for freq, score in scores.items())
    click.echo(f"the trees are in {run.folder}; WQL of the held-out windows: {told}")


def _score(model: GbmModel, windows: Sequence[Window]) -> float:
    units = np.concatenate([window.units for window in windows])
    quantiles = np.concatenate([model.forecast(window.inputs).quantiles for window in windows])
    return wql(units, quantiles, QUANTILE_LEVELS)
