import numpy as np

from feature_store.events import Action
from forecaster.synthetic import generate, invent_clicks
from tests.forecaster.builders import small_shop

DAY_MS = 86_400_000


def test_the_same_seed_gives_the_same_shop_and_another_another() -> None:
    first, again, other = (generate(items=5, days=60, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.batch.event_time_ms, again.batch.event_time_ms)
    assert np.array_equal(first.batch.quantity, again.batch.quantity)
    assert first.products == again.products
    assert not np.array_equal(first.batch.event_time_ms[:50], other.batch.event_time_ms[:50])


def test_nothing_is_sold_on_announced_closed_days() -> None:
    shop = small_shop()
    sales = shop.batch.event_time_ms[shop.batch.action == Action.SALE]
    for entry in shop.global_entries:
        assert not ((sales >= entry.start_time) & (sales < entry.end_time)).any()


def test_promotions_sell_more() -> None:
    shop = generate(items=60, days=200, seed=11)
    sold = shop.batch.action == Action.SALE
    during, outside, promoted_days, all_days = 0, 0, 0.0, 0.0
    for i, product in enumerate(shop.products):
        times = shop.batch.event_time_ms[sold & (shop.batch.series_index == i)]
        inside = sum(int(((times >= e.start_time) & (times < e.end_time)).sum()) for e in product.calendar)
        days = sum((e.end_time - e.start_time) / DAY_MS for e in product.calendar)
        rate = len(times) / 200
        if rate > 1 and days:
            during, outside = during + inside, outside + len(times) - inside
            promoted_days, all_days = promoted_days + days, all_days + 200 - days
    assert during / promoted_days > 1.1 * outside / all_days


def test_views_of_a_day_tell_of_its_sales() -> None:
    shop = small_shop()
    batch = shop.batch
    busiest = np.bincount(batch.series_index[batch.action == Action.SALE]).argmax()
    mine = batch.series_index == busiest
    days = (batch.event_time_ms[mine] - batch.event_time_ms[0]) // DAY_MS
    views = np.bincount(days[batch.action[mine] == Action.VIEW], minlength=300)
    sales = np.bincount(days[batch.action[mine] == Action.SALE], minlength=300)
    assert np.corrcoef(views, sales)[0, 1] > 0.5


def test_invented_clicks_leave_the_orders_as_they_are() -> None:
    shop = small_shop()
    orders = shop.batch.take(np.isin(shop.batch.action, (Action.SALE, Action.CANCEL)))
    both = invent_clicks(orders, seed=4)
    kept = both.take(np.isin(both.action, (Action.SALE, Action.CANCEL)))
    assert np.array_equal(kept.event_time_ms, orders.event_time_ms)
    assert np.array_equal(kept.quantity, orders.quantity)
    assert np.array_equal(kept.series_index, orders.series_index)
    assert (np.diff(both.event_time_ms) >= 0).all()
    assert both.quantity[both.action == Action.VIEW].max() == 0
    views = (both.action == Action.VIEW).sum() / (orders.action == Action.SALE).sum()
    assert 2.8 < views < 3.2
