"""The comparison notices what it is there to notice."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.chaos.asides import Aside
from tests.chaos.checks import Forecasts, Letters, Stored, compare_cells
from tests.chaos.oracle import Cell, Cells, Oracle, bucket_of
from tests.chaos.tally import CRASH_POINT_LANE, KILL, Tally
from tests.chaos.traffic import Fate, Sent

_TOPICS = {"orders": "shop.orders"}
_RETENTION = {"5m": 288, "1h": 504, "1d": 400}
_TODAY = bucket_of("1d", int(time.time() * 1000), "")
_CELL = Cell("mug", "", "1d", _TODAY, "units")


def test_a_cell_that_is_off_or_missing_or_too_many_differs() -> None:
    right = Cells({_CELL: 1_000})
    assert compare_cells(right, Cells({_CELL: 1_000}), _RETENTION) == []
    assert len(compare_cells(right, Cells({_CELL: 2_000}), _RETENTION)) == 1
    assert len(compare_cells(right, Cells(), _RETENTION)) == 1
    assert len(compare_cells(right, right + Cells({_CELL._replace(bucket=_TODAY - 1): 5}), _RETENTION)) == 1


def test_what_has_left_the_retention_may_stand() -> None:
    assert compare_cells(Cells(), Cells({_CELL._replace(bucket=_TODAY - 400): 5}), _RETENTION) == []


def _dead_letter(**changes: Any) -> Aside:
    headers = {"chaos.number": b"1", "shelfcast.offset": b"0"}
    return Aside("shop.orders.dlq", 0, b"mug", b"{", headers)._replace(**changes)


def _letters() -> Letters:
    oracle = Oracle()
    oracle.add(Sent("orders", 0, b"mug", b"{", Fate.DEAD, number=1))
    return Letters(_TOPICS, oracle)


def test_a_dead_letter_that_is_missing_or_changed_or_elsewhere_differs() -> None:
    end = {("orders", 0): 1}
    right, late, other = _letters(), _letters(), _letters()
    assert len(right.differences(end)) == 1
    assert right.differences({}) == []
    right.note([_dead_letter(), _dead_letter()])
    assert right.differences(end) == []
    late.note([_dead_letter(topic="shop.orders.late")])
    assert len(late.differences(end)) == 2
    other.note([_dead_letter(value=b"{}")])
    assert len(other.differences(end)) == 2


def test_a_healthy_record_among_the_dead_letters_differs() -> None:
    letters = _letters()
    letters.note([_dead_letter(), _dead_letter(headers={"shelfcast.offset": b"7"})])
    assert len(letters.differences({("orders", 0): 1})) == 1


def _forecast(revision: int, seen: int, observed: float = 1.0) -> Aside:
    message = {
        "forecast_id": f"f{revision}",
        "revision": revision,
        "product_id": "mug",
        "location_id": "",
        "freq": "1d",
        "cutoff": int(time.time() * 1000),
        "positions": {"shop.orders": seen},
        "observed": observed,
    }
    return Aside("forecasts", 0, b"mug|1d", json.dumps(message).encode(), {})


def test_an_item_without_a_forecast_of_its_last_record_differs_unless_it_is_owed() -> None:
    forecasts, touches = Forecasts(_TOPICS, ["1d"]), {("mug", ""): {"orders": 4}}
    assert len(forecasts.missing(touches)) == 1
    assert forecasts.missing(touches, {"1d": {"mug": 9}}) == []
    forecasts.note([_forecast(1, seen=4)])
    assert len(forecasts.missing(touches)) == 1
    forecasts.note([_forecast(2, seen=5)])
    assert forecasts.missing(touches) == []


def test_an_older_forecast_that_replaces_a_newer_one_differs() -> None:
    forecasts = Forecasts(_TOPICS, ["1d"])
    forecasts.note([_forecast(2, seen=5), _forecast(2, seen=3)])
    assert len(forecasts.missing({("mug", ""): {"orders": 4}})) == 1


def test_a_forecast_that_observed_something_else_differs() -> None:
    forecasts = Forecasts(_TOPICS, ["1d"])
    forecasts.note([_forecast(1, seen=5, observed=2.0)])
    assert forecasts.wrong(Cells({_CELL: 2_000})) == []
    assert len(forecasts.wrong(Cells({_CELL: 3_000}))) == 1


def test_a_forecast_that_is_stored_but_was_not_sent_differs() -> None:
    forecasts = Forecasts(_TOPICS, ["1d"])
    forecasts.note([_forecast(1, seen=5)])
    assert forecasts.unsent(Stored({}, Cells(), {("mug", "", "1d"): "f1"})) == []
    assert len(forecasts.unsent(Stored({}, Cells(), {("mug", "", "1d"): "f2"}))) == 1


def test_the_last_line_counts_kills_and_all_faults_and_all_differences() -> None:
    tally, other = Tally(lambda _: None), Tally(lambda _: None)
    tally.note(KILL, [], times=2)
    other.note(KILL, ["a cell", "another"])
    other.note(CRASH_POINT_LANE, [])
    tally.add(other.counts())
    *kinds, last = tally.summary()
    assert last == "3 kills, 4 faults, 2 differences"
    assert [" ".join(kind.split()[-4:]) for kind in kinds] == ["1 of 1 survived", "2 of 3 survived", "1 of 1 survived"]
