"""Reviews: when an item is looked at, what counts as on order, and what each policy orders."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence

import numpy as np
import pytest

from forecaster.contract import QUANTILE_LEVELS
from forecaster.lead_time import LeadTime
from forecaster.ordering import economic_quantity
from worker.replenishment import Reviews
from worker.replenishment_orders import Identity, Outlook, StockReport, replenishment_id
from worker.replenishment_policies import Policies
from worker.replenishment_records import Entry, Merge
from worker.schemas import Replenishment

DAY_MS = 86_400_000
MONDAY_MS = 1_710_720_000_000
HOUR_MS = 3_600_000
MUG = Identity("mug", "mug", "")


def outlook(cutoff: int, per_day: float = 10.0, revision: int = 1, days: int = 14) -> Outlook:
    """Demand of n days is spread evenly from 0 to 2 n per_day."""
    n = np.arange(1, days + 1)[:, None]
    cumulative = (2 * per_day * n * np.array(QUANTILE_LEVELS)).astype(np.float32)
    ends = tuple(cutoff + k * DAY_MS for k in range(1, days + 1))
    return Outlook(f"f-{cutoff}-{revision}", cutoff, revision, ends, QUANTILE_LEVELS, cumulative)


def reviews_of(text: str, ordered: Sequence[Replenishment] = ()) -> Reviews:
    policies = Policies(tomllib.loads(text))
    return Reviews(lambda identity, category: policies.of(identity.item_id, identity.product_id, category), ordered)


BASE = '[default]\nreview_period = "1d"\nlead_time = "2d"\nservice_level = 0.9\n'


def ordered_at_once(text: str, on_hand: float = 0.0, per_day: float = 10.0) -> list[Replenishment]:
    reviews = reviews_of(text)
    reviews.stock(MUG, StockReport(MONDAY_MS - 1, on_hand, 0.0))
    return reviews.forecast(MUG, outlook(MONDAY_MS, per_day))


def test_an_item_is_reviewed_as_soon_as_its_forecast_and_its_stock_are_known() -> None:
    reviews = reviews_of(BASE)
    assert reviews.forecast(MUG, outlook(MONDAY_MS + HOUR_MS)) == []
    (order,) = reviews.stock(MUG, StockReport(MONDAY_MS + 2 * HOUR_MS, 4.0, 0.0))
    assert (order.review_time, order.event_time) == (MONDAY_MS, MONDAY_MS + 2 * HOUR_MS)
    # From the cutoff at 01:00 to the end of Wednesday 24:00: what the forecast said of 71 hours.
    assert order.order_up_to == pytest.approx(0.9 * 2 * 10 * 71 / 24, abs=1e-3)


def test_a_review_waits_an_hour_for_a_forecast_of_its_moment() -> None:
    for fresh in (True, False):
        reviews = reviews_of(BASE)
        reviews.stock(MUG, StockReport(MONDAY_MS - 2 * HOUR_MS, 60.0, 0.0))
        assert reviews.forecast(MUG, outlook(MONDAY_MS - HOUR_MS)) == []  # the review of Sunday: enough is there
        assert reviews.stock(MUG, StockReport(MONDAY_MS + 5, 0.0, 0.0)) == []
        if fresh:
            (order,) = reviews.forecast(MUG, outlook(MONDAY_MS + 9))
            assert (order.forecast_id, order.event_time) == (f"f-{MONDAY_MS + 9}-1", MONDAY_MS + 9)
        else:
            # Whatever record is of a later time.
            (order,) = reviews.stock(Identity("lid", "lid", ""), StockReport(MONDAY_MS + HOUR_MS, 0.0, 0.0))
            assert order.forecast_id == f"f-{MONDAY_MS - HOUR_MS}-1"
        assert (order.on_hand, order.review_time) == (0.0, MONDAY_MS)


def test_an_item_is_ordered_once_a_review_period() -> None:
    reviews = reviews_of(BASE)
    made = []
    for hour in range(0, 72, 3):
        at = MONDAY_MS + hour * HOUR_MS
        made += reviews.forecast(MUG, outlook(at, revision=hour + 1))
        made += reviews.stock(MUG, StockReport(at + 1, 0.0, 0.0))
    assert [order.review_time for order in made] == [MONDAY_MS, MONDAY_MS + DAY_MS, MONDAY_MS + 2 * DAY_MS]
    assert len({order.replenishment_id for order in made}) == 3
    assert made[0].replenishment_id == replenishment_id("mug", MONDAY_MS, "order_up_to")


def quantities(text: str, reports: Sequence[StockReport]) -> list[float]:
    """Of the reviews at each midnight, a report after each one."""
    reviews = reviews_of(text)
    reviews.stock(MUG, StockReport(MONDAY_MS - 1, 0.0, 0.0))
    made = []
    for day, report in enumerate(reports):
        made.append(sum(o.quantity for o in reviews.forecast(MUG, outlook(MONDAY_MS + day * DAY_MS, revision=day + 1))))
        assert reviews.stock(MUG, report) == []
    return made


def test_an_own_order_counts_as_on_order_until_stock_reports_it() -> None:
    at = [MONDAY_MS + n * DAY_MS + HOUR_MS for n in range(3)]
    told = [StockReport(at[0], 0.0, 54.0), StockReport(at[1], 0.0, 0.0), StockReport(at[2], 0.0, 0.0)]
    assert quantities(BASE, told) == [54.0, 0.0, 54.0]
    # A report of an hour after the order is too early to have it in.
    late = BASE + 'reported_within = "2h"\n'
    assert quantities(BASE, [StockReport(t, 0.0, 0.0) for t in at]) == [54.0, 54.0, 54.0]
    assert quantities(late, [StockReport(t, 0.0, 0.0) for t in at]) == [54.0, 0.0, 54.0]


def test_where_stock_never_tells_own_orders_count_for_their_lead_time() -> None:
    own = BASE + 'on_order_from = "orders"\n'
    at = [MONDAY_MS + n * DAY_MS + HOUR_MS for n in range(4)]
    told = [StockReport(t, 0.0, 1_000.0) for t in at]
    assert quantities(own, told) == [54.0, 0.0, 0.0, 54.0]  # it is taken to be in the stock of Wednesday 01:00


def test_packs_and_least_orders_are_kept() -> None:
    assert ordered_at_once(BASE + "pack = 12\n")[0].quantity == 60.0
    assert ordered_at_once(BASE + "min_order = 100\n")[0].quantity == 100.0
    assert ordered_at_once(BASE, on_hand=54.0) == []


def test_s_and_big_s_order_only_below_s_and_then_up_to_big_s() -> None:
    given = BASE + 'policy = "s_S"\norder_quantity = 30\n'
    assert ordered_at_once(given, on_hand=55.0) == []
    (order,) = ordered_at_once(given, on_hand=54.0)
    assert (order.quantity, order.reorder_point, order.order_up_to) == (30.0, 54.0, 84.0)
    economic = BASE + 'policy = "s_S"\norder_cost = 8\nholding_cost = 0.1\n'
    (order,) = ordered_at_once(economic)
    batch = float(economic_quantity(np.array([10.0]), 8.0, 0.1)[0])
    assert order.order_up_to == pytest.approx(54 + batch, rel=0.01)


def test_a_newsvendor_orders_for_one_period_whatever_is_left_of_the_last() -> None:
    text = '[default]\npolicy = "newsvendor"\nlead_time = "0s"\nunderage_cost = 3\noverage_cost = 1\n'
    (order,) = ordered_at_once(text, on_hand=500.0)
    assert order.quantity == 15.0  # three quarters of 0 to 20
    assert order.service_level == 0.75


def test_no_more_is_ordered_than_is_sold_within_the_shelf_life() -> None:
    (order,) = ordered_at_once(BASE + 'shelf_life = "1d"\n')
    assert order.order_up_to == pytest.approx(30.0, abs=0.1)  # what three days sell on average


def test_a_fill_rate_needs_less_than_the_same_share_of_periods() -> None:
    filled = ordered_at_once(BASE.replace("service_level", "fill_rate"))
    assert filled[0].service_measure == "fill_rate"
    assert filled[0].order_up_to < ordered_at_once(BASE)[0].order_up_to


def test_an_uncertain_lead_time_needs_more_than_its_mean() -> None:
    sure = ordered_at_once(BASE)[0]
    unsure = ordered_at_once(BASE.replace('"2d"', '{ "1d" = 0.5, "3d" = 0.5 }'))[0]
    assert unsure.lead_time_s == sure.lead_time_s == LeadTime((2.0 * DAY_MS,)).mean / 1000
    assert unsure.order_up_to > sure.order_up_to


def test_a_delisted_item_is_no_longer_ordered() -> None:
    reviews = reviews_of(BASE)
    reviews.stock(MUG, StockReport(MONDAY_MS - 1, 0.0, 0.0))
    assert reviews.forecast(MUG, outlook(MONDAY_MS))
    reviews.delisted("mug", "1h")
    assert reviews.stock(MUG, StockReport(MONDAY_MS + DAY_MS + HOUR_MS, 0.0, 0.0))
    reviews.delisted("mug", "1d")
    assert reviews.stock(MUG, StockReport(MONDAY_MS + 2 * DAY_MS + HOUR_MS, 0.0, 0.0)) == []


def test_older_forecasts_and_reports_do_not_take_the_place_of_newer_ones() -> None:
    reviews = reviews_of(BASE)
    reviews.stock(MUG, StockReport(MONDAY_MS - 1, 50.0, 0.0))
    reviews.stock(MUG, StockReport(MONDAY_MS - 2, 0.0, 0.0))
    (order,) = reviews.forecast(MUG, outlook(MONDAY_MS, revision=2))
    reviews.forecast(MUG, outlook(MONDAY_MS - HOUR_MS, per_day=90.0))
    (next_order,) = reviews.stock(MUG, StockReport(MONDAY_MS + DAY_MS + HOUR_MS, 50.0, 4.0))
    assert order.on_hand == 50.0
    assert next_order.forecast_id == order.forecast_id


def test_orders_put_off_are_the_same() -> None:
    found = []
    for are_put_off in (False, True):
        reviews = reviews_of(BASE)
        reviews.are_put_off = are_put_off
        made = []
        for n in range(5):
            at = MONDAY_MS + n * DAY_MS
            for name in ("mug", "lid"):
                identity = Identity(name, name, "")
                made += reviews.stock(identity, StockReport(at - HOUR_MS, 5.0 * n, 0.0))
                made += reviews.forecast(identity, outlook(at, 10.0 + n, revision=n + 1))
        found.append(sorted(made + reviews.orders(), key=lambda order: (order.review_time, order.item_id)))
        assert reviews.orders() == []
    assert len(found[0]) == 10
    assert found[0] == found[1]


def entry(topic: str, offset: int, time_ms: int) -> Entry:
    return Entry(time_ms, topic, offset, None)


def test_records_are_merged_by_time_and_wait_for_a_topic_that_may_have_earlier_ones() -> None:
    merge = Merge(["a", "b"])
    merge.add(entry("a", 0, 10))
    merge.add(entry("a", 1, 30))
    assert list(merge.ready()) == []
    merge.add(entry("b", 0, 20))
    assert [(e.topic, e.time_ms) for e in merge.ready()] == [("a", 10), ("b", 20)]
    merge.at_end("b")
    assert [e.time_ms for e in merge.ready()] == [30]
    assert not merge.is_at_end
    merge.at_end("a")
    assert merge.is_at_end
