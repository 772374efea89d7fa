"""A challenger in a lane, on a real Redis: scored as the published version is, and never in its way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from feature_store.score_state import RowName
from forecaster.inputs import ModelInputs, ModelOutputs
from tests.worker.test_scored_lane import Reply, ScoredShop
from worker import metrics
from worker.aside import Message
from worker.challenger import Challenger, ChallengeRules, is_challenged
from worker.comparison import Demands, compare, objections
from worker.errors import ForecastUnavailableError, ModelError
from worker.lane import Lane
from worker.scheduler import Scheduler


class ChallengedShop(ScoredShop):
    """Its challenger says what the model has just said, `factor` times as much."""

    def __init__(
        self, url: str, namespace: str, *, share: float = 1.0, factor: float = 1.0, queued: bool = False
    ) -> None:
        super().__init__(url, namespace)
        self.factor, self.scale = factor, 1.0
        self.trouble: Exception | None = None
        self.asked = 0
        rules = self.scheduler._rules
        self._said: dict[bytes, tuple[np.ndarray[Any, Any], ...]] = {}
        self.challenger = Challenger(
            ChallengeRules("9", share, rules.scoring, rules.calendar),
            self._answer,
            self.store.accuracy(),
            is_queued=queued,
        )
        self.scheduler = Scheduler(dataclasses.replace(rules, infer=self._say_and_note, shadow=self.challenger.shadow))

    async def _say_and_note(self, inputs: ModelInputs) -> Reply:
        reply = await self._say(inputs)
        reply = reply._replace(outputs=ModelOutputs(*(array * np.float32(self.scale) for array in reply.outputs)))
        for i in range(len(inputs.freq)):
            self._said[_name(inputs, i)] = tuple(array[i] for array in reply.outputs)
        return reply

    async def _answer(self, inputs: ModelInputs) -> Reply:
        if self.trouble is not None:
            raise self.trouble
        self.asked += len(inputs.freq)
        rows = [self._said[_name(inputs, i)] for i in range(len(inputs.freq))]
        return Reply(ModelOutputs(*(np.stack(arrays) * self.factor for arrays in zip(*rows, strict=True))), "9")

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        await super()._send(topic, partition, messages)

    async def rows(self, lane: Lane) -> dict[RowName, dict[int, list[int]]]:
        return (await self.store.accuracy().read(lane.claim, "1d")).rows


def _name(inputs: ModelInputs, i: int) -> bytes:
    return b"".join(array[i].tobytes() for array in inputs)


async def test_both_versions_are_scored_as_what_is_published_is(redis_url: str) -> None:
    """Of all items, and both the same: three accounts of one thing. Of degraded forecasts there is no pair."""
    shop = ChallengedShop(redis_url, "same")
    lane = await shop.days(await shop.begin(), 14)
    rows = await shop.rows(lane)
    published = {name.day: sums for name, sums in rows.items() if (name.model_version, name.segment) == ("2", "all")}
    assert len(published) > 5
    for day, sums in published.items():
        for version, other in (("2", "9"), ("9", "2")):
            assert rows[RowName(day, version, f"against:{other}")] == sums
    assert not any(name.segment == "against:baseline" for name in rows)


async def test_it_is_asked_about_its_share_once_a_bucket_and_its_messages_are_not_sent(redis_url: str) -> None:
    shop = ChallengedShop(redis_url, "share", share=0.5)
    lane = await shop.days(await shop.begin(), 3)
    chosen = {f"p{n}" for n in range(7) if is_challenged(f"p{n}", 0.5)}
    assert 0 < len(chosen) < 7
    assert 0 < shop.asked <= 3 * len(chosen)
    assert {topic for topic, _ in shop.sent} == {"forecasts", "accuracy"}
    assert all(message.model_version != "9" for message in shop.accuracy())
    rows = await shop.rows(lane)
    of_all = sum(sums[1][0] for name, sums in rows.items() if name.segment == "all")
    compared = sum(sums[1][0] for name, sums in rows.items() if name.segment == "against:9")
    assert 0 < compared < of_all


@pytest.mark.parametrize("trouble", [ForecastUnavailableError("away"), ModelError("version 9 is not served")])
async def test_one_that_does_not_answer_changes_nothing(redis_url: str, trouble: Exception) -> None:
    shop, alone = ChallengedShop(redis_url, "away"), ScoredShop(redis_url, "alone")
    shop.trouble = trouble
    before = metrics.CHALLENGES.labels("1d", "away")._value.get()
    lane = await shop.days(await shop.begin(), 5)
    await alone.days(await alone.begin(), 5)
    assert shop.sent == alone.sent
    assert not any(name.segment.startswith("against:") for name in await shop.rows(lane))
    assert metrics.CHALLENGES.labels("1d", "away")._value.get() > before
    shop.trouble = None
    lane = await shop.days(lane, 3)
    assert any(name.segment == "against:9" for name in await shop.rows(lane)), "it is back"


async def test_live_it_works_behind_the_forecasts_and_leaves_out_what_is_too_much(redis_url: str) -> None:
    shop = ChallengedShop(redis_url, "queued", queued=True)
    lane = await shop.begin()
    for _ in range(40):
        await shop.sell(lane, 0, "p1")
        await shop.scheduler.drain(lane)
    assert shop.asked == 0, "nothing is done before `work`"
    left_out = metrics.CHALLENGES.labels("1d", "left_out")._value.get()
    assert left_out >= 40 - 32
    for _ in range(40):
        await shop.challenger.work()
    assert shop.asked == 1, "the first of the bucket, once"


async def test_a_better_challenger_is_found_and_a_worse_one_is_not(redis_url: str) -> None:
    for scale, factor, better in ((8.0, 0.125, True), (1.0, 8.0, False)):
        shop = ChallengedShop(redis_url, f"factor{factor}", factor=factor)
        shop.scale = scale
        shop.model_version = "1"
        lane = await shop.begin()
        for _ in range(24):
            shop.now_ms += 86_400_000
            lane = await shop.settle(lane)
            await shop.sell(lane, 0, *(p for p in ("p0", "p1", "p2", "p3") if shop.random.random() < 0.3))
            lane = await shop.settle(lane)
        found = compare({"1d": await shop.rows(lane)}, "1", "9")
        assert [one.step for one in found] == [1, 3, 7]
        assert found[0].test.days > 20
        assert (found[0].challenger.wql < found[0].present.wql) == better
        assert (objections(found, Demands()) == []) == better, objections(found, Demands())
        assert any("30 are asked for" in text for text in objections(found, Demands(days=30)))
    assert any("WQL is -" in text for text in objections(found, Demands()))
    assert "worse beyond chance" in "".join(objections(found, Demands()))
