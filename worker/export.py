"""`shelfcast export`: a trained model becomes a version that Triton serves."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

import click

from forecaster.contract import MODEL_NAME, NO_COVARIATES
from forecaster.serving import COMPILES, PRECISIONS, Serving
from worker.errors import ModelError
from worker.forecast_client import ForecastClient

# By name: they need torch, which the worker's own commands do without.
_EXPORT = "forecaster.export"
_ONNX = "forecaster.onnx_files"
_TIMEOUT_S = 600.0  # a version that is compiled for its machine takes a minute or two to load


@click.command("export")
@click.option(
    "--model", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="A trained model."
)
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("triton_models"),
    show_default=True,
    help="Triton's model repository; made where it is not there.",
)
@click.option("--version", default="next", show_default=True, help="Number of the version, or next.")
@click.option("--replace", is_flag=True, help="Also when that version is there. One in use is away while it reloads.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Of products.")
@click.option("--compile", "compile_", type=click.Choice(COMPILES), default="trace", show_default=True)
@click.option("--onnx", type=click.Path(dir_okay=False, path_type=Path), help="Also write FILE.FREQ.onnx.")
@click.option("--triton", "triton_url", help="HOST:PORT (gRPC) of a Triton that serves the repository: load it there.")
def command(  # noqa: PLR0913 - one parameter an option
    model: Path,
    repository: Path,
    version: str,
    replace: bool,
    precision: str,
    compile_: str,
    onnx: Path | None,
    triton_url: str | None,
) -> None:
    """Make a trained model a version that Triton serves, held against torch first.

    The version is written, loaded, warmed, and its forecasts of random inputs compared with those of the plain model
    before it gets its place. Running workers do not use it before `shelfcast model use` says so.
    """
    if version != "next" and not (version.isdecimal() and int(version)):
        raise click.UsageError(f"--version {version}: a number from 1 on, or next")
    number = None if version == "next" else int(version)
    try:
        exporter = importlib.import_module(_EXPORT)
        made = exporter.export_folder(model, repository, number, Serving(precision, compile_), replace=replace)
        click.echo(f"{made.folder}: version {made.version}, {made.difference:.1e} of the forecasts' sum off torch's")
        for file in importlib.import_module(_ONNX).write_onnx(model, onnx) if onnx else ():
            click.echo(f"{file}")
        if triton_url:
            tolerance = exporter.TOLERANCES[precision]
            found = asyncio.run(_check_through_triton(triton_url, made, exporter))
            if not found <= tolerance:
                raise ModelError(
                    f"through Triton version {made.version} is {found:.2g} of the forecasts' sum off torch's, more "
                    f"than {tolerance:g}: do not use it; is the Triton at {triton_url} of this release?"
                )
            click.echo(f"loaded by Triton at {triton_url}, {found:.1e} off torch's; workers take it by:")
    except ModuleNotFoundError as error:
        raise click.ClickException(f"this needs {error.name}: pip install 'shelfcast[train]'") from error
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"shelfcast model use {made.version}")


async def _check_through_triton(url: str, made: Any, exporter: Any) -> float:
    """Load the version there. Returns by how much its forecasts differ from those of the same folder here."""
    here = importlib.import_module("forecaster.predictor").load_model(made.folder)
    client = ForecastClient(url, model_name=MODEL_NAME, model_version=str(made.version), timeout_s=_TIMEOUT_S)
    try:
        await client.load(_TIMEOUT_S)
        if not await client.is_ready(str(made.version)):
            raise ModelError(
                f"Triton at {url} does not serve version {made.version}: does it read {made.folder.parent.parent}?"
            )
        if here.covariates != NO_COVARIATES:
            return 0.0  # the worker's client sends no covariates; that it has loaded has warmed it
        found = [(await client.forecast(inputs)).outputs for inputs in exporter.probes(here)]
        pairs = zip(found, exporter.probes(here), strict=True)
        return max(float(exporter.difference(made, here.forecast(inputs))) for made, inputs in pairs)
    finally:
        await client.close()
