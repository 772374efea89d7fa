"""`shelfcast evaluate`: models beside baselines on a shop's own past sales, by a rolling-origin backtest."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from forecaster.contestants import empirical, of_model
from forecaster.contract import WINDOWS
from forecaster.evaluation import Group, Plan, draw_sample, evaluate
from forecaster.evaluation_summary import summarise, tables
from forecaster.group_sales import GroupError, GroupScaled
from forecaster.predictor import DemandModel, load_model
from forecaster.rolling_origins import origins_of
from forecaster.score_table import SEASONS
from forecaster.series import SeriesTable
from forecaster.series_options import LoadedSeries, cleaning_options, load_series, series_options
from forecaster.train_options import shipped_model

# By what they cost a series: under five milliseconds, a hundred; LightGBM is trained anew at every origin.
_FAST = ("naive", "seasonal_naive", "croston", "croston_sba", "adida", "imapa", "tsb")
_SLOW = ("auto_ets", "theta")
_LIGHTGBM = ("lightgbm", "lightgbm_scaled")
BASELINES: tuple[str, ...] = ("empirical", *_FAST, *_SLOW, *_LIGHTGBM)
_NO_MODEL = "none"


def models_of(texts: Sequence[str], freq: str) -> dict[str, DemandModel]:
    """Models by name, of `--model`.

    Raises:
        click.ClickException: one can't be loaded, or does not know the freq.
        click.UsageError: two have one name.
    """
    if _NO_MODEL in texts:
        return {}
    found: dict[str, DemandModel] = {}
    for text in texts or (f"shelfcast={shipped_model()}",):
        name, equals, path = text.partition("=")
        folder = Path(path if equals else name)
        name = name if equals else folder.resolve().name
        if name in found or name in BASELINES:
            raise click.UsageError(f"two contestants are called {name}: give one a name of its own, --model NAME=DIR")
        try:
            model = load_model(folder, threads=os.cpu_count() or 1)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise click.ClickException(f"--model {text}: {error}") from error
        if freq not in model.freqs:
            raise click.ClickException(
                f"--model {text} was trained for {', '.join(model.freqs)}, not for {freq}: take one of those, or train "
                f"one for {freq}"
            )
        found[name] = model
    return found


def baselines_of(text: str) -> tuple[str, ...]:
    """Names of baselines, of `--baselines`.

    Raises:
        click.UsageError: there is none of such a name.
    """
    if text in ("none", "all"):
        return BASELINES if text == "all" else ()
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in BASELINES:
            raise click.UsageError(f"--baselines {name}: there are {', '.join(BASELINES)}; also all, and none")
    return names


def groups_of(
    models: dict[str, DemandModel], names: Sequence[str], known: Sequence[str], *, scaled: bool = False
) -> list[Group]:
    """Who takes part.

    Args:
        models: by name. names: of baselines.
        known: columns of the table, beyond the contract's, that are known ahead.
        scaled: each model a second time, its forecasts scaled to what groups of items sell.

    Raises:
        click.ClickException: a library is not installed.
    """
    groups = [Group(of_model(name, model), everywhere=True) for name, model in models.items()]
    if scaled:
        members = [(name, of_model(name, model)) for name, model in models.items()]
        groups += [Group(GroupScaled(f"{name}_scaled", m, ("event", *known)), everywhere=True) for name, m in members]
    if "empirical" in names:
        groups.append(Group(empirical(), everywhere=True))
    fast, slow = [n for n in _FAST if n in names], [n for n in _SLOW if n in names]
    try:
        # Imported here: they take seconds, and who scores models alone need not have them.
        if fast or slow:
            from forecaster.baselines_statsforecast import StatsForecast  # noqa: PLC0415 - only who asks for it needs it

            groups += [Group(StatsForecast(part), part is fast) for part in (fast, slow) if part]
        if boosted := [name for name in _LIGHTGBM if name in names]:
            from forecaster.baselines_mlforecast import LightGbm  # noqa: PLC0415 - the same

            groups += [Group(LightGbm(known=known, scaled=name == _LIGHTGBM[1]), False) for name in boosted]
    except ModuleNotFoundError as error:
        raise click.ClickException(f"baselines need {error.name}: pip install 'shelfcast[train]'") from error
    return groups


def plan_of(table: SeriesTable, arguments: dict[str, Any]) -> Plan:
    """What is asked of everyone.

    Raises:
        click.ClickException: the table is too short for it.
        click.UsageError: the horizon is longer than models can look.
    """
    longest = WINDOWS[table.freq].max_prediction_length
    steps = arguments["prediction_length"] or longest
    if steps > longest:
        raise click.UsageError(
            f"--prediction-length {steps}: models look at most {longest} buckets of {table.freq} ahead"
        )
    try:
        origins = origins_of(table, arguments["origins"], arguments["stride"] or steps, steps)
    except ValueError as error:
        raise click.ClickException(f"{error}; lower --origins, --stride or --prediction-length") from error
    sample = draw_sample(table, origins, arguments["baseline_series"], arguments["seed"])
    return Plan(origins, steps, arguments["season"] or SEASONS[table.freq], sample)


def write(folder: Path, summary: dict[str, Any], page: bytes) -> None:
    """Write scores.json and report.html into a folder, which need not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_bytes(page)


@click.command("evaluate")
@series_options
@cleaning_options
@click.option(
    "--prediction-length",
    type=click.IntRange(min=1),
    help="Buckets forecast from each origin.  [default: the most that models can]",
)
@click.option(
    "--origins", type=click.IntRange(min=1), default=1, show_default=True, help="How many times to look ahead."
)
@click.option("--stride", type=click.IntRange(min=1), help="Buckets between origins.  [default: --prediction-length]")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Folder of a model; may be given again. none = baselines alone.  [default: the shipped one]",
)
@click.option(
    "--baselines",
    default="all",
    show_default=True,
    metavar="NAMES",
    help=f"all, none, or some of {','.join(BASELINES)}.",
)
@click.option(
    "--baseline-series",
    type=click.IntRange(min=1),
    default=2_000,
    show_default=True,
    help="On how many series, drawn at random, the slow baselines (AutoETS, Theta, LightGBM) run.",
)
@click.option("--seed", default=0, show_default=True, help="Of that draw.")
@click.option(
    "--follow-groups",
    is_flag=True,
    help="Each model a second time, scaled to what its items' categories and brands sell together.",
)
@click.option(
    "--season",
    type=click.IntRange(min=1),
    help="Lag of the naive forecast that scales MASE and SQL.  [default: 24 for 1h, 7 for 1d, 1 for 1w, as fev-bench]",
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for scores.json and report.html."
)
@click.option("--json", "as_json", is_flag=True, help="Print all scores as one line of JSON instead of tables.")
def command(as_json: bool, output: Path | None, **arguments: Any) -> None:
    """Score models and baselines on past sales: at each of some origins everyone forecasts what came next.

    What cleaning takes for not known is not scored either.
    """
    messages = Console(stderr=True)
    names = baselines_of(arguments["baselines"])
    models = models_of(arguments["models"], arguments["freq"])
    if not (models or names):
        raise click.UsageError("nobody takes part: --model none needs --baselines")
    loaded: LoadedSeries = load_series(arguments, console=messages)
    plan = plan_of(loaded.table, arguments)
    groups = groups_of(models, names, loaded.covariates.known, scaled=arguments["follow_groups"])
    try:
        with messages.status("evaluating") as status:
            found = evaluate(loaded.table, plan, groups, progress=lambda text: status.update(f"evaluating, {text}"))
    except GroupError as error:
        raise click.ClickException(f"--follow-groups: {error}") from error
    summary = summarise(found, loaded.table)
    if output is not None:
        from forecaster.evaluation_report import render_report  # noqa: PLC0415 - matplotlib, for who wants a report

        write(output, summary, render_report(found, loaded.table, summary).encode())
        messages.print(f"written: {output / 'scores.json'}, {output / 'report.html'}")
    if as_json:
        click.echo(json.dumps(summary))
    else:
        # Narrower than this, figures would be cut off.
        screen = Console(width=max(Console().width, 100))
        for table in tables(summary):
            screen.print(table)
