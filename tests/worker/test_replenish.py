"""Orders on a real broker: each need once, whatever is killed and however often the command is run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.worker.replenishing import DAY_MS, MONDAY_MS, ReplenishedShop, forecast, stock
from worker.local_stack import LocalBroker
from worker.transport import murmur2_partition

DAILY = """
[default]
review_period = "1d"
lead_time = "2d"
service_level = 0.9
"""


@pytest.fixture
def shop(broker: LocalBroker, tmp_path: Path) -> ReplenishedShop:
    shop = ReplenishedShop(broker, tmp_path)
    shop.policies(DAILY)
    return shop


def three_days(shop: ReplenishedShop, items: int = 3) -> None:
    """Forecasts of every midnight, and stock reports an hour before, that know of no orders."""
    for day in range(3):
        at = MONDAY_MS + day * DAY_MS
        names = [f"item{n}" for n in range(items)]
        shop.send(shop.reports, [(name, stock(name, at - 3_600_000, 10.0 - 5 * day)) for name in names])
        shop.send(shop.forecasts, [(f"{name}|1d", forecast(name, at, 10.0, revision=day + 1)) for name in names])


def test_an_order_fills_up_to_the_quantile_of_demand_over_lead_time_and_review_period(shop: ReplenishedShop) -> None:
    shop.send(shop.reports, [("mug", stock("mug", MONDAY_MS - 1, 7.0, on_order=3.0))])
    shop.send(shop.forecasts, [("mug|1d", forecast("mug", MONDAY_MS, 10.0))])
    done = shop.run("--to-end")
    assert done.returncode == 0, done.stderr
    (order,) = shop.sent()
    assert (order.item_id, order.quantity, order.review_time) == ("mug", 44.0, MONDAY_MS)  # 0.9 × 2 × 10 × 3 days − 10
    assert (order.on_hand, order.on_order, order.order_up_to) == (7.0, 3.0, 54.0)
    assert order.forecast_id == f"mug-{MONDAY_MS}-1"
    assert done.stdout.count(order.replenishment_id) == 1


def test_running_again_orders_nothing_twice(shop: ReplenishedShop) -> None:
    three_days(shop)
    first = shop.run("--to-end")
    assert first.returncode == 0, first.stderr
    sent = shop.sent()
    assert len(sent) == 3  # of the present day alone
    assert {order.review_time for order in sent} == {MONDAY_MS + 2 * DAY_MS}
    for options in (("--to-end",), ("--dry-run",), ("--to-end", "--replay")):
        assert shop.run(*options).returncode == 0
        assert shop.sent() == sent


def test_a_dry_run_prints_what_would_be_sent_and_sends_nothing(shop: ReplenishedShop) -> None:
    three_days(shop)
    done = shop.run("--dry-run")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3), done.stderr
    assert not shop.has_orders_topic()
    assert "3 orders would be sent" in done.stderr


def test_a_replay_holds_every_review_and_is_the_same_each_time(broker: LocalBroker, tmp_path: Path) -> None:
    shops = []
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        shop = ReplenishedShop(broker, tmp_path / str(n))
        shop.policies(DAILY)
        three_days(shop)
        done = shop.run("--to-end", "--replay")
        assert done.returncode == 0, done.stderr
        shops.append(shop.sent())
    assert len(shops[0]) == 9
    assert shops[0] == shops[1]


@pytest.mark.parametrize("replay", [True, False])
def test_killed_at_any_moment_and_run_again_each_need_is_ordered_once(
    broker: LocalBroker, tmp_path: Path, replay: bool
) -> None:
    (tmp_path / "whole").mkdir()
    options = ("--to-end", *(("--replay",) if replay else ()))
    whole = ReplenishedShop(broker, tmp_path / "whole")
    whole.policies(DAILY)
    three_days(whole)
    assert whole.run(*options).returncode == 0
    expected = {order.replenishment_id: order for order in whole.sent()}
    kills = 0
    for moment in (1, 3, 4, 7):
        directory = tmp_path / str(moment)
        directory.mkdir()
        shop = ReplenishedShop(broker, directory)
        shop.policies(DAILY)
        three_days(shop)
        kills += shop.run(*options, killed_at=moment).returncode == -9
        again = shop.run(*options)
        assert again.returncode == 0, again.stderr
        sent = shop.sent()
        first = {order.replenishment_id: order for order in reversed(sent)}
        assert first == expected, moment
        assert len(sent) == len(expected), f"killed at moment {moment}: an order that stood there was sent again"
    assert kills == 4


def test_members_that_come_and_are_killed_order_each_need_once(shop: ReplenishedShop) -> None:
    """Lanes go from one process to two, back to one that is left, and on to one that begins anew."""
    names = [f"item{n}" for n in range(6)]

    def day(n: int) -> None:
        at = MONDAY_MS + n * DAY_MS
        shop.send(shop.reports, [(name, stock(name, at - 3_600_000, 0.0)) for name in names])
        shop.send(shop.forecasts, [(f"{name}|1d", forecast(name, at, 10.0, revision=n + 1)) for name in names])

    def wait_for_orders(days: int) -> None:
        deadline = time.monotonic() + 60
        while not shop.has_orders_topic() or len({order.replenishment_id for order in shop.sent()}) < 6 * days:
            assert time.monotonic() < deadline, f"orders of day {days} are missing"
            time.sleep(0.05)

    members = [shop.start()]
    try:
        day(0)
        wait_for_orders(1)
        members.append(shop.start())
        for n in (1, 2):  # while lanes are handed over, and when they may have been
            day(n)
            wait_for_orders(n + 1)
        members[0].kill()
        day(3)
        wait_for_orders(4)
        members.append(shop.start())
        members[1].terminate()
        day(4)
        wait_for_orders(5)
    finally:
        for member in members:
            member.kill()
            member.communicate()
    sent = shop.sent()
    assert {(order.item_id, order.review_time) for order in sent} == {
        (name, MONDAY_MS + n * DAY_MS) for name in names for n in range(5)
    }
    # A process that was frozen while it lost its lanes might send one again, with the same id; none was here.
    assert len(sent) == len({order.replenishment_id for order in sent}) == 30


def test_categories_are_read_where_a_policy_is_of_one(shop: ReplenishedShop) -> None:
    shop.policies(DAILY + '[category.dairy]\nlead_time = "0s"\n')
    product = b'{"event_time": 1, "product_id": "%s", "category": "%s"}'
    shop.send(shop.products, [("milk", product % (b"milk", b"dairy")), ("mug", product % (b"mug", b"cups"))])
    for name in ("milk", "mug"):
        shop.send(shop.reports, [(name, stock(name, MONDAY_MS - 1, 0.0))])
        shop.send(shop.forecasts, [(f"{name}|1d", forecast(name, MONDAY_MS, 10.0))])
    done = shop.run("--to-end")
    assert done.returncode == 0, done.stderr
    assert {order.item_id: order.quantity for order in shop.sent()} == {"milk": 18.0, "mug": 54.0}


def test_records_that_can_not_be_used_are_named_and_passed_over(shop: ReplenishedShop) -> None:
    shop.send(shop.reports, [("mug", b"{"), ("mug", stock("mug", 2**53, 0.0)), ("mug", stock("mug", MONDAY_MS, 0.0))])
    shop.send(shop.forecasts, [("mug|1d", b"[]"), ("mug|1d", forecast("mug", MONDAY_MS, 10.0))])
    done = shop.run("--to-end")
    assert done.returncode == 0, done.stderr
    assert [order.item_id for order in shop.sent()] == ["mug"]


def test_stock_in_another_partition_than_its_forecasts_stops_the_command(shop: ReplenishedShop) -> None:
    shop.send(shop.reports, [("mug", stock("mug", MONDAY_MS, 0.0))])
    elsewhere = next(n for n in "abcdefgh" if murmur2_partition(n, 2) != murmur2_partition("mug", 2))
    shop.send(shop.reports, [(elsewhere, stock("mug", MONDAY_MS, 0.0))])
    for options in (("--to-end",), ("--dry-run",), ("--to-end", "--replay")):
        done = shop.run(*options)
        assert done.returncode == 1
        assert "partitioner=murmur2_random" in done.stderr


def test_a_missing_topic_is_named_with_the_remedy(shop: ReplenishedShop) -> None:
    shop.environment["SHELFCAST_TOPIC_STOCK"] = "nowhere"
    done = shop.run("--to-end")
    assert done.returncode == 1
    assert "topic nowhere does not exist" in done.stderr
