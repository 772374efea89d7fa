"""`shelfcast accuracy` on a real Redis: what lanes have scored, added up over partitions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import msgspec
import pytest
from click.testing import CliRunner, Result

from feature_store.score_state import SCORE_SUMS, ItemScores, RowName
from feature_store.store import Additions, Done, FeatureStore
from tests.feature_store.stores import summary
from worker.accuracy import command
from worker.transport import murmur2_partition

_ONE = (2, 8_000, 2_000, -1_000, 500, 38_000_000, 1, 2, 2)
Run = Callable[..., Result]


@pytest.fixture
def run(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SHELFCAST_REDIS_URL", redis_url)
    monkeypatch.setenv("SHELFCAST_PARTITION_COUNT", "2")
    return lambda *arguments: CliRunner().invoke(command, arguments)


async def _fill(url: str) -> None:
    store = FeatureStore(url, namespace="shelfcast", partition_count=2, forecast_freqs=("1h", "1d"))
    for partition in range(2):
        claim = await store.claim(partition)
        scored = {
            RowName(day, "3", segment): {1: _ONE, 7: [10 * n for n in _ONE]}
            for day in (20_000, 20_006, 20_007)
            for segment in ("all", "category:mugs", "against:4")
        }
        await store.forecasts_done(claim, "1d", [Done("x", None, summary())], Additions(scored=scored))
    claim = await store.claim(murmur2_partition("mug", 2))
    sums = msgspec.json.encode([["3", 1, 20_000, *_ONE]])
    state = ItemScores(20_007, 1, [], [], msgspec.Raw(b"[]"), msgspec.Raw(sums))
    await store.forecasts_done(claim, "1d", [Done("mug%20a@york", None, summary(), scores=state)])
    claim = await store.claim(murmur2_partition("mug a", 2))
    await store.forecasts_done(claim, "1d", [Done("mug%20a@york", None, summary(), scores=state)])
    await store.close()


def test_partitions_are_added_up_over_the_last_days(run: Run, redis_url: str) -> None:
    asyncio.run(_fill(redis_url))
    lines = json.loads(run("--json").output)
    assert [(line["segment"], line["step"]) for line in lines] == [
        ("all", 1), ("all", 7), ("category:mugs", 1), ("category:mugs", 7),
    ]  # fmt: skip
    first = lines[0]
    assert first["sums"] == dict(zip(SCORE_SUMS, [4 * n for n in _ONE], strict=True)), "2 days of 2 partitions"
    assert (first["window_start"], first["window_days"]) == ("2024-10-05", 7)
    assert (first["wape"], first["bias"], first["wql"]) == (0.25, -0.125, 0.25)
    assert first["coverage"] == {"50": 0.5, "80": 1.0, "95": 1.0}
    assert json.loads(run("--json", "--days", "8", "--category", "mugs").output)[0]["sums"]["count"] == 12
    table = run("--freq", "1d").output
    assert "mugs" in table
    assert "against" not in table


def test_an_item_has_its_own_windows(run: Run, redis_url: str) -> None:
    asyncio.run(_fill(redis_url))
    (line,) = json.loads(run("--item", "mug a", "--location", "york", "--json").output)
    assert (line["segment"], line["window_days"], line["wape"]) == ("mug%20a@york", 28, 0.25)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a forecast is scored when its item is forecast again"),
        (["--item", "pot"], "nothing of item 'pot'"),
        (["--freq", "1w"], "not scored here, 1h, 1d is"),
        (["--item", "pot", "--category", "pots"], "ask for one of them"),
        (["--location", "york"], "say --item too"),
    ],
)
def test_what_is_not_there_is_said(run: Run, arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert said in result.output + str(result.exception)


def test_a_redis_that_is_away_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELFCAST_REDIS_URL", "redis://127.0.0.1:1/0")
    assert "check SHELFCAST_REDIS_URL" in str(run().exception)
