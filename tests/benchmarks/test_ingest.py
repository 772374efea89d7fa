from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import ingest, peer_environment
from benchmarks.contestants import Shelfcast
from benchmarks.peer_environment import PEERS, REQUIREMENTS, PeerEnvironment
from benchmarks.shop import environment
from worker.local_stack import LocalStack


@pytest.fixture(scope="module")
def own_stack() -> Iterator[LocalStack]:
    """Of this module alone: a run empties its Redis."""
    with LocalStack(triton=False) as stack:
        yield stack


def test_a_run_of_all_features_is_timed_and_equal_to_the_truth_and_a_cell_that_differs_is_noticed(
    own_stack: LocalStack,
) -> None:
    backlog = ingest.full_backlog(2_000, time.time_ns() // 1_000_000)
    variables = environment(own_stack, "bench-full", kafka_session_timeout_s=6, forecast_interval_ms=3_600_000)
    run = ingest.time_run(own_stack, Shelfcast(own_stack.directory, variables), backlog)
    assert run.correct
    assert run.events == 2_000
    assert run.seconds > 0
    assert run.peak_rss_mb > 10
    cell = next(iter(backlog.truth))
    backlog.truth[cell] += 1
    variables = environment(own_stack, "bench-wrong", kafka_session_timeout_s=6, forecast_interval_ms=3_600_000)
    assert not ingest.time_run(own_stack, Shelfcast(own_stack.directory, variables), backlog).correct


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--peers", "spark"], "no peer spark: choose from confluent_loop, faust, quixstreams, bytewax, pathway"),
        (["--events", "1000"], "1000 is no multiple of 20000"),
    ],
)
def test_a_wrong_option_is_refused_with_what_would_be_right(arguments: list[str], remedy: str) -> None:
    result = CliRunner().invoke(ingest.command, arguments)
    assert result.exit_code == 2
    assert remedy in " ".join(result.output.split())


def test_the_version_of_every_package_of_a_peer_is_fixed() -> None:
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    fixed = {line.partition("==")[0] for line in lines if "==" in line}
    assert {package for packages in PEERS.values() for package in packages} <= fixed


def test_a_peer_that_can_not_be_installed_is_absent_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(peer_environment.PEERS, "faust", ("faust-streaming",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    environment_of_peers = PeerEnvironment(tmp_path / "peers")
    for _ in range(2):  # a failure is not remembered as a success
        reason = environment_of_peers.install("faust")
        assert reason is not None
        assert "faust-streaming" in reason
