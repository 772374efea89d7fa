"""Promotion by rule: what it asks for, how often it is wrong, and that a shop switches once. On a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from feature_store.model_choices import Choices, PromotionState
from feature_store.score_state import SCORE_SUMS, RowName, SumsByStep
from feature_store.store import FeatureStore
from worker.aside import Message
from worker.challenger import AGAINST
from worker.comparison import Demands
from worker.promoter import Promoter, PromotionRules, Shop
from worker.promotion import LOOKS, Rows, Verdict, verdict
from worker.schemas import Alert

_SINCE, _DEMANDS = 15_000, Demands(0.05, 14, 0.005)
_VERSIONS = ("1", "2")


def _sums(wql: float) -> list[int]:
    actual = 1_000_000
    values = {"count": 50, "actual": actual, "quantile_loss": round(wql * 19_000 * actual)}
    return [values.get(name, 0) for name in SCORE_SUMS]


def _rows(first: Sequence[float], second: Sequence[float], freq: str = "1d") -> dict[str, dict[RowName, SumsByStep]]:
    """Days after _SINCE, and one more that is not over."""
    rows: dict[RowName, SumsByStep] = {}
    for n, (one, other) in enumerate(zip([*first, 0.6], [*second, 0.1], strict=True)):
        rows[RowName(_SINCE + 1 + n, "1", AGAINST + "2")] = {1: _sums(one)}
        rows[RowName(_SINCE + 1 + n, "2", AGAINST + "1")] = {1: _sums(other)}
    return {freq: rows}


def _noise(days: int, seed: int = 1) -> list[float]:
    return [float(v) for v in 0.6 + np.random.default_rng(seed).normal(0, 0.02, days)]


def _judged(days: int, gain: float, state: PromotionState | None = None, seed: int = 1) -> Verdict | None:
    rows = _rows(_noise(days, seed), [v - gain for v in _noise(days, seed + 1000)])
    return verdict(state or PromotionState(*_VERSIONS, _SINCE), rows, _VERSIONS, _DEMANDS)


def test_days_count_from_when_the_rule_first_saw_the_pair() -> None:
    rows = _rows(_noise(30), _noise(30))
    first = verdict(None, rows, _VERSIONS, _DEMANDS)
    assert first is not None
    assert first.state == PromotionState(*_VERSIONS, _SINCE + 31)
    assert verdict(first.state, rows, _VERSIONS, _DEMANDS) is None
    other = verdict(PromotionState("1", "3", 7, looks=2), rows, _VERSIONS, _DEMANDS)
    assert other is not None
    assert other.state.since == _SINCE + 31
    assert verdict(PromotionState(*_VERSIONS, 0), {"1d": {}}, _VERSIONS, _DEMANDS) is None


def test_a_better_one_is_promoted_at_the_first_look_and_not_before() -> None:
    assert _judged(13, 0.06) is None
    found = _judged(14, 0.06)
    assert found is not None
    assert (found.state.looks, found.state.outcome, found.against) == (1, "promoted", [])
    assert _judged(40, 0.06, found.state) is None


def test_it_looks_twice_at_days_that_do_not_depend_on_when() -> None:
    early, late = _judged(14, 0.0), _judged(27, 0.0)
    assert early is not None
    assert late is not None
    assert [one.forecasts for one in early.found] == [one.forecasts for one in late.found] == [14 * 50]
    assert early.state == late.state == PromotionState(*_VERSIONS, _SINCE, looks=1)
    assert _judged(27, 0.0, early.state) is None
    second = _judged(28, 0.0, early.state)
    assert second is not None
    assert (second.state.looks, second.state.outcome) == (LOOKS, "")
    assert _judged(60, 0.2, second.state) is None, "after the last look it stays as it is"


def test_chance_alone_promotes_no_more_often_than_it_says() -> None:
    promoted = 0
    for seed in range(600):
        first = _judged(14, 0.0, seed=seed)
        assert first is not None
        second = _judged(28, 0.0, first.state, seed=seed)
        promoted += first.state.outcome == "promoted" or (second is not None and second.state.outcome == "promoted")
    assert promoted / 600 < 0.05 + 2.5 * (0.05 * 0.95 / 600) ** 0.5


def test_every_frequency_has_to_have_its_days_and_weeks_count_as_weeks() -> None:
    good, few = _rows(_noise(14), [v - 0.06 for v in _noise(14, 9)]), _rows(_noise(5), _noise(5), "1h")
    state = PromotionState(*_VERSIONS, _SINCE)
    assert verdict(state, good | few, _VERSIONS, _DEMANDS) is None
    found = verdict(state, good | {"1h": {}}, _VERSIONS, _DEMANDS)
    assert found is not None
    assert found.state.outcome == "promoted"
    found = verdict(state, _rows([0.6, 0.7], [0.5, 0.55], "1w"), _VERSIONS, _DEMANDS)
    assert found is not None
    assert not any("asked for" in text and "weeks" in text for text in found.against)


class _Worker:
    """A promoter on a store of its own, which sees what `rows` says."""

    def __init__(self, url: str, name: str, rows: Rows, told: list[Alert], *, dies: bool = False) -> None:
        self.store = FeatureStore(url, namespace="promotion", partition_count=1, forecast_freqs=("1d",))
        self._told, self._dies, self._rows = told, dies, rows
        shop = Shop(self._versions, self._all_rows, self._ready, self._tell, lambda: 1_700_000_000_000)
        self.promoter = Promoter(PromotionRules("m", _DEMANDS, name), self.store.choices(), shop)

    async def _versions(self, choices: Choices) -> tuple[str, str]:
        return choices.version or "1", choices.challenger

    async def _all_rows(self) -> Rows:
        await asyncio.sleep(0)
        return self._rows

    async def _ready(self, version: str) -> bool:
        return True

    async def _tell(self, messages: list[Message]) -> None:
        if self._dies:
            raise RuntimeError("killed")
        self._told += [msgspec.json.decode(message.value or b"", type=Alert) for message in messages]


async def _begun(url: str) -> FeatureStore:
    store = FeatureStore(url, namespace="promotion", partition_count=1, forecast_freqs=("1d",))
    await store.choices().want_version("m", "1")
    await store.choices().want_challenger("m", "2")
    return store


async def test_many_workers_switch_once_and_tell_it_once(redis_url: str) -> None:
    store, told = await _begun(redis_url), list[Alert]()
    good = _rows(_noise(20), [v - 0.06 for v in _noise(20, 5)])
    first = [_Worker(redis_url, f"w{n}", {"1d": {}}, told) for n in range(6)]
    await asyncio.gather(*(worker.promoter.look() for worker in first))
    state = (await store.choices().read("m")).promotion
    assert state is not None
    assert (state.since, state.looks) == (0, 0)
    workers = [_Worker(redis_url, f"v{n}", good, told) for n in range(6)]
    for _ in range(3):
        await asyncio.gather(*(worker.promoter.look() for worker in workers))
    choices = await store.choices().read("m")
    assert choices.version == "2"
    assert choices.promotion is not None
    assert (choices.promotion.outcome, choices.promotion.told) == ("promoted", True)
    assert [(alert.kind, alert.episode_state, alert.observed) for alert in told[:2]] == [
        ("promotion", "open", 2.0),
        ("promotion", "close", 2.0),
    ]
    assert len({(alert.alert_id, alert.sequence) for alert in told}) == 2
    await store.choices().want_version("m", "1")  # taken back by a person: it stays so
    await workers[0].promoter.look()
    assert await store.choices().wanted_version("m") == "1"


async def test_one_that_is_killed_before_it_has_told_is_followed_by_one_that_does(redis_url: str) -> None:
    store, told = await _begun(redis_url), list[Alert]()
    good = _rows(_noise(20), [v - 0.06 for v in _noise(20, 5)])
    await _Worker(redis_url, "a", {"1d": {}}, told).promoter.look()
    with pytest.raises(RuntimeError, match="killed"):
        await _Worker(redis_url, "b", good, told, dies=True).promoter.look()
    assert await store.choices().wanted_version("m") == "2"
    assert not told
    await _Worker(redis_url, "c", good, told).promoter.look()
    assert [alert.episode_state for alert in told] == ["open", "close"]
    await _Worker(redis_url, "d", good, told).promoter.look()
    assert len(told) == 2


async def test_what_a_person_chooses_meanwhile_stands(redis_url: str) -> None:
    store = await _begun(redis_url)
    choices = store.choices()
    before = await choices.read("m")
    await choices.want_version("m", "7")
    assert not await choices.decide("m", before, PromotionState("1", "2", 0, 1, "promoted", by="x"), "2")
    assert (await choices.read("m")).promotion is None
    assert await choices.wanted_version("m") == "7"
    now = await choices.read("m")
    state = PromotionState("7", "2", 0, by="x")
    assert await choices.decide("m", now, state)
    assert await choices.decide("m", now, state), "run again after its reply got lost"
    assert not await choices.decide("m", now, PromotionState("7", "2", 0, by="y"))
    await choices.want_challenger("m", "3")
    assert (await choices.read("m")).promotion is None, "a new challenger begins anew"
    await choices.want_challenger("m", "")
    assert await choices.challenger_version("m") == ""
