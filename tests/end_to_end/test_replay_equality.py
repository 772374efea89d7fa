"""The same recording, settings and model give the same forecasts, byte for byte: at any speed, with any number of
workers, with kills -9 of workers and of the replay itself in the middle."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from feature_store.recording_files import Recording
from tests.end_to_end.recordings import DAY_MS, HOUR_MS, PARTITIONS, START_MS, shop_records, write_recording
from tests.end_to_end.replay_process import ReplayProcess
from worker.local_stack import LocalStack
from worker.schemas import Forecast
from worker.testing import RawForecast, ReplayedForecasts, ReplayRun

_HOURS = 10  # from 16:00 UTC: midnights of all zones lie in it
_SETTINGS = {
    "SHELFCAST_TIME_ZONE": "Europe/Lisbon",
    "SHELFCAST_LOCATION_TIME_ZONES": "azores=Atlantic/Azores",
    "SHELFCAST_FORECAST_FREQS": "1h,1d",
    "SHELFCAST_CALIBRATED_FREQS": "1h,1d",
    "SHELFCAST_PREDICTION_LENGTH_1H": "6",
    "SHELFCAST_PREDICTION_LENGTH_1D": "4",
    "SHELFCAST_KAFKA_SESSION_TIMEOUT_S": "3",  # what a kill costs here
}
_WORKERS = 3  # each is killed once
_SENDING_S = 6  # long enough for the first kills to hit while records still come


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    records = shop_records(products=24, hours=_HOURS, orders=500)
    return write_recording(tmp_path_factory.mktemp("recording"), records)


@pytest.fixture(scope="module")
def reference(stack: LocalStack, recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> ReplayedForecasts:
    """One worker, as fast as possible, undisturbed."""
    with ReplayRun(recording.path, stack, tmp_path_factory.mktemp("reference"), _SETTINGS) as run:
        run.send()
        run.start_worker()
        run.wait_until_done()
        return run.forecasts()


def by_key(raw: Sequence[RawForecast]) -> dict[tuple[int, bytes], list[bytes | None]]:
    """Messages by partition and key, in the order of offsets. One that follows itself was sent again after a kill, and
    stands here once."""
    out: dict[tuple[int, bytes], list[bytes | None]] = {}
    for partition, _, key, value in raw:
        values = out.setdefault((partition, key), [])
        if not values or values[-1] != value:
            values.append(value)
    return out


def assert_same(raw: Sequence[RawForecast], reference: ReplayedForecasts) -> None:
    found, expected = by_key(raw), by_key(reference.raw)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == values, f"{key}: {_first_difference(found[key], values)}"


def _first_difference(found: Sequence[bytes | None], expected: Sequence[bytes | None]) -> str:
    for n, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return f"message {n} is\n{(one or b'')[:600]!r} instead of\n{(other or b'')[:600]!r}"
    return f"{len(found)} messages instead of {len(expected)}"


def test_the_reference_holds_all_that_may_differ(reference: ReplayedForecasts) -> None:
    forecasts = reference.forecasts
    assert {f.freq for f in forecasts} == {"1h", "1d"}
    assert {f.location_id for f in forecasts} == {"", "lisbon", "azores"}
    assert any(one.value is None for one in reference.raw)  # delisted products
    assert not any(f.degraded for f in forecasts)
    assert any(step.quantiles != step.quantiles_raw for f in forecasts for step in f.steps), "calibration adjusts some"
    assert all(f.issued_at == f.cutoff for f in forecasts)
    assert len({f.forecast_id for f in forecasts}) == len(forecasts) > 800
    # Refreshed at the close of the hour although nothing happened to it, and touched more than once in an hour.
    cutoffs = {f.cutoff for f in forecasts}
    assert {cutoff % HOUR_MS for cutoff in cutoffs} == {0, 5_000}
    assert START_MS + 9 * HOUR_MS < max(cutoffs) < START_MS + DAY_MS
    for values in by_key(reference.raw).values():
        revisions = [0 if v is None else msgspec.json.decode(v, type=Forecast).revision for v in values]
        assert all(after == before + 1 or after == 0 for before, after in pairwise(revisions))


def test_speed_number_of_workers_and_kills_change_nothing(
    stack: LocalStack, recording: Recording, reference: ReplayedForecasts, tmp_path: Path
) -> None:
    choose = random.Random(3)
    with ReplayRun(recording.path, stack, tmp_path, _SETTINGS) as run:
        workers = run.start_workers(_WORKERS)
        options = ["--speed", str(_HOURS * 3600 / _SENDING_S)]
        replay = ReplayProcess(tmp_path / "killed", recording.path, run.shop_environment, *options)
        replay.launch()
        replay.kill_while_sending(run.settings, run.settings.topic_clock, 3)
        resumed = ReplayProcess(tmp_path / "resumed", recording.path, run.shop_environment, *options, "--resume")
        resumed.launch()
        share = 2 * _HOURS * PARTITIONS * 8 // 10 / _WORKERS  # of the ticks: one kill in each, none near the end
        for n, worker in enumerate(choose.sample(workers, _WORKERS)):
            _wait_for_ticks(run, int((n + choose.random()) * share))
            time.sleep(choose.random() * 0.05)  # anywhere within a tick: which of its seams is hit does not matter
            worker.kill()
            worker.launch()  # not waited for: the next kill may come before the others have taken over its lanes
        resumed.output()
        assert run.send(resume=True).records == 0
        run.wait_until_done()
        assert_same(run.forecasts().raw, reference)


def _wait_for_ticks(run: ReplayRun, count: int) -> None:
    deadline = time.monotonic() + 60
    while run.ticks_done() < count:
        assert time.monotonic() < deadline
