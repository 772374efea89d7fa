"""Two versions side by side in a Triton of its own: a worker goes from one to the other while orders come in."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from forecaster.contract import MODEL_NAME
from tests.end_to_end.shop import Received, Shop, now_ms
from worker.cli import shelfcast
from worker.errors import ModelError
from worker.local_stack import LocalBroker, LocalRedis, LocalStack
from worker.local_triton import MODEL_REPOSITORY, LocalTriton
from worker.schemas import Forecast

EXPORT = ("--model", MODEL_REPOSITORY / MODEL_NAME / "1", "--repository")
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(shop: Shop, *arguments: str | Path) -> Result:
        for name, value in shop.environment.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(shelfcast, [str(argument) for argument in arguments], env=dict(os.environ))

    return call


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """With a repository made by `shelfcast export`, which a test may add to."""
    directory = tmp_path_factory.mktemp("versions")
    made = CliRunner().invoke(shelfcast, [str(part) for part in ("export", *EXPORT, directory / "models")])
    assert made.exit_code == 0, made.output
    with LocalTriton(directory / "triton", directory / "models") as server:
        yield server


@pytest.fixture
def shop(
    servers: LocalStack, broker: LocalBroker, redis_server: LocalRedis, triton: LocalTriton, tmp_path: Path
) -> Iterator[Shop]:
    shop = Shop(servers, tmp_path, triton_url=triton.url)
    yield shop
    shop.close()


def made_of(records: Sequence[Received]) -> list[Forecast]:
    return [msgspec.json.decode(record.value, type=Forecast) for record in records if record.value is not None]


def wait_for(shop: Shop, accept: Callable[[Forecast], bool]) -> list[Forecast]:
    """Every forecast so far, once one is there that `accept` takes."""
    reader = shop.reader(shop.settings.topic_forecasts)
    reader.wait_for(lambda records: any(map(accept, made_of(records[-1:]))))
    return made_of(reader.records)


def test_workers_switch_versions_without_a_gap(shop: Shop, triton: LocalTriton, run: Run) -> None:
    shop.start_worker()
    shop.order("mug")
    assert shop.forecast("mug", "1d").model_version == "1"
    done = run(shop, "model", "use", "1")
    assert done.exit_code == 0, done.output

    stop = threading.Event()

    def sell() -> None:
        for n in itertools.count():
            if stop.wait(0.2):
                return
            shop.order(f"item{n % 20}")

    seller = threading.Thread(target=sell)
    seller.start()
    try:
        done = run(shop, "export", *EXPORT, triton.model_repository, "--precision", "bf16", "--triton", triton.url)
        assert done.exit_code == 0, done.output
        assert "shelfcast model use 2" in done.output
        loaded_ms = now_ms()
        forecasts = wait_for(shop, lambda forecast: forecast.issued_at > loaded_ms)
        assert {forecast.model_version for forecast in forecasts} == {"1"}
        done = run(shop, "model", "use", "2")
        assert done.exit_code == 0, done.output
        forecasts = wait_for(shop, lambda forecast: forecast.model_version == "2")
    finally:
        stop.set()
        seller.join()
    assert not any(forecast.degraded for forecast in forecasts)
    shown = run(shop, "model", "list")
    assert "chosen by `shelfcast model use 2`" in shown.output, shown.output


def test_a_version_that_is_not_served_is_not_chosen(shop: Shop, run: Run) -> None:
    done = run(shop, "model", "use", "7")
    assert isinstance(done.exception, ModelError)
    assert "does not serve version 7" in str(done.exception)
    assert "none was chosen" in run(shop, "model", "list").output


def test_what_workers_use_is_trained_on_and_becomes_the_next_version(
    shop: Shop, triton: LocalTriton, run: Run, tmp_path: Path
) -> None:
    """The recipe of docs/accuracy.md, short: record, train from the champion, export."""
    shop.start_worker()
    now = now_ms()
    for day in range(70, 0, -1):
        for n in range(2):
            shop.order(f"item{n}", quantity=1 + (day + n) % 7, event_time=now - day * 86_400_000)
    assert shop.forecast("item1", "1d").model_version in ("1", "2")
    champion = run(shop, "model", "current").output.strip()
    assert champion.isdecimal()
    done = run(shop, "record", "--output", tmp_path / "recording", "--to", "end")
    assert done.exit_code == 0, done.output
    training = ("train", "--recording", tmp_path / "recording", "--time-zone", "Europe/London", "--from", "champion")
    absent = run(shop, *training, "--repository", tmp_path / "nowhere", "--output", tmp_path / "no")
    assert isinstance(absent.exception, ModelError)
    assert "name the repository that Triton serves" in str(absent.exception)
    short = ("--synthetic", "0", "--freq", "1d", "--steps", "2", "--batch", "4", "--workers", "0", "--quiet")
    done = run(shop, *training, "--repository", triton.model_repository, *short, "--output", tmp_path / "run")
    assert done.exit_code == 0, (done.output, done.exception)
    begun_with = json.loads((tmp_path / "run" / "training.json").read_text())["arguments"]["from_"]
    assert begun_with == str(triton.model_repository.resolve() / MODEL_NAME / champion)
    exported = ("export", "--model", tmp_path / "run", "--repository", triton.model_repository, "--triton", triton.url)
    done = run(shop, *exported)
    assert done.exit_code == 0, (done.output, done.exception)
    version = done.output.split()[-1]
    assert int(version) > int(champion)
    assert run(shop, "model", "use", version).exit_code == 0
    assert run(shop, "model", "current").output.strip() == version


def test_there_is_no_champion_where_nothing_answers(shop: Shop, run: Run) -> None:
    shop.environment["SHELFCAST_REDIS_URL"] = "redis://127.0.0.1:1/0"
    done = run(shop, "train", "--from", "champion", "--synthetic", "8", "--output", shop.directory / "run")
    assert "Redis does not answer" in str(done.exception)
