"""Challenger: asks another version of the model too, of a share of the items, and has both versions scored alike.

It stands behind the forecasts: they are published and stored before it hears of them. What it is asked is what the
published version was asked, at the same moments, and both are scored as they come from the model, before calibration,
which has learnt from one of them only. Live it works through a short queue by itself; what comes while that is full is
left out, as is everything while the version does not answer. In a replay it is waited for, so that its sums come out
the same.
"""

from __future__ import annotations

import logging
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.score_state import ItemChallenge, ItemScores, RowName, SumsByStep
from feature_store.store import BehindError, Claim, FencedError
from forecaster.inputs import ModelInputs, ModelOutputs, running_buckets
from worker import metrics
from worker.errors import ForecastUnavailableError, ModelError
from worker.scored_forecasts import ScoredRead, told_of
from worker.scoring import CATEGORY, Scored, Scoring, ScoringRules, Subjects
from worker.sold import rows_of, sold_in

logger = logging.getLogger(__name__)

AGAINST = "against:"
_QUEUE = 32  # batches: at a tenth of the items some tens of MB at most
_PARTS = 10_000


class Lane(Protocol):
    """Whose forecasts they are."""

    closed: bool
    claim: Claim


class Shadowed(NamedTuple):
    """Published forecasts of one lane and frequency: what was asked, and what the model has said."""

    lane: Lane
    freq: str
    read: ScoredRead
    inputs: ModelInputs
    outputs: ModelOutputs
    model_version: str


class Reply(Protocol):
    """A model's answer."""

    @property
    def outputs(self) -> ModelOutputs: ...


class Sums(Protocol):
    """What is asked of the feature store."""

    async def read_challenges(self, claim: Claim, freq: str, item_ids: Sequence[str]) -> list[ItemChallenge | None]: ...
    async def challenged(
        self, claim: Claim, freq: str, states: Mapping[str, ItemChallenge], scored: Mapping[RowName, SumsByStep]
    ) -> None: ...


class ChallengeRules(NamedTuple):
    """version: the challenger's, to begin with; "" = none. share: of the items, 0 to 1. scoring: by frequency."""

    version: str
    share: float
    scoring: Mapping[str, ScoringRules]
    calendar: ShopCalendar


def is_challenged(item_id: str, share: float) -> bool:
    """Whether an item is of the share: the same items in every worker and run."""
    return zlib.crc32(item_id.encode()) % _PARTS < share * _PARTS


class Challenger:
    """`infer` asks the challenger. With `is_queued` what is published waits for `work`; else it is done at once."""

    def __init__(
        self, rules: ChallengeRules, infer: Callable[[ModelInputs], Awaitable[Reply]], sums: Sums, *, is_queued: bool
    ) -> None:
        self._rules, self._infer, self._sums = rules, infer, sums
        self.version = rules.version
        self._queue: deque[Shadowed] | None = deque() if is_queued else None

    def use(self, version: str) -> None:
        """Compare this version from now on; "" = none. What waits is dropped: it was for the one before."""
        self.version = version
        if self._queue:
            self._queue.clear()

    async def work(self) -> None:
        """Work on what was published first of all that waits. One call after the other: an item's forecasts are taken
        in their order."""
        if self._queue:
            await self._challenge(self._queue.popleft())

    async def shadow(self, published: Sequence[Shadowed]) -> None:
        """Take what has been published, and ask the challenger about its share of it."""
        for one in published:
            part = self._share_of(one)
            if part is None:
                continue
            if self._queue is None:
                await self._challenge(part)
            elif len(self._queue) >= _QUEUE:
                metrics.CHALLENGES.labels(one.freq, "left_out").inc(len(part.inputs.freq))
            else:
                self._queue.append(part)

    def _share_of(self, one: Shadowed) -> Shadowed | None:
        is_other = self.version not in ("", one.model_version)
        if not is_other or one.freq not in self._rules.scoring or one.lane.closed:
            return None
        places = [i for i, (item, _) in enumerate(one.read.subjects) if is_challenged(item.item_id, self._rules.share)]
        if not places:
            return None
        inputs = ModelInputs._make(array[places] for array in one.inputs)
        outputs = ModelOutputs(*(array[places] for array in one.outputs))
        return one._replace(read=_PartRead(one.read, places), inputs=inputs, outputs=outputs)

    async def _challenge(self, one: Shadowed) -> None:
        """Never raises for what is the challenger's own trouble; see the module."""
        try:
            await self._score(one)
        except (ForecastUnavailableError, ModelError) as error:
            metrics.CHALLENGES.labels(one.freq, "away").inc(len(one.inputs.freq))
            logger.debug("the challenger does not answer: %s", error)
        except (FencedError, BehindError):
            one.lane.closed = True

    async def _score(self, one: Shadowed) -> None:
        """1. See which forecasts are the first in their buckets, and ask the challenger about those.
        2. Score both versions with what has sold.
        3. Store what is new.
        """
        read, rules = one.read, self._rules.scoring[one.freq]
        item_ids = [item.item_id for item, _ in read.subjects]
        found = await self._sums.read_challenges(one.lane.claim, one.freq, item_ids)
        states = [state if before else None for state, before in zip(found, read.revisions, strict=True)]
        zones = [self._rules.calendar.zone(item.location_id) for item, _ in read.subjects]
        running = running_buckets(one.freq, read.cutoff_ms, zones)
        is_fresh = np.array([s is None or s.published.bucket < b for s, b in zip(states, running, strict=True)])
        versions = one.model_version, self.version
        said = ModelOutputs(*(np.zeros_like(array) for array in one.outputs))
        if is_fresh.any():  # 1
            reply = await self._infer(ModelInputs._make(array[is_fresh] for array in one.inputs))
            for array, own in zip(said, reply.outputs, strict=True):
                array[is_fresh] = own
        if self.version != versions[1]:  # another was chosen meanwhile: who has answered is not sure
            return
        published = [None if state is None else state.published for state in states]
        challenger = [None if state is None else state.challenger for state in states]
        first = self._scored(one, rules, running, published, one.outputs, versions)  # 2
        second = self._scored(one, rules, running, challenger, said, versions[::-1])
        new = {
            item_id: ItemChallenge(a, b)
            for item_id, a, b in zip(item_ids, first.states, second.states, strict=True)
            if a is not None and b is not None
        }
        if new:
            await self._sums.challenged(one.lane.claim, one.freq, new, _against(first) | _against(second))  # 3
            metrics.CHALLENGES.labels(one.freq, "asked").inc(int(is_fresh.sum()))

    def _scored(
        self,
        one: Shadowed,
        rules: ScoringRules,
        running: NDArray[np.int64],
        states: Sequence[ItemScores | None],
        outputs: ModelOutputs,
        versions: tuple[str, ...],
    ) -> Scored:
        """Of one version against the other, whose name stands where a category does elsewhere."""
        labels = [(versions[0], versions[1])] * len(states)
        scoring = Scoring(rules, Subjects(running, labels, states))
        owed = np.array(scoring.owed, dtype=np.int64).reshape(-1, 2)
        sold = sold_in(rows_of(one.freq, one.read.rows), owed[:, 0], owed[:, 1])
        return scoring.score(told_of(outputs, rules.steps), sold)


def _against(scored: Scored) -> dict[RowName, SumsByStep]:
    return {
        RowName(name.day, name.model_version, AGAINST + name.segment.removeprefix(CATEGORY)): sums
        for name, sums in scored.rows.items()
        if name.segment.startswith(CATEGORY)
    }


class _PartRead:
    """What was read of some of the items."""

    def __init__(self, read: ScoredRead, places: Sequence[int]) -> None:
        self.partition, self.cutoff_ms = read.partition, read.cutoff_ms
        self.subjects = [read.subjects[i] for i in places]
        self.revisions = [read.revisions[i] for i in places]
        self.scores: list[ItemScores | None] = []
        number = np.full(len(read.subjects), -1, dtype=np.int64)
        number[places] = np.arange(len(places))
        item = number[read.rows.item]
        kept = item >= 0
        self.rows = read.rows._replace(item=item[kept], bucket=read.rows.bucket[kept], values=read.rows.values[kept])
