"""`shelfcast train`: the forecaster's command, where `--from` may also name what workers use now."""

from __future__ import annotations

import asyncio
import copy
import importlib
import os
from pathlib import Path
from typing import Any

import click

from worker.errors import ModelError
from worker.model import current_version
from worker.settings import Settings, load_settings

CHAMPION = "champion"
# By name: it needs torch, which a worker does without.
_train: click.Command = importlib.import_module("forecaster.train").command


class _TrainCommand(click.Command):
    """Has the options of the forecaster's command, and --repository."""

    def invoke(self, ctx: click.Context) -> Any:
        """Put the folder in the place of the word: what is stored of a run names the weights it began with."""
        repository = ctx.params.pop("repository")
        if ctx.params["from_"] == CHAMPION:
            ctx.params["from_"] = str(champion_folder(load_settings(os.environ), repository))
        return super().invoke(ctx)


def champion_folder(settings: Settings, repository: Path) -> Path:
    """The folder of the version that workers use now.

    Raises:
        ShelfcastError: Redis or Triton do not answer, no version is served, or the repository has no such version.
    """
    version = asyncio.run(current_version(settings))
    folder = (repository / settings.model_name / version).resolve()
    if not folder.is_dir():
        raise ModelError(
            f"--from champion: workers of namespace {settings.namespace!r} use version {version} of "
            f"{settings.model_name}, and {folder} is not there: name the repository that Triton serves by --repository"
        )
    click.echo(f"--from champion: version {version}, {folder}")
    return folder


def _params() -> list[click.Parameter]:
    own = click.Option(
        ["--repository"],
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("triton_models"),
        show_default=True,
        help="Triton's model repository, which has the weights of --from champion.",
    )
    out: list[click.Parameter] = []
    for parameter in _train.params:
        if isinstance(parameter, click.Option) and parameter.name == "from_":
            named = copy.copy(parameter)
            named.metavar = f"{CHAMPION}|{parameter.metavar}"
            named.help = f"{parameter.help} {CHAMPION}: those of the version that workers use now."
            out += [named, own]
        else:
            out.append(parameter)
    return out


command = _TrainCommand(_train.name, callback=_train.callback, params=_params(), help=_train.help)
