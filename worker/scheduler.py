"""Scheduler: takes the items whose forecast is owed, coalesced, and turns them into published forecasts batch by batch.

Touched items come first, oldest mark first; items whose bucket has closed since their last forecast follow, paced.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice, zip_longest
from typing import NamedTuple, Protocol

import numpy as np

from feature_store.alert_state import Untold
from feature_store.store import NO_ADDITIONS, Additions, BehindError, Claim, Done, FencedError, Heads
from forecaster.baselines import empirical_forecast
from forecaster.contract import ROWS_PER_PASS
from forecaster.inputs import ModelInputs, ModelOutputs, Subject, build_inputs
from worker import metrics
from worker.alert_messages import closed_alerts
from worker.alert_sending import untold_of
from worker.aside import Message
from worker.calibration import outcomes_of
from worker.challenger import Shadowed
from worker.errors import ForecastUnavailableError
from worker.forecast_messages import BASELINE, ForecastRules, LaneRead, Messages, Model, forecast_messages
from worker.schemas import Alert
from worker.scoring import ALL
from worker.sold import rows_of

logger = logging.getLogger(__name__)

_PACE_S = 1.0


class Lane(Protocol):
    """What the scheduler asks of a lane."""

    closed: bool
    claim: Claim

    @property
    def partition(self) -> int: ...

    def owed(self, freq: str) -> int: ...
    def is_touched(self, freq: str, item_id: str) -> bool: ...
    def touched(self, freq: str, most: int | None = None) -> list[str]: ...
    def stale(self, freq: str) -> list[str]: ...
    def is_delisted(self, item_id: str) -> bool: ...
    async def read(self, freq: str, stored: str, buckets: int, item_ids: Sequence[str]) -> LaneRead: ...
    async def send_forecasts(self, topic: str, freq: str, messages: Sequence[tuple[str, bytes | None]]) -> None: ...
    async def send(self, topic: str, messages: Sequence[Message]) -> None: ...
    async def tell(self, untold: Mapping[str, Untold]) -> None: ...
    async def tell_untold(self) -> None: ...
    async def forecasts_done(self, freq: str, done: Sequence[Done], additions: Additions = NO_ADDITIONS) -> None: ...
    def note_done(self, freq: str, done: Sequence[tuple[str, int | None, Heads | None]]) -> None: ...


class Prepared(NamedTuple):
    """Forecasts of one lane's items that are to be made: their inputs, and what those were read from; row for row."""

    lane: Lane
    freq: str
    read: LaneRead
    inputs: ModelInputs


# What becomes of prepared forecasts of one frequency: live they are made and published.
Finish = Callable[[str, Sequence[Prepared]], Awaitable[None]]


class Scheduler:
    """Forecasts what lanes owe. Owns no lane: they are handed in.

    `finish` takes what was prepared instead of the model and Kafka: a backtest scores it.
    """

    def __init__(self, rules: ForecastRules, finish: Finish | None = None) -> None:
        self._rules = rules
        self._finish = finish or self.publish
        self._degraded: dict[tuple[str, str], Lane] = {}  # (freq, item_id): owed again once the model is back
        self._in_flight: set[tuple[str, str]] = set()  # (freq, item_id): two rounds at once must not send one item
        self._turns = itertools.count()
        self._refresh_allowance = 0.0
        self._refresh_since = 0.0

    async def run_due(self, lanes: Sequence[Lane]) -> int:
        """One round over all lanes for each frequency, side by side. Returns how many forecasts were sent; 0 = nothing
        is owed now."""
        return sum(await asyncio.gather(*(self.run_freq(freq, lanes) for freq in self._rules.freqs)))

    async def run_freq(self, freq: str, lanes: Sequence[Lane]) -> int:
        """One round of one frequency: a batch of touched items, filled up with stale ones as far as the pace allows.
        Rounds may overlap: each leaves alone what another has in hand. Returns how many forecasts were sent."""
        metrics.OWED.labels(freq).set(sum(lane.owed(freq) for lane in lanes))
        batch = self._choose(freq, lanes)
        in_hand = {(freq, item_id) for _, item_id in batch}
        self._in_flight |= in_hand
        try:
            return await self.forecast_batch(freq, batch) if batch else 0
        finally:
            self._in_flight -= in_hand

    def _choose(self, freq: str, lanes: Sequence[Lane]) -> list[tuple[Lane, str]]:
        most, turn = self._rules.batch_size, next(self._turns) % max(len(lanes), 1)
        # The lanes take turns, so that one that always has plenty starves no other.
        waiting = zip_longest(*(self._waiting(freq, lane, most) for lane in [*lanes[turn:], *lanes[:turn]]))
        batch = [pair for row in waiting for pair in row if pair is not None][:most]
        if len(batch) > ROWS_PER_PASS:  # a pass costs the same when it is not full: the rest waits for the next round
            return batch[: len(batch) // ROWS_PER_PASS * ROWS_PER_PASS]
        room = min(most - len(batch), self._allowance())
        if room > 0:
            chosen = self._in_flight | {(freq, item_id) for _, item_id in batch}
            refresh = list(
                islice((pair for pair in self._refreshes(freq, lanes) if (freq, pair[1]) not in chosen), room)
            )
            self._refresh_allowance -= len(refresh)
            batch += refresh
        return batch

    def _waiting(self, freq: str, lane: Lane, most: int) -> list[tuple[Lane, str]]:
        """A lane's touched items that no other round has in hand, oldest mark first."""
        touched = lane.touched(freq, most + len(self._in_flight))
        return [(lane, item_id) for item_id in touched if (freq, item_id) not in self._in_flight][:most]

    async def drain(self, lane: Lane) -> None:
        """Make every forecast that a lane owes, touched items first. A replay calls this at each tick."""
        for freq in self._rules.freqs:
            owed = dict.fromkeys([*lane.touched(freq), *lane.stale(freq)])
            items = list(owed)
            for start in range(0, len(items), self._rules.batch_size):
                if lane.closed:  # the rest is for its next owner
                    return
                chunk = items[start : start + self._rules.batch_size]
                await self.forecast_batch(freq, [(lane, item_id) for item_id in chunk])

    def _allowance(self) -> int:
        """Refreshes allowed now: a bucket that fills at refresh_per_s and holds one second's worth."""
        now = asyncio.get_running_loop().time()
        gained = (now - self._refresh_since) * self._rules.refresh_per_s
        self._refresh_allowance = min(self._refresh_allowance + gained, self._rules.refresh_per_s * _PACE_S)
        self._refresh_since = now
        return int(self._refresh_allowance)

    def _refreshes(self, freq: str, lanes: Sequence[Lane]) -> Iterable[tuple[Lane, str]]:
        if not self._rules.model_is_away():
            for (degraded_freq, item_id), lane in list(self._degraded.items()):
                if degraded_freq == freq and lane in lanes:
                    yield lane, item_id
        for lane in lanes:
            yield from ((lane, item_id) for item_id in lane.stale(freq))

    async def forecast_batch(self, freq: str, batch: Sequence[tuple[Lane, str]]) -> int:
        """Forecast items of any lanes at one frequency.

        1. Read each lane's contexts, with the positions that say what is in them: one round trip a lane.
        2. Make the model's inputs of them.
        3. Finish: make and publish them, or whatever this scheduler was told to do instead.
        """
        by_lane: dict[Lane, list[str]] = {}
        for lane, item_id in batch:
            by_lane.setdefault(lane, []).append(item_id)
        results = await asyncio.gather(*(self._withdraw_or_read(lane, freq, ids) for lane, ids in by_lane.items()))
        reads = [(lane, read) for lane, read in results if read is not None and read.subjects]  # 1
        prepared = [Prepared(lane, freq, read, self._inputs(freq, read)) for lane, read in reads]  # 2
        if prepared:
            await self._finish(freq, prepared)  # 3
        return sum(len(one.read.subjects) for one in prepared)

    async def publish(self, freq: str, prepared: Sequence[Prepared]) -> None:
        """Make forecasts of one frequency and bring them out.

        1. One request to the model; without an answer a baseline takes its place. Calibrate.
        2. Send, and wait until Kafka has acknowledged.
        3. Store what was sent; clear the marks of items that nothing has touched since. Then send alerts, which stand
           there: whoever is killed before that is followed by one that sends them.
        4. Let a challenger know.
        """
        joined = ModelInputs(*(np.concatenate(parts) for parts in zip(*(one.inputs for one in prepared), strict=True)))
        outputs, model = await self._infer(freq, joined)  # 1
        made, shadowed, start = [], [], 0
        for one in prepared:
            stop = start + len(one.read.subjects)
            own = ModelOutputs(*(array[start:stop] for array in outputs))
            made.append(forecast_messages(self._rules, freq, one.read, one.inputs, own, model))
            shadowed.append(Shadowed(one.lane, freq, one.read, one.inputs, own, model.version))
            start = stop
        await asyncio.gather(  # 2, 3
            *(self._publish(freq, one.lane, own, model) for one, own in zip(prepared, made, strict=True))
        )
        if self._rules.shadow is not None and model != BASELINE:
            await self._rules.shadow(shadowed)  # 4

    async def _withdraw_or_read(self, lane: Lane, freq: str, item_ids: Sequence[str]) -> tuple[Lane, LaneRead | None]:
        try:
            await lane.tell_untold()
            stored, buckets = self._rules.stored_freq[freq], self._rules.stored_buckets[freq]
            read = await lane.read(freq, stored, buckets, item_ids)
            gone = [i for i, item_id in enumerate(item_ids) if lane.is_delisted(item_id)]
            if not gone:
                return lane, read
            await self._withdraw(lane, freq, read, gone)
            kept = [item_id for i, item_id in enumerate(item_ids) if i not in set(gone)]
            return lane, (await lane.read(freq, stored, buckets, kept)) if kept else None
        except (FencedError, BehindError) as error:
            logger.warning("forecasts of a lane are left to its next owner: %s", error)
            lane.closed = True
            return lane, None

    async def _withdraw(self, lane: Lane, freq: str, read: LaneRead, gone: Sequence[int]) -> None:
        """A delisted product: tombstone the forecasts that were sent, clear what is owed."""
        item_ids = [read.subjects[i][0].item_id for i in gone]
        sent_before = [item_id for i, item_id in zip(gone, item_ids, strict=True) if read.revisions[i] > 0]
        await lane.send_forecasts(self._rules.topic, freq, [(item_id, None) for item_id in sent_before])
        is_judged = freq in self._rules.alert_rules
        alerts = closed_alerts(freq, read, gone, self._rules.calendar) if is_judged else []
        untold = untold_of(self._rules.topic_alerts, alerts)
        done = [Done(item_id, read.marks[i], None) for i, item_id in zip(gone, item_ids, strict=True)]
        await lane.forecasts_done(freq, done, Additions(untold=untold))
        await self._tell(lane, untold, [alert for _, alert in alerts])

    async def _tell(self, lane: Lane, untold: Mapping[str, Untold], alerts: Sequence[Alert]) -> None:
        """Send alerts whose state stands by now."""
        await lane.tell(untold)
        for alert in alerts:
            metrics.ALERTS.labels(alert.kind, alert.episode_state, alert.severity).inc()

    def _inputs(self, freq: str, read: LaneRead) -> ModelInputs:
        subjects = [Subject(item, product) for item, product in read.subjects]
        length = self._rules.prediction_length[freq]
        entries = self._rules.global_entries(read.cutoff_ms)
        return build_inputs(
            freq, read.cutoff_ms, subjects, rows_of(freq, read.rows), self._rules.calendar, entries, length
        )

    async def _infer(self, freq: str, inputs: ModelInputs) -> tuple[ModelOutputs, Model]:
        try:
            reply = await self._rules.infer(inputs)
        except ForecastUnavailableError:
            outputs = empirical_forecast(inputs, self._rules.prediction_length[freq])
            return outputs, BASELINE
        return reply.outputs, Model(self._rules.model_name, reply.model_version)

    async def _publish(self, freq: str, lane: Lane, made: Messages, model: Model) -> None:
        degraded = model == BASELINE
        if lane.closed:
            # Its next owner makes them, and may have sent later ones already: these would come after those.
            return
        try:
            accuracy = [Message(key.encode(), value) for key, value in made.accuracy]
            await asyncio.gather(
                lane.send_forecasts(self._rules.topic, freq, made.messages),
                lane.send(self._rules.topic_accuracy, accuracy),
            )
            untold = untold_of(self._rules.topic_alerts, made.alerts)
            await lane.forecasts_done(freq, made.done, made.additions._replace(untold=untold))
            await self._tell(lane, untold, [alert for _, alert in made.alerts])
        except (FencedError, BehindError) as error:
            logger.warning("sent forecasts are not stored, the lane's next owner makes them anew: %s", error)
            lane.closed = True
            return
        metrics.FORECASTS.labels(freq, str(degraded).lower()).inc(len(made.messages))
        for learnt in made.additions.learnt.values():
            for place, count in outcomes_of(learnt)._asdict().items():
                metrics.CALIBRATION_OUTCOMES.labels(freq, place).inc(count)
        for row, sums in made.additions.scored.items():
            if row.segment == ALL:
                metrics.SCORED.labels(freq, row.model_version).inc(sum(numbers[0] for numbers in sums.values()))
        for item_id, _ in made.messages:
            if degraded:
                self._degraded[freq, item_id] = lane
            else:
                self._degraded.pop((freq, item_id), None)
