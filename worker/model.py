"""`shelfcast model`: which versions Triton serves, and which one workers use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import click
from rich.console import Console
from rich.table import Table

from feature_store.store import REDIS_ERRORS, FeatureStore
from forecaster.probes import blank_inputs
from worker.errors import ModelError, ShelfcastError
from worker.forecast_client import ForecastClient
from worker.settings import Settings, load_settings

_LOAD_TIMEOUT_S = 600.0
_Result = TypeVar("_Result")


@click.group("model")
def command() -> None:
    """List the versions of the model that Triton serves, and choose which one workers use."""


@command.command("list")
def list_command() -> None:
    """List the versions that Triton knows, and say which one workers use."""
    settings = load_settings(os.environ)

    found, wanted, challenger = asyncio.run(with_servers(settings, _look(settings)))
    ready = [version for version, state in found.items() if state == "READY"]
    used = used_version(settings, found, wanted)
    table = Table(title=f"{settings.model_name} at {settings.triton_url}", title_justify="left")
    for column in ("version", "state", "workers"):
        table.add_column(column)
    for version, state in found.items():
        compared = "compare it" if version == challenger else ""
        table.add_row(version, state, "use it" if version == used else compared)
    Console().print(table)
    click.echo(_why(settings, wanted))
    if used and used not in ready:
        raise ModelError(f"version {used} is not served: load it, or `shelfcast model use` another")


@command.command("current")
def current_command() -> None:
    """Print the version that workers use, and nothing else: for scripts."""
    click.echo(asyncio.run(current_version(load_settings(os.environ))))


async def current_version(settings: Settings) -> str:
    """The version that workers use.

    Raises:
        ModelError: none is chosen and none is served.
        ShelfcastError: Redis or Triton do not answer.
    """
    found, wanted, _ = await with_servers(settings, _look(settings))
    used = used_version(settings, found, wanted)
    if not used:
        raise ModelError(f"Triton at {settings.triton_url} serves no version of {settings.model_name}")
    return used


def _look(settings: Settings) -> Callable[[FeatureStore, ForecastClient], Awaitable[tuple[dict[str, str], str, str]]]:
    async def look(store: FeatureStore, client: ForecastClient) -> tuple[dict[str, str], str, str]:
        choices = await store.choices().read(settings.model_name)
        return await client.versions(), choices.version, settings.challenger_version or choices.challenger

    return look


def used_version(settings: Settings, found: Mapping[str, str], wanted: str) -> str:
    """The version that workers use, of those that Triton knows by their state; "" = it serves none."""
    ready = [version for version, state in found.items() if state == "READY"]
    return settings.model_version or wanted or (ready[-1] if ready else "")


def _why(settings: Settings, wanted: str) -> str:
    if settings.model_version:
        return f"SHELFCAST_MODEL_VERSION={settings.model_version} here; a worker's own setting goes before the choice"
    if wanted:
        return f"chosen by `shelfcast model use {wanted}` for namespace {settings.namespace!r}"
    return "none was chosen: workers use the newest that is served"


@command.command("use")
@click.argument("version")
@click.option("--load", is_flag=True, help="Have Triton load what is new in its repository first.")
def use_command(version: str, load: bool) -> None:
    """Have all running workers of the namespace use VERSION, within seconds and without a gap. `newest` = whichever is
    the newest that Triton serves."""
    settings = load_settings(os.environ)

    async def use(store: FeatureStore, client: ForecastClient) -> None:
        await choose(store, client, settings, version, load=load)

    asyncio.run(with_servers(settings, use))
    click.echo(f"workers of namespace {settings.namespace!r} take version {version} of {settings.model_name} over now")


@command.command("challenge")
@click.argument("version")
def challenge_command(version: str) -> None:
    """Have all running workers of the namespace compare VERSION, unseen, with the one that they use, within seconds.
    `none` = compare none. What `shelfcast promote` asks for is then of days from now on."""
    settings = load_settings(os.environ)
    if settings.challenger_version:
        raise ShelfcastError(
            f"SHELFCAST_CHALLENGER_VERSION={settings.challenger_version} goes before what is chosen here: unset it for "
            "workers"
        )

    async def challenge(store: FeatureStore, client: ForecastClient) -> None:
        if version != "none":
            await _refuse_unserved(client, settings, version)
        await store.choices().want_challenger(settings.model_name, "" if version == "none" else version)

    asyncio.run(with_servers(settings, challenge))
    click.echo(f"workers of namespace {settings.namespace!r} compare {version} with the version that they use")


async def _refuse_unserved(client: ForecastClient, settings: Settings, version: str) -> None:
    known = await client.versions()
    if known.get(version) != "READY":
        served = ", ".join(v for v, state in known.items() if state == "READY") or "none"
        raise ModelError(
            f"Triton at {settings.triton_url} does not serve version {version} of {settings.model_name} (served: "
            f"{served}): `shelfcast export` makes one, `shelfcast model use {version} --load` has it loaded"
        )


async def choose(
    store: FeatureStore, client: ForecastClient, settings: Settings, version: str, *, load: bool = False
) -> None:
    """Choose a version for the namespace, once it has been seen to forecast what its workers ask for.

    Raises:
        ModelError: it is not served, or made for other features; the choice is as it was.
        ForecastUnavailableError: Triton does not answer.
    """
    if load:
        await client.load(_LOAD_TIMEOUT_S)
    if version == "newest":
        await store.choices().want_version(settings.model_name, "")
        return
    await _refuse_unserved(client, settings, version)
    client.use(version)
    await client.check_model()
    for freq in settings.forecast_freqs:  # a version may know fewer frequencies than these workers forecast
        await client.forecast(blank_inputs(freq))
    await store.choices().want_version(settings.model_name, version)


async def with_servers(
    settings: Settings, call: Callable[[FeatureStore, ForecastClient], Awaitable[_Result]]
) -> _Result:
    """Call with the feature store and Triton's client of the settings.

    Raises:
        ShelfcastError: Redis does not answer.
    """
    client = ForecastClient(
        settings.triton_url,
        model_name=settings.model_name,
        timeout_s=settings.triton_timeout_s,
        tls=settings.triton_tls,
    )
    store = FeatureStore(**settings.store_options())
    try:
        await store.ping()
        return await call(store, client)
    except REDIS_ERRORS as error:
        raise ShelfcastError(f"Redis does not answer ({error}): check SHELFCAST_REDIS_URL") from error
    finally:
        await store.close()
        await client.close()
