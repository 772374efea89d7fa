"""Accuracy on real shops: our models beside well-kept libraries, each on the same steps of the same items.

The data are public sets that are not in this repository, as Parquet files of one folder (`--data`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.accuracy_models import OWN, Own, own_contestants
from benchmarks.accuracy_tasks import FREQS, TASKS, Task, m5
from benchmarks.report import show
from forecaster import wrmsse
from forecaster.baselines_mlforecast import LightGbm
from forecaster.baselines_statsforecast import FAST, SLOW, StatsForecast
from forecaster.contract import QUANTILE_LEVELS
from forecaster.rolling_origins import Contestants, Forecasts, Integers, seasonal_scale, targets
from forecaster.score_sums import ScoreSums
from forecaster.score_table import sums_of, table_of

_SHOWN = ("wrmsse", "sql", "mase", "wql", "wape", "rmse", "calibration_worst", "bias", "train_minutes")
_CACHE = Path.home() / ".cache" / "shelfcast" / "accuracy"


def judge(task: Task, contestants: Sequence[Contestants], rows: Integers) -> dict[str, dict[str, float]]:
    """Scores by name, over all origins."""
    sums: dict[str, ScoreSums] = {}
    more: dict[str, dict[str, float]] = {}
    for running in task.origins:
        target = targets(task.table, rows, running, task.prediction_length)
        scale = seasonal_scale(task.table, rows, running, task.season)
        for contestant in contestants:
            for name, said in contestant.forecast(task.table, rows, running, task.prediction_length).items():
                found = sums_of(target, said, scale)
                if name in sums:
                    sums[name].merge(found)
                else:
                    sums[name] = found
                more[name] = _wrmsse(task, rows, target, said)
    return {name: table_of(total) | more[name] for name, total in sums.items()}


def _wrmsse(task: Task, rows: Integers, target: np.ndarray[Any, Any], said: Forecasts) -> dict[str, float]:
    if task.hierarchy is None or len(rows) < len(task.table):
        return {}
    return {"wrmsse": float(wrmsse.wrmsse(*_in_full(task), target, said.mean).mean())}


def _in_full(task: Task) -> tuple[Any, Any]:
    assert task.hierarchy is not None
    return task.hierarchy.levels, task.hierarchy.weights


def _libraries(task: Task, wanted: Sequence[str]) -> list[Contestants]:
    names = [name for name in (*FAST, *SLOW) if name in wanted]
    made: list[Contestants] = [StatsForecast(names)] if names else []
    return made + ([LightGbm(known=task.covariates.known)] if "lightgbm" in wanted else [])


def _figures(task: Task, own: dict[str, Own], libraries: Sequence[Contestants]) -> dict[str, Any]:
    mine = [model.contestant for model in own.values()]
    whole = len(task.sample) == len(task.rows)
    scores = judge(task, mine + list(libraries) if whole else mine, task.rows)
    minutes = {name: {"train_minutes": round(model.train_minutes, 2)} for name, model in own.items()}
    figures: dict[str, Any] = {
        "dataset": task.name,
        "freq": task.table.freq,
        "split": task.split,
        "series": len(task.rows),
        "models": {name: _chosen(row | minutes.get(name, {})) for name, row in scores.items()},
    }
    if not whole:
        sample = judge(task, mine + list(libraries), task.sample)
        figures["sample"] = {
            "series": len(task.sample),
            "models": {name: _chosen(row | minutes.get(name, {})) for name, row in sample.items()},
        }
    return figures


def _chosen(row: dict[str, float]) -> dict[str, float]:
    return {name: round(row[name], 5) for name in _SHOWN if name in row and np.isfinite(row[name])}


def _table(models: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    columns = [name for name in _SHOWN if any(name in row for row in models.values())]
    ranked = sorted(models, key=lambda name: models[name].get("wql", np.inf))
    rows = [[name, *(f"{models[name][c]:.4g}" if c in models[name] else "" for c in columns)] for name in ranked]
    return ["model", *columns], rows


def write_forecasts(task: Task, contestant: Contestants, path: Path) -> None:
    """A contestant's forecasts from the first origin, one line a series and step; to hundredths of a unit, which makes
    the file a third as large."""
    steps = task.prediction_length
    said = next(iter(contestant.forecast(task.table, task.rows, task.origins[0], steps).values()))
    columns = {
        "item_id": np.repeat([task.table.item_ids[row] for row in task.rows.tolist()], steps),
        "step": np.tile(np.arange(1, steps + 1, dtype=np.int16), len(task.rows)),
        "mean": said.mean.ravel().round(2),
    }
    for place, level in enumerate(QUANTILE_LEVELS):
        columns[f"q{level:g}"] = said.quantiles[:, :, place].ravel().round(2)
    pq.write_table(pa.table(columns), path, compression="zstd", compression_level=12)


@click.command()
@click.option("--dataset", type=click.Choice(list(TASKS)), required=True, help="Which shop.")
@click.option("--freq", type=click.Choice(["1h", "1d", "1w"]), help="Which of its frequencies.  [default: the first]")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("../shared/data"),
    show_default=True,
    help="Folder of the Parquet files.",
)
@click.option("--models", default=",".join(OWN), show_default=True, help="Which of ours.")
@click.option(
    "--libraries",
    default="seasonal_naive,auto_ets,theta,croston,croston_sba,imapa,lightgbm",
    show_default=True,
    help="Which of others, or none.",
)
@click.option("--minutes", default=20.0, show_default=True, help="Training of each transformer; half to tune one.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    default=_CACHE,
    help="Folder where trained models stay.  [default: ~/.cache/shelfcast/accuracy]",
)
@click.option("--final", is_flag=True, help="M5: learn from all that is known, and write forecasts of what follows.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Parquet file for --final.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(  # noqa: PLR0913 - one parameter an option
    dataset: str,
    freq: str | None,
    data: Path,
    models: str,
    libraries: str,
    minutes: float,
    keep: Path,
    final: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Score forecasts of a real shop."""
    freq = freq or FREQS[dataset][0]
    if freq not in FREQS[dataset]:
        raise click.UsageError(f"{dataset} is forecast by {' and '.join(FREQS[dataset])}, not by {freq}")
    wanted = tuple(name for name in models.split(",") if name and name != "none")
    unknown = [name for name in wanted if name not in OWN]
    if unknown:
        raise click.UsageError(f"--models {unknown[0]}: not one of {', '.join(OWN)}")
    if final:
        if dataset != "m5" or output is None:
            raise click.UsageError("--final is for --dataset m5, and needs --output FILE")
        task = m5(data, final=True)
        own = own_contestants(task, keep / "m5-final", minutes, wanted)
        write_forecasts(task, list(own.values())[-1].contestant, output)
        click.echo(f"{list(own)[-1]}: forecasts of {task.split} are in {output}")
        return
    task = TASKS[dataset](data, freq)
    own = own_contestants(task, keep / f"{dataset}-{freq}", minutes, wanted)
    figures = _figures(task, own, _libraries(task, libraries.split(",")))
    header, rows = _table(figures.get("sample", figures)["models"])
    show(task.split, header, rows, figures, as_json)


if __name__ == "__main__":
    command()
