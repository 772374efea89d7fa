"""The oracle against sums done by hand, and what it is made of."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from tests.chaos import oracle as oracle_module
from tests.chaos import traffic as traffic_module
from tests.chaos.oracle import Cell, Oracle
from tests.chaos.traffic import Fate, Sent, Traffic

_EVENING = 1_767_240_000_000 - 6 * 3_600_000 - 1  # 2025-12-31T21:59:59.999Z, still the 31st in New York and in London
_DAY = 20_453  # 2025-12-31 since 1970-01-01


def _sent(source: str, event: dict[str, Any]) -> Sent:
    value = {"event_time": _EVENING, "product_id": "mug", **event}
    return Sent(source, 0, b"mug", json.dumps(value).encode(), event_id=event.get("event_id", ""))


def _order(quantity: float = 1, unit_price: float = 2.5, **fields: Any) -> Sent:
    return _sent("orders", {"quantity": quantity, "unit_price": unit_price, **fields})


def _day(oracle: Oracle, location: str = "", day: int = _DAY) -> dict[str, int]:
    """Features of the mug's day, when all is counted."""
    cells = oracle.cells_at(oracle.ends())
    return {cell.feature: n for cell, n in cells.items() if cell[1:4] == (location, "1d", day)}


def test_orders_are_summed_exactly_and_returns_apart() -> None:
    oracle = Oracle()
    for sent in (_order(3, 2.55), _order(0.5, 0.000001), _order(-2), _order(1, kind="return"), _order(9, one_off=True)):
        oracle.add(sent)
    # Half a millionth is rounded to even, which is nothing.
    assert _day(oracle) == {"units": 3_500, "order_lines": 2, "revenue": 7_650_000, "returned_units": 3_000}


def test_clicks_and_reviews_are_counted() -> None:
    oracle = Oracle()
    for action in ("view", "view", "add_to_cart", "wishlist", "remove_from_cart"):
        oracle.add(_sent("clicks", {"action": action}))
    for rating in (5, 2):
        oracle.add(_sent("reviews", {"rating": rating}))
    assert _day(oracle) == {"views": 2, "add_to_carts": 1, "review_count": 2, "rating_sum": 7}


def test_days_are_those_of_the_location() -> None:
    oracle = Oracle()
    after_midnight_in_london = _EVENING + 3 * 3_600_000
    oracle.add(_order(event_time=after_midnight_in_london))
    oracle.add(_order(event_time=after_midnight_in_london, location_id="york"))
    assert _day(oracle, "", _DAY + 1)["units"] == 1_000
    assert _day(oracle, "york", _DAY)["units"] == 1_000
    hours = {cell.bucket for cell in oracle.cells_at(oracle.ends()) if cell.freq == "1h"}
    assert hours == {after_midnight_in_london // 3_600_000}


def test_an_event_id_that_comes_again_counts_once_where_that_is_asked() -> None:
    for deduplicated, lines in ((frozenset[str](), 3), (frozenset({"orders"}), 2)):
        oracle = Oracle(deduplicated)
        for event_id in ("a", "b", "a"):
            oracle.add(_order(event_id=event_id))
        assert _day(oracle)["order_lines"] == lines


def test_events_without_an_id_are_never_the_same() -> None:
    oracle = Oracle(frozenset({"orders"}))
    for _ in range(3):
        oracle.add(_order())
    assert _day(oracle)["order_lines"] == 3


def test_it_goes_back_to_earlier_positions() -> None:
    oracle = Oracle()
    for quantity in (1, 2, 4):
        oracle.add(_order(quantity))
    units = Cell("mug", "", "1d", _DAY, "units")
    seen = [oracle.cells_at({("orders", 0): at})[units] for at in (3, 1, 2, 0, 3)]
    assert seen == [7_000, 1_000, 3_000, 0, 7_000]


def test_what_is_set_aside_is_not_counted() -> None:
    oracle = Oracle()
    oracle.add(_order())
    oracle.add(_order()._replace(fate=Fate.LATE, number=1))
    oracle.add(_order()._replace(fate=Fate.DEAD, number=2))
    assert _day(oracle)["order_lines"] == 1
    assert oracle.to_set_aside({("orders", 0): 2}) == {1}
    assert oracle.to_set_aside(oracle.ends()) == {1, 2}


def test_clicks_touch_every_item_of_their_product() -> None:
    oracle = Oracle()
    for sent in (
        _order(),
        _order(location_id="leeds"),
        _order(location_id="leeds"),
        _sent("clicks", {"action": "view"}),
    ):
        oracle.add(sent)
    assert oracle.last_touch(oracle.ends()) == {
        ("mug", ""): {"orders": 0, "clicks": 0},
        ("mug", "leeds"): {"orders": 2, "clicks": 0},
    }


def test_traffic_is_all_that_it_says_and_the_same_for_a_seed() -> None:
    def take(seed: int) -> list[Sent]:
        traffic = Traffic(seed, 4, lambda name: len(name) % 4, lambda: _EVENING)
        return traffic.opening() + traffic.take(5_000)

    records = take(1)
    assert records == take(1)
    assert records != take(2)
    fates = [record.fate for record in records]
    assert {record.source for record in records} == {"orders", "clicks", "reviews"}
    assert 30 < fates.count(Fate.DEAD) < 150
    assert 5 < fates.count(Fate.LATE) < 80
    ids = [record.event_id for record in records if record.event_id and record.fate is Fate.COUNTED]
    assert 50 < len(ids) - len(set(ids)) < 300
    times = [json.loads(r.value or b"")["event_time"] for r in records if r.fate is Fate.COUNTED]
    assert times != sorted(times)
    assert max(times) <= _EVENING
    assert min(times) > _EVENING - 13 * 3_600_000


def test_oracle_and_traffic_share_no_code_with_what_they_judge() -> None:
    for module in (oracle_module, traffic_module):
        tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
        froms = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        roots = {name.partition(".")[0] for name in froms | plain}
        assert roots.isdisjoint({"feature_store", "forecaster", "worker"})
