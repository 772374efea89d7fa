"""When most records can't be used, the worker stops; a few bad ones never stop it."""

from __future__ import annotations

import pytest

from worker.errors import TooManyRejectsError
from worker.reject_watch import RejectWatch


def test_a_few_records_never_stop_a_worker() -> None:
    watch = RejectWatch(max_share=0.5, window=100)
    for _ in range(99):
        watch.note("orders", 1, ["not_json"])


def test_mostly_misplaced_records_stop_it_with_the_remedy() -> None:
    watch = RejectWatch(max_share=0.5, window=100)
    with pytest.raises(TooManyRejectsError, match=r"75 of the last 100 records of orders.*partitioner=murmur2"):
        watch.note("orders", 100, ["wrong_partition"] * 74 + ["not_json"])


def test_old_records_are_forgotten() -> None:
    watch = RejectWatch(max_share=0.5, window=100)
    watch.note("orders", 90, ["not_json"] * 90)
    watch.note("orders", 200, [])
    for _ in range(3):
        watch.note("orders", 50, ["not_json"] * 20)
    with pytest.raises(TooManyRejectsError, match="dead-letter topic"):
        watch.note("orders", 100, ["not_json"] * 100)
