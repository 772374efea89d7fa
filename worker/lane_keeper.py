"""LaneKeeper: begins and ends the lanes of the partitions that Kafka assigns to this worker.

A lane begins by claiming its partition in Redis and ends with the assignment, or when another worker has claimed the
partition, or when Redis does not stand where the lane left it; in the last two cases it is claimed anew once the broker
confirms, by accepting a commit, that the partition is still this worker's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from feature_store.store import BehindError, FeatureStore, FencedError, StoreClosedError
from worker import metrics
from worker.held_records import ClosedError
from worker.lane import GapError, Lane
from worker.lane_state import LaneRules
from worker.records import Records, join

logger = logging.getLogger(__name__)

_MOST_AT_ONCE = 20_000  # records in one step: the more, the more of them fall into the same sums
_FEW = 1_000  # records that are worth waiting a moment for others to join them: a step costs as much as many of these
_JOIN_S = 0.003
_RECLAIM_PAUSE_S = 1.0


class Batch(Protocol):
    """Records of one topic of one partition, in offset order; `epoch` counts the seeks before they were fetched."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def records(self) -> Records: ...


class Reader(Protocol):
    """What the keeper asks of the consumer. Partitions are (topic, partition)."""

    def epoch(self, topic: str, partition: int) -> int: ...
    def taken(self, batch: Any) -> None: ...
    def applied(self, topic: str, partition: int, position: int) -> None: ...
    async def seek_to(self, topic: str, partition: int, position: int | None) -> None: ...
    async def commit_now(self, offsets: Mapping[tuple[str, int], int]) -> bool: ...


class LaneKeeper:
    """`crash` is called with what must end the process; `on_tick` is handed to the lanes of a replay."""

    def __init__(
        self,
        store: FeatureStore,
        reader: Reader,
        rules: LaneRules,
        *,
        topics: Sequence[str],
        on_tick: Callable[[Lane], Awaitable[None]] | None,
        crash: Callable[[BaseException], Awaitable[None]],
    ) -> None:
        self._store, self._reader, self._rules = store, reader, rules
        self._topics, self._on_tick, self._crash = tuple(topics), on_tick, crash
        self._groups = [(topic,) for topic in topics] if rules.clock_topic else [tuple(topics)]
        # Live, a lane's topics share a queue, so that what comes together is one step; a replay's tick takes from each
        # topic what it names, so each waits by itself.
        self._queues: dict[tuple[str, int], asyncio.Queue[Batch | None]] = {}
        self._tasks: dict[int, list[asyncio.Task[None]]] = {}
        self._retries: dict[tuple[int, int], asyncio.Task[None]] = {}  # by partition and assignment
        self._assignment = 0  # counts assignments: what was begun for an older one is not gone on with
        self._taking = asyncio.Lock()
        self.assigned: set[int] = set()
        self.lanes: dict[int, Lane] = {}

    @property
    def all_run(self) -> bool:
        """Whether every partition assigned has its lane."""
        return self.assigned == set(self.lanes)

    def offer(self, batch: Batch) -> None:
        """Leave the batch in its lane's queue. The reader bounds what is on its way, and is told what was taken."""
        queue = self._queues.get((batch.topic, batch.partition))
        if queue is not None:  # no lane: its partition is being claimed, and will be read from its stored position
            queue.put_nowait(batch)

    async def reassign(self, assigned: set[tuple[str, int]]) -> None:
        """After a rebalance: all lanes end, those of the partitions assigned now begin from what stands in Redis."""
        self._assignment += 1
        assignment = self._assignment  # the next rebalance may come while Redis is being waited for
        self.close()
        complete = []
        for partition in sorted({partition for _, partition in assigned}):
            absent = [topic for topic in self._topics if (topic, partition) not in assigned]
            if absent:
                logger.error("partition %d of %s is assigned elsewhere: its lane can't run", partition, absent)
            else:
                complete.append(partition)
        self.assigned = set(complete)
        for partition in complete:
            await self._take(partition, "assigned", assignment)

    async def _take(self, partition: int, reason: str, assignment: int) -> None:
        """Begin a lane.

        1. Commit to the consumer group what stands in Redis: the broker refuses it from a worker that lost the
           partition, who must not fence the new owner.
        2. Claim the partition: whoever held it is fenced.
        3. Seek every topic to its stored position, and let batches in.
        """
        async with self._taking:
            if assignment != self._assignment:
                return
            stored = await self._store.peek_positions(partition)
            offsets = {(topic, partition): stored.get(topic, 0) for topic in self._topics}
            committed = await self._reader.commit_now(offsets)  # 1
            if assignment != self._assignment:  # the next rebalance came while Redis or Kafka was waited for
                return
            if not committed:
                logger.warning("partition %d: the broker refused a commit; claiming it is put off", partition)
                self._take_later(partition, reason, assignment)
                return
            claim = await self._store.claim(partition)  # 2
            if assignment != self._assignment:
                return
            metrics.CLAIMS.labels(reason).inc()
            lane = Lane(self._store, claim, self._rules, on_tick=self._on_tick)
            for group in self._groups:  # 3
                queue: asyncio.Queue[Batch | None] = asyncio.Queue()
                self._queues.update({(topic, partition): queue for topic in group})
                for topic in group:
                    await self._reader.seek_to(topic, partition, claim.positions.get(topic))
            if assignment != self._assignment:
                self._let_go(partition)
                return
            self.lanes[partition] = lane
            metrics.LANES.set(len(self.lanes))
            logger.info("partition %d: %s, reading on from %s", partition, reason, claim.positions or "the start")
            self._tasks[partition] = [asyncio.create_task(self._run(lane, group)) for group in self._groups]

    def _take_later(self, partition: int, reason: str, assignment: int) -> None:
        async def retry() -> None:
            await asyncio.sleep(_RECLAIM_PAUSE_S)
            self._retries.pop((partition, assignment), None)
            try:
                await self._take(partition, reason, assignment)
            except StoreClosedError:
                return
            except Exception as error:
                await self._crash(error)

        if (partition, assignment) not in self._retries:
            self._retries[partition, assignment] = asyncio.create_task(retry())

    async def _run(self, lane: Lane, topics: Sequence[str]) -> None:
        """Hand batches of some topics to the lane until it ends. Nothing leaves with a batch in hand: a batch is either
        applied, or read again from the stored position by the lane's next owner."""
        queue = self._queues[topics[0], lane.partition]
        try:
            while not lane.closed:
                await self._hand_over(lane, await self._next_batches(queue))
        except (FencedError, BehindError) as error:
            logger.warning("%s: the lane ends and is claimed anew", error)
            self.lose(lane, "fenced" if isinstance(error, FencedError) else "behind")
        except (ClosedError, StoreClosedError):
            return
        except Exception as error:
            # Anything else is a bug or a refusal: the process ends loudly, with the batches unapplied.
            logger.error("%s partition %d: %s", ", ".join(topics), lane.partition, error)
            await self._crash(error)

    async def _hand_over(self, lane: Lane, batches: Sequence[Batch]) -> None:
        by_topic: dict[str, list[Batch]] = {}
        for batch in batches:
            by_topic.setdefault(batch.topic, []).append(batch)
        while by_topic:
            try:
                await lane.handle(*(join([batch.records for batch in own]) for own in by_topic.values()))
            except GapError as gap:
                del by_topic[gap.topic]
                await self._reader.seek_to(gap.topic, lane.partition, gap.position)
                continue
            for topic, own in by_topic.items():
                for batch in own:
                    self._reader.taken(batch)
                self._reader.applied(topic, lane.partition, lane.claim.positions.get(topic, 0))
            return

    async def _next_batches(self, queue: asyncio.Queue[Batch | None]) -> list[Batch]:
        """Wait for a batch, and take those behind it along. Stale ones are dropped: a seek has overtaken them."""
        found, count = [await queue.get()], 0
        count += _size(found[0])
        if queue.empty() and count < _FEW:
            await asyncio.sleep(_JOIN_S)
        while not queue.empty() and count < _MOST_AT_ONCE:
            found.append(queue.get_nowait())
            count += _size(found[-1])
        return [b for b in found if b is not None and b.epoch == self._reader.epoch(b.topic, b.partition)]

    def lose(self, lane: Lane, reason: str) -> None:
        """End a lane that Redis no longer knows as the owner, and claim its partition anew."""
        lane.close()
        if self.lanes.get(lane.partition) is lane:
            del self.lanes[lane.partition]
            metrics.LANES.set(len(self.lanes))
            self._let_go(lane.partition)
            self._take_later(lane.partition, reason, self._assignment)

    def close(self) -> list[asyncio.Task[None]]:
        """End all lanes. Returns their tasks, which end when the step that each may be in has ended: what is under way
        in Redis is never cancelled."""
        tasks = [task for partition in list(self._tasks) for task in self._tasks[partition]]
        for lane in self.lanes.values():
            lane.close()
        for partition in list(self._tasks):
            self._let_go(partition)
        self.lanes.clear()
        metrics.LANES.set(0)
        return tasks

    def _let_go(self, partition: int) -> None:
        """Wake the closed lane's tasks that wait for a batch."""
        self._tasks.pop(partition, None)
        for topic in self._topics:
            queue = self._queues.pop((topic, partition), None)
            if queue is not None:
                queue.put_nowait(None)


def _size(batch: Batch | None) -> int:
    return 0 if batch is None else len(batch.records)
