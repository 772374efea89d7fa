"""The pytest helpers: a user's own test in a process of its own, and golden forecasts that differ."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.end_to_end.recordings import shop_records, write_recording
from worker.errors import LocalStackError
from worker.local_stack import LocalStack
from worker.schemas import Forecast, ForecastStep
from worker.testing import ReplayRun, assert_golden, differences, read_golden, write_golden

_HOUR_MS = 3_600_000


def forecast(item_id: str, cutoff: int = 0, median: float = 2.0) -> Forecast:
    steps = [
        ForecastStep(k * _HOUR_MS, (k + 1) * _HOUR_MS, 1.5, [1.0, median, 4.0], [1.0 + k, median, 9.0])
        for k in range(2)
    ]
    return Forecast(
        forecast_id="f",
        revision=1,
        item_id=item_id,
        product_id=item_id,
        location_id="",
        freq="1h",
        cutoff=cutoff,
        positions={},
        issued_at=cutoff,
        steps=steps,
        quantile_levels=[0.1, 0.5, 0.9],
        observed=1.0,
        model_name="m",
        model_version="1",
        config_hash="c",
        feature_age_ms={},
    )


def test_golden_forecasts_are_those_that_were_kept(tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    forecasts = [forecast("mug"), forecast("jug", cutoff=7), forecast("jug")]
    write_golden(forecasts, golden)
    assert sorted(read_golden(golden), key=str) == sorted(forecasts, key=str)
    # What a different run of the worker may change, and a forecast that was sent twice.
    assert_golden([msgspec.structs.replace(f, revision=5, forecast_id="x") for f in [*forecasts, forecasts[0]]], golden)


def test_a_difference_says_where_it_is(tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    write_golden([forecast("mug"), forecast("jug"), forecast("cup")], golden)
    with pytest.raises(AssertionError) as caught:
        assert_golden([forecast("mug", median=3.0), forecast("jug", median=2.5), forecast("pan")], golden)
    assert str(caught.value).splitlines() == [
        f"10 differences from {golden}:",
        "cup 1h cutoff 0 forecast: expected one, got none",
        "pan 1h cutoff 0 forecast: expected none, got one",
        *(
            f"{item} 1h cutoff 0 step {k} {kind}quantile 0.5: expected 2.0, got {got}"
            for item, got in (("mug", 3.0), ("jug", 2.5))
            for k in range(2)
            for kind in ("", "cumulative ")
        ),
    ]


def test_a_tolerance_lets_small_differences_pass(tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    write_golden([forecast("mug")], golden)
    assert_golden([forecast("mug", median=2.1)], golden, absolute=0.11)
    assert_golden([forecast("mug", median=2.1)], golden, relative=0.05)
    with pytest.raises(AssertionError, match="4 differences"):
        assert_golden([forecast("mug", median=2.1)], golden, relative=0.04, absolute=0.09)


def test_at_most_so_many_lines_are_shown(tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    write_golden([forecast(f"item {n}") for n in range(50)], golden)
    with pytest.raises(AssertionError) as caught:
        assert_golden([], golden, most_lines=3)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert lines[-1] == "… and 47 more"


def test_other_steps_are_told_as_one_difference() -> None:
    short = msgspec.structs.replace(forecast("mug"), steps=forecast("mug").steps[:1])
    (found,) = differences([forecast("mug")], [short])
    assert (found.level, found.expected) == ("steps and quantile levels", "2 steps from 0, 3 levels")


def test_without_golden_forecasts_the_message_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="write_golden"):
        assert_golden([forecast("mug")], tmp_path / "none.jsonl")


_CONFTEST = """
from types import SimpleNamespace

import pytest

pytest_plugins = ["worker.testing"]

@pytest.fixture(scope="session")
def shelfcast_stack():  # servers that run already
    return SimpleNamespace(redis_url="REDIS_URL", triton_url="TRITON_URL")
"""
_TEST = """
from worker.testing import assert_golden, write_golden

def test_the_forecasts_stay(shelfcast_replay):
    settings = {"SHELFCAST_FORECAST_FREQS": "1d", "SHELFCAST_PREDICTION_LENGTH_1D": "2"}
    replayed = shelfcast_replay("recording", settings)
    assert {f.freq for f in replayed.forecasts} == {"1d"} and len(replayed.raw) >= len(replayed.forecasts) > 20
    write_golden(replayed.forecasts, "golden.jsonl")
    assert_golden(replayed.forecasts, "golden.jsonl")
    print(len(replayed.forecasts))
"""


def test_a_users_own_test_has_the_fixture(stack: LocalStack, tmp_path: Path) -> None:
    write_recording(tmp_path / "recording", shop_records(products=5, hours=2, orders=60))
    conftest = _CONFTEST.replace("REDIS_URL", stack.redis_url).replace("TRITON_URL", stack.triton_url)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_mine.py").write_text(_TEST)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_worker_that_ends_by_itself_is_told(stack: LocalStack, tmp_path: Path) -> None:
    recording = write_recording(tmp_path / "recording", shop_records(products=3, hours=1, orders=5))
    with ReplayRun(recording.path, stack, tmp_path) as run:
        with pytest.raises(RuntimeError, match="nothing was sent"):
            run.wait_until_done()
        run.start_worker().kill()
        run.send()
        with pytest.raises(LocalStackError, match=r"made no forecasts beyond tick 0 of \d+"):
            run.wait_until_done()
