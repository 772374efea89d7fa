"""One line at each end of an outage, however many calls wait."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack

import pytest

from feature_store.outage import Outage

LOGGER = logging.getLogger("tests.outage")


@pytest.fixture
def outage(caplog: pytest.LogCaptureFixture) -> Outage:
    caplog.set_level(logging.INFO, logger=LOGGER.name)
    return Outage(LOGGER, "it is away (%s)", "it is back after %.1f s")


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


def test_a_call_that_succeeds_at_once_says_nothing(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    with outage.call():
        assert not outage.is_on
    assert levels(caplog) == []


def test_a_call_that_waits_is_told_at_each_end(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    with outage.call() as wait:
        wait("refused")
        wait("refused again")
        assert outage.is_on
        assert caplog.messages == ["it is away (refused)"]
    assert not outage.is_on
    assert levels(caplog) == ["ERROR", "WARNING"]


def test_it_lasts_until_the_last_of_many_calls_gets_through(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as last:
        last.enter_context(outage.call())("slot 7 moves")
        with outage.call() as wait:
            wait("refused")
        with outage.call():  # one that gets through meanwhile
            pass
        assert outage.is_on
        assert caplog.messages == ["it is away (slot 7 moves)"]
    assert not outage.is_on
    assert levels(caplog) == ["ERROR", "WARNING"]


def test_a_call_that_gives_up_does_not_say_that_it_is_back(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    def give_up() -> None:
        with outage.call() as wait:
            wait("refused")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        give_up()
    assert not outage.is_on
    assert levels(caplog) == ["ERROR"]


def test_calls_of_many_threads_are_one_outage(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    all_wait = threading.Barrier(8)

    def run() -> None:
        with outage.call() as wait:
            wait("refused")
            all_wait.wait(60)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not outage.is_on
    assert levels(caplog) == ["ERROR", "WARNING"]
