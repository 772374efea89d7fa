"""pytest helpers: a recording through your settings and your model, on servers of its own, and what was forecast.

In the conftest.py of your tests:

    pytest_plugins = ["worker.testing"]

    @pytest.fixture(scope="session")
    def shelfcast_models() -> Path:            # without this: the model that comes with shelfcast
        return Path("my_triton_models")

and in a test:

    def test_forecasts_of_the_march_week_stay(shelfcast_replay):
        replayed = shelfcast_replay("recordings/march", {"SHELFCAST_TIME_ZONE": "Europe/London"})
        assert_golden(replayed.forecasts, "golden/march.jsonl", relative=0.01)

A replay of the same recording with the same settings and model gives the same forecasts, byte for byte: `raw` has them
as a consumer of the topic reads them. Golden forecasts are compared with a tolerance, since another kind of CPU or
another version of a library differs in the last digits.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import msgspec
import pytest

from feature_store.clock_ticks import DEFAULT_INTERVAL_MS
from feature_store.recording_files import Recording
from feature_store.store import FeatureStore
from worker.local_server import HOST
from worker.local_stack import LocalBroker, LocalStack
from worker.local_triton import MODEL_REPOSITORY
from worker.local_worker import LocalWorker
from worker.replay import Replayed, ReplayPlan, run_replay
from worker.replay_topics import replay_environment, replay_settings, replay_topics
from worker.schemas import Forecast
from worker.settings import Settings, load_settings
from worker.topic_reading import Span, TopicReading
from worker.topics import ensure_topics, kafka_client_config

_PREFIX = "replay."
_PATIENCE_S = 120.0  # without any progress
_LOOK_S = 0.05
_numbers = itertools.count()


class RawForecast(NamedTuple):
    """A message of the forecasts topic. The key is item_id|freq; no value = the item's forecasts are withdrawn."""

    partition: int
    offset: int
    key: bytes
    value: bytes | None


class ReplayedForecasts(NamedTuple):
    """What a replay has made. `raw`: by partition and offset; `forecasts`: those of them that are no tombstones."""

    raw: list[RawForecast]
    forecasts: list[Forecast]


class ReplayRun:
    """One replay on a broker of its own, beside the Redis and Triton of a stack that may be used for many.

        with ReplayRun(recording, stack, directory, settings) as run:
            run.start_worker()
            run.send()
            run.wait_until_done()
            replayed = run.forecasts()

    `settings`: SHELFCAST_* variables of the shop; those of the servers and of the replay are added. Raises
    ShelfcastError and its kin when something does not start or ends by itself.
    """

    def __init__(
        self,
        recording: Path | str,
        stack: LocalStack,
        directory: Path,
        settings: Mapping[str, str] | None = None,
        tick_ms: int = DEFAULT_INTERVAL_MS,
    ) -> None:
        self._recording = Recording.open(recording)
        self._directory = directory
        self._tick_ms = tick_ms
        self._broker = LocalBroker(directory)
        self._stack = stack
        self._given = dict(settings or {})
        self._workers: list[LocalWorker] = []
        self._replayed: Replayed | None = None

    def __enter__(self) -> Self:
        self._broker.start()
        self._shop = self._given | {
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": self._broker.bootstrap_servers,
            "SHELFCAST_REDIS_URL": self._stack.redis_url,
            "SHELFCAST_TRITON_URL": self._stack.triton_url,
            "SHELFCAST_WEB_HOST": HOST,
            # Of the embedded broker: it gives a dead worker's partitions away, and looks for new records, this late.
            "SHELFCAST_KAFKA_SESSION_TIMEOUT_S": self._given.get("SHELFCAST_KAFKA_SESSION_TIMEOUT_S", "6"),
            "SHELFCAST_KAFKA_FETCH_MAX_WAIT_MS": "10",
            "SHELFCAST_NAMESPACE": f"run-{next(_numbers)}-{self._broker.port}",
        }
        shop_settings = load_settings(self._shop)
        topics = self._recording.topics
        self._settings = replay_settings(shop_settings, self._recording, _PREFIX, topics)
        self._environment = self._shop | replay_environment(self._settings, shop_settings)
        self._where = replay_topics(shop_settings, self._recording, _PREFIX, topics, clock=True)
        ensure_topics(self._settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()
        self._broker.kill()

    @property
    def settings(self) -> Settings:
        """Of the replay's workers."""
        return self._settings

    @property
    def environment(self) -> dict[str, str]:
        """SHELFCAST_* variables of the replay's workers."""
        return dict(self._environment)

    @property
    def shop_environment(self) -> dict[str, str]:
        """SHELFCAST_* variables of the shop whose recording it is, for `shelfcast replay` as a process of its own."""
        return dict(self._shop)

    def start_worker(self) -> LocalWorker:
        """Start one more worker; returns when it is ready."""
        (worker,) = self.start_workers(1)
        return worker

    def start_workers(self, count: int) -> list[LocalWorker]:
        """Start more workers at once; returns when all are ready."""
        names = [f"worker-{len(self._workers) + n}" for n in range(count)]
        started = [LocalWorker(self._directory, self._environment, name=name) for name in names]
        self._workers += started
        for worker in started:
            worker.launch()
        for worker in started:
            worker.wait_until_ready()
        return started

    def send(self, speed: float = 0.0, *, resume: bool = False) -> Replayed:
        """Replay, or go on with a replay that was killed; returns when Kafka has everything."""
        plan = ReplayPlan(self._recording, self._recording.topics, speed, self._tick_ms, resume=resume)
        self._replayed = run_replay(plan, self._settings, self._where)
        return self._replayed

    def ticks_done(self) -> int:
        """How many ticks lie behind the lanes, all together."""

        async def positions() -> int:
            store = FeatureStore(**self._settings.store_options())
            try:
                found = [await store.peek_positions(p) for p in range(self._settings.partition_count)]
            finally:
                await store.close()
            return sum(positions.get(self._settings.topic_clock, 0) for positions in found)

        return asyncio.run(positions())

    def wait_until_done(self) -> None:
        """After `send`: wait until workers have made all forecasts. Raises LocalStackError when a worker ends by itself
        or nothing moves on for two minutes."""
        if self._replayed is None:
            raise RuntimeError("nothing was sent yet")
        wanted = self._replayed.ticks * self._settings.partition_count
        done, moved_s = -1, time.monotonic()
        while (now_done := self.ticks_done()) < wanted:
            if now_done != done:
                done, moved_s = now_done, time.monotonic()
            for worker in self._workers:
                if not worker.is_running or time.monotonic() - moved_s > _PATIENCE_S:
                    raise worker.failure(f"made no forecasts beyond tick {done} of {wanted}")
            time.sleep(_LOOK_S)

    def messages(self, topic: str) -> list[RawForecast]:
        """All messages so far of one of the replay's topics; `settings` has their names."""
        reading = TopicReading(kafka_client_config(self._settings))
        spans = {p: Span(0) for p in range(self._settings.partition_count)}
        records = sorted(reading.read(topic, spans), key=lambda r: (r.partition, r.offset))
        return [RawForecast(r.partition, r.offset, r.key or b"", r.value) for r in records]

    def forecasts(self) -> ReplayedForecasts:
        """All that was sent so far."""
        raw = self.messages(self._settings.topic_forecasts)
        return ReplayedForecasts(
            raw, [msgspec.json.decode(one.value, type=Forecast) for one in raw if one.value is not None]
        )


class ReplayThrough(Protocol):
    """The fixture `shelfcast_replay`."""

    def __call__(
        self, recording: Path | str, settings: Mapping[str, str] | None = None, *, tick_ms: int = DEFAULT_INTERVAL_MS
    ) -> ReplayedForecasts:
        """Replay a recording through one worker with these SHELFCAST_* settings, as fast as it can."""
        ...


@pytest.fixture(scope="session")
def shelfcast_models() -> Path:
    """Triton's model repository; yours, when a fixture of this name in your conftest.py says so."""
    return MODEL_REPOSITORY


@pytest.fixture(scope="session")
def shelfcast_stack(shelfcast_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Redis and Triton for all replays of the session."""
    with LocalStack(tmp_path_factory.mktemp("shelfcast"), kafka=False, model_repository=shelfcast_models) as stack:
        yield stack


@pytest.fixture
def shelfcast_replay(shelfcast_stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> ReplayThrough:
    """Call it with a recording and settings; it returns what was forecast."""

    def replay(
        recording: Path | str, settings: Mapping[str, str] | None = None, *, tick_ms: int = DEFAULT_INTERVAL_MS
    ) -> ReplayedForecasts:
        directory = tmp_path_factory.mktemp("replay")
        with ReplayRun(recording, shelfcast_stack, directory, settings, tick_ms) as run:
            run.start_worker()
            run.send()
            run.wait_until_done()
            return run.forecasts()

    return replay


# -- golden forecasts -------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """A place where forecasts differ. `level`: a quantile level, or `mean`, `bucket_start`, `observed`."""

    item_id: str
    freq: str
    cutoff: int
    step: int | None
    level: str
    expected: float | str
    got: float | str

    def __str__(self) -> str:
        step = "" if self.step is None else f" step {self.step}"
        return (
            f"{self.item_id} {self.freq} cutoff {self.cutoff}{step} {self.level}: expected {self.expected}, "
            f"got {self.got}"
        )


def write_golden(forecasts: Iterable[Forecast], path: Path | str) -> None:
    """Keep forecasts for `assert_golden`: JSON Lines, one a forecast, in a fixed order."""
    ordered = sorted(forecasts, key=_name)
    Path(path).write_bytes(b"".join(msgspec.json.encode(forecast) + b"\n" for forecast in ordered))


def read_golden(path: Path | str) -> list[Forecast]:
    """What `write_golden` has kept."""
    decoder = msgspec.json.Decoder(Forecast)
    return [decoder.decode(line) for line in Path(path).read_bytes().splitlines()]


def assert_golden(
    forecasts: Iterable[Forecast],
    path: Path | str,
    *,
    relative: float = 0.0,
    absolute: float = 0.0,
    most_lines: int = 20,
) -> None:
    """Assert that forecasts are those of a file that `write_golden` made, but for the tolerance.

    Forecasts are told apart by item, frequency and cutoff; ids, revisions and positions are not compared. A value may
    be off by `absolute` units or by `relative` of the greater of both, whichever is more. The message of the assertion
    shows `most_lines` differences, the greatest first, and how many there are.
    """
    if not Path(path).exists():
        raise AssertionError(
            f"there are no golden forecasts at {path}: look at the forecasts, and keep them with "
            f"worker.testing.write_golden(replayed.forecasts, {str(path)!r})"
        )
    found = differences(read_golden(path), forecasts, relative=relative, absolute=absolute)
    if found:
        shown = "\n".join(map(str, found[:most_lines]))
        more = f"\n… and {len(found) - most_lines} more" if len(found) > most_lines else ""
        raise AssertionError(f"{len(found)} differences from {path}:\n{shown}{more}")


def differences(
    expected: Iterable[Forecast], got: Iterable[Forecast], *, relative: float = 0.0, absolute: float = 0.0
) -> list[Difference]:
    """Where two sets of forecasts differ by more than the tolerance: what is missing and too much first, then the
    greatest differences. A forecast that was sent twice counts once."""
    by_name, others = {_name(f): f for f in expected}, {_name(f): f for f in got}
    out = [Difference(*name, None, "forecast", "one", "none") for name in sorted(by_name.keys() - others.keys())]
    out += [Difference(*name, None, "forecast", "none", "one") for name in sorted(others.keys() - by_name.keys())]
    values: list[tuple[float, Difference]] = []
    for name in sorted(by_name.keys() & others.keys()):
        values += _value_differences(by_name[name], others[name], relative, absolute)
    values.sort(key=lambda pair: -pair[0])
    return out + [difference for _, difference in values]


def _name(forecast: Forecast) -> tuple[str, str, int]:
    return forecast.item_id, forecast.freq, forecast.cutoff


def _value_differences(
    expected: Forecast, got: Forecast, relative: float, absolute: float
) -> list[tuple[float, Difference]]:
    out: list[tuple[float, Difference]] = []

    def compare(step: int | None, level: str, wanted: float, found: float) -> None:
        if not math.isclose(wanted, found, rel_tol=relative, abs_tol=absolute):
            out.append((abs(wanted - found), Difference(*_name(expected), step, level, wanted, found)))

    shapes = [(f.quantile_levels, [step.bucket_start for step in f.steps]) for f in (expected, got)]
    if shapes[0] != shapes[1]:
        told = [f"{len(starts)} steps from {starts[0]}, {len(levels)} levels" for levels, starts in shapes]
        return [(math.inf, Difference(*_name(expected), None, "steps and quantile levels", told[0], told[1]))]
    compare(None, "observed", expected.observed, got.observed)
    for k, (one, other) in enumerate(zip(expected.steps, got.steps, strict=True)):
        compare(k, "mean", one.mean, other.mean)
        _compare_levels(compare, k, "", expected.quantile_levels, one.quantiles, other.quantiles)
        pairs = one.cumulative_quantiles, other.cumulative_quantiles
        _compare_levels(compare, k, "cumulative ", expected.quantile_levels, *pairs)
    return out


class _Compare(Protocol):
    def __call__(self, step: int | None, level: str, wanted: float, found: float) -> None: ...


def _compare_levels(
    compare: _Compare, step: int, kind: str, levels: Sequence[float], wanted: Sequence[float], found: Sequence[float]
) -> None:
    for level, one, other in zip(levels, wanted, found, strict=True):
        compare(step, f"{kind}quantile {level}", one, other)
