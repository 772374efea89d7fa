"""Arena: a broker and a Redis of its own, a shop's traffic, workers to be hurt, and the comparison afterwards."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.chaos import seams
from tests.chaos.asides import Asides
from tests.chaos.checks import Forecasts, Letters, Stored, compare_cells, read_positions, read_stored
from tests.chaos.doomed_worker import DoomedWorker
from tests.chaos.feed import Feed
from tests.chaos.oracle import Oracle, Place
from tests.chaos.traffic import CURRENCY, MAX_MESSAGE_BYTES, SOURCES, TIME_ZONES, Traffic
from tests.end_to_end.shop import Shop, now_ms
from worker.errors import LocalStackError
from worker.local_server import HOST
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker
from worker.topics import ensure_topics, kafka_client_config

PATIENCE_S = 180.0  # a rebuild of the whole run on a slow machine; nothing waits for it when all is well
SESSION_TIMEOUT_S = 3.0
# Touched items are forecast at once, or only when a worker stops: counting is then all that it does.
FORECASTING, NOT_FORECASTING = {"forecast_interval_ms": 50}, {"forecast_interval_ms": 3_600_000}
_POLL_S = 0.002
_T = TypeVar("_T")


class ChaosError(AssertionError):
    """What was waited for did not come about."""


class Arena:
    """`with Arena(directory, seed) as arena`: servers run, topics exist, the opening has been sent."""

    def __init__(self, directory: Path, seed: int, partitions: int = 6) -> None:
        self._stack = LocalStack(directory, triton=False)
        self._directory, self._seed, self.partitions = directory, seed, partitions
        self._partition_of = seams.partition_of(partitions)
        self._loop = asyncio.new_event_loop()
        self._vaults: list[Path] = []
        self.workers: list[LocalWorker] = []

    def __enter__(self) -> Self:
        self._stack.start()
        zones = ",".join(f"{location}={zone}" for location, zone in TIME_ZONES.items() if location)
        self.shop = Shop(
            self._stack,
            self._directory,
            kafka_session_timeout_s=SESSION_TIMEOUT_S,
            triton_url=f"{HOST}:9",  # nobody is there: forecasts come from the baseline
            triton_timeout_s=1,
            partition_count=self.partitions,
            currency=CURRENCY,
            time_zone=TIME_ZONES[""],
            location_time_zones=zones,
            max_message_bytes=MAX_MESSAGE_BYTES,
            **NOT_FORECASTING,
        )
        settings = self.shop.settings
        ensure_topics(settings)
        self._topics = {source: getattr(settings, f"topic_{source}") for source in SOURCES}
        self.traffic = Traffic(self._seed, self.partitions, self._partition_of, now_ms)
        self.oracle = Oracle()
        self.feed = Feed(kafka_client_config(settings), self._topics, self.traffic, self.oracle)
        beside = [f"{topic}.{kind}" for topic in self._topics.values() for kind in ("dlq", "late")]
        self._asides = Asides(kafka_client_config(settings), [*beside, settings.topic_forecasts], self.partitions)
        self._letters = Letters(self._topics, self.oracle)
        self._forecasts = Forecasts(self._topics, settings.forecast_freqs)
        self._store = self.shop.store()
        self.feed.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()
        self._asides.close()
        self._run(self._store.close())
        self._loop.close()
        self._stack.stop(keep_directory=True)

    def _run(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run_until_complete(call)

    # -- workers --------------------------------------------------------------------------------------------------

    def launch(self, **settings: Any) -> LocalWorker:
        """One more worker process; it is not waited for."""
        worker = self.shop.new_worker(**settings)
        worker.launch()
        self.workers.append(worker)
        return worker

    def launch_doomed(self, point: seams.CrashPoint, seed: int) -> DoomedWorker:
        """One that ends itself at a crash point."""
        settings = self.shop.environment | {"SHELFCAST_FORECAST_INTERVAL_MS": str(FORECASTING["forecast_interval_ms"])}
        worker = DoomedWorker(self._directory, settings, point, seed)
        worker.launch()
        self.workers.append(worker)
        return worker

    def lost(self, worker: LocalWorker) -> None:
        """The worker has ended, as it should."""
        self.workers.remove(worker)

    def end_workers(self) -> None:
        """Stop all that run, politely."""
        for worker in list(self.workers):
            worker.stop()
            self.lost(worker)

    def lanes_of(self, worker: LocalWorker) -> set[int]:
        """Lanes that the worker runs, or ran when it ended: those that it was the last of all to claim."""
        last: dict[int, tuple[str, LocalWorker]] = {}
        for other in self.workers:
            for partition, at in seams.claims(other.log_path.read_text()).items():
                last[partition] = max(last.get(partition, ("", worker)), (at, other), key=lambda claim: claim[0])
        return {partition for partition, (_, owner) in last.items() if owner is worker}

    # -- positions ------------------------------------------------------------------------------------------------

    def positions(self) -> dict[Place, int]:
        """As they stand in Redis."""
        return self._run(read_positions(self._store, self._topics, self.partitions))

    def counted(self) -> int:
        """Records that are in the features."""
        return sum(self.positions().values())

    def lag(self) -> int:
        """Records sent that are not in the features."""
        return sum(self.oracle.ends().values()) - self.counted()

    def wait_until(self, what: str, holds: Callable[[], bool]) -> None:
        """Look again and again; a worker that ends meanwhile, or too long a wait, is a ChaosError."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            for worker in self.workers:
                if not worker.is_running:
                    raise ChaosError(str(worker.failure("ended by itself")))
            if time.monotonic() > deadline:
                raise ChaosError(
                    f"{what}: not within {PATIENCE_S:.0f} s; at {self.positions()} of {self.oracle.ends()}"
                )
            time.sleep(_POLL_S)

    def wait_until_ready(self) -> None:
        """All workers have joined, and run the lanes that they were given."""
        for worker in self.workers:
            worker.wait_until_ready(PATIENCE_S)

    def wait_for_ready_ones(self) -> list[LocalWorker]:
        """The workers that have joined and run the lanes that they were given, as soon as there are any."""
        ready: list[LocalWorker] = []

        def some() -> bool:
            ready.extend(worker for worker in self.workers if _is_ready(worker))
            return bool(ready)

        self.wait_until("a worker that is ready", some)
        return ready

    def settle(self) -> None:
        """Wait until everything sent is in the features."""
        self.feed.flush()
        self.wait_until("positions at the ends", lambda: self.positions() == self.oracle.ends())

    # -- Redis ----------------------------------------------------------------------------------------------------

    def restart_redis(self, *, kill: bool) -> None:
        """Stop it and start it again with its append-only file."""
        if kill:
            self._stack.redis.kill()
        else:
            self._stack.redis.stop()
        self._stack.redis.start()

    def empty_redis(self) -> None:
        """FLUSHALL."""
        with socket.create_connection((HOST, self._stack.redis.port), timeout=10) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.makefile("rb").readline() == b"+OK\r\n"

    def save_redis(self) -> None:
        """Copy Redis' files aside as they are now, while it runs: its log may end anywhere, as after a crash."""
        vault = self._directory / f"vault-{len(self._vaults)}"
        while True:
            shutil.copytree(self._stack.redis.directory, vault)
            if _names(vault) == _names(self._stack.redis.directory):  # else it has begun a new file meanwhile
                break
            shutil.rmtree(vault)
        self._vaults.append(vault)

    def restore_redis(self, vault: int) -> None:
        """Put files that were copied aside in the place of Redis' own."""
        self._stack.redis.stop()
        shutil.rmtree(self._stack.redis.directory)
        shutil.copytree(self._vaults[vault], self._stack.redis.directory)
        self._stack.redis.start()

    @property
    def saved(self) -> int:
        """Copies of Redis' files."""
        return len(self._vaults)

    # -- the comparison -------------------------------------------------------------------------------------------

    def differences(self) -> list[str]:
        """Features, dead letters and late events against the oracle, at the positions that stand in Redis now."""
        return self._compare()[1]

    def forecast_differences(self) -> list[str]:
        """When all is settled: items whose last record no forecast has seen, or not rightly. Waits for the forecasts
        that are on their way."""
        touches = self.oracle.last_touch(self.oracle.ends())
        deadline = time.monotonic() + PATIENCE_S
        while True:
            stored, found = self._compare()
            missing = self._forecasts.missing(touches)
            wrong = self._forecasts.wrong(self.oracle.cells_at(stored.positions))
            if not (missing or wrong) or time.monotonic() > deadline:
                return found + missing + wrong

    def _compare(self) -> tuple[Stored, list[str]]:
        stored = self._run(self._read_stored())
        sent = self._asides.read()
        self._letters.note(sent)
        self._forecasts.note(sent)
        expected = self.oracle.cells_at(stored.positions)
        found = compare_cells(expected, stored.cells, self.shop.settings.retention)
        return stored, found + self._letters.differences(stored.positions)

    async def _read_stored(self) -> Stored:
        store = self.shop.store()  # its own: connections from before an outage are of no use
        try:
            return await read_stored(store, self._topics, self.partitions, self.traffic.items, self._partition_of)
        finally:
            await store.close()

    @property
    def cells(self) -> int:
        """Cells that were compared last."""
        return self.oracle.cell_count


def _is_ready(worker: LocalWorker) -> bool:
    try:
        worker.wait_until_ready(0)
    except LocalStackError:
        return False
    return True


def _names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}
