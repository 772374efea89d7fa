from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from feature_store.features import FEATURES, SOURCE_FEATURES, SOURCES
from feature_store.items import Item
from feature_store.layout import (
    LAYOUT_VERSION,
    ForecastSummary,
    Keys,
    pack_item,
    pack_summary,
    unpack_head,
    unpack_item,
    unpack_summary,
)

TEXT = st.text(min_size=1, max_size=8)
HUNDREDTHS = st.lists(st.integers(0, 10**9).map(lambda n: n / 100), max_size=4)


def test_each_feature_is_in_the_columns_of_its_source() -> None:
    assert tuple(SOURCE_FEATURES) == SOURCES
    assert [(source, f.name) for source in SOURCES for f in FEATURES[SOURCE_FEATURES[source]]] == [
        (f.source, f.name) for f in FEATURES
    ]


@given(st.builds(Item, TEXT, TEXT, st.text(max_size=3), st.integers(0, 2**53), st.integers(0, 2**53)))
def test_items_read_back_as_they_were_written(item: Item) -> None:
    assert unpack_item(item.item_id, pack_item(item).encode()) == item


@given(st.builds(ForecastSummary, mean=HUNDREDTHS, q10=HUNDREDTHS, q50=HUNDREDTHS, q90=HUNDREDTHS))
def test_forecasts_read_back_as_they_were_written(summary: ForecastSummary) -> None:
    packed = pack_summary(summary).encode()
    assert unpack_summary(packed) == summary
    assert unpack_head(packed) == (summary.revision, summary.running_bucket)


def test_a_forecast_is_kept_to_a_hundredth_of_a_unit() -> None:
    summary = ForecastSummary("f", 3, 480_000, 5, 6, "m", "1", True, [1.236, 0.004], [0.1], [12.0], [0.996])
    packed = '[3,480000,"f",5,6,"m","1",true,[124,0],[10],[1200],[100]]'
    assert pack_summary(summary) == packed
    assert unpack_summary(packed.encode()).mean == [1.24, 0.0]


@given(st.integers(0, 999), TEXT, TEXT, TEXT)
def test_all_keys_of_a_partition_share_one_cluster_slot(partition: int, one: str, other: str, incarnation: str) -> None:
    slots: set[int] = set()
    for series in (one, other):
        keys = Keys("shop", partition, incarnation)
        names = [keys.meta, keys.items, keys.products, keys.dirty("1h"), keys.forecasts("1d"), keys.sums(series)]
        slots.update(key_slot(name.encode()) for name in [*names, keys.ids("orders", 12)])
    assert slots == {key_slot(f"shop:{partition}".encode())}


def test_keys_read_as_documented() -> None:
    keys = Keys("shop", 3, "ab12")
    assert keys.meta == "{shop:3}:meta"
    assert keys.items == "{shop:3}:ab12:items"
    assert keys.products == "{shop:3}:ab12:products"
    assert keys.dirty("1h") == "{shop:3}:ab12:dirty:1h"
    assert keys.forecasts("1h") == "{shop:3}:ab12:forecasts:1h"
    assert keys.sums("mug@york") == "{shop:3}:ab12:sums:mug@york"
    assert keys.ids("orders", 12) == "{shop:3}:ab12:ids:orders:12"


def names_of(keys: Keys) -> set[str]:
    return {
        keys.items,
        keys.products,
        keys.dirty("1h"),
        keys.forecasts("1h"),
        keys.sums("mug"),
        keys.ids("orders", 1),
    }


@pytest.mark.parametrize("other", [("shop", 3, "cd34"), ("shop", 4, "ab12"), ("shop2", 3, "ab12")])
def test_no_key_is_shared_between_incarnations_partitions_or_namespaces(other: Any) -> None:
    assert names_of(Keys("shop", 3, "ab12")).isdisjoint(names_of(Keys(*other)))


def test_what_stands_in_redis_is_pinned_to_a_version() -> None:
    """Whoever changes the order or number of features changes what is stored: raise LAYOUT_VERSION with this line."""
    names = ",".join(feature.name for feature in FEATURES)
    pinned = {2: "units,returned_units,order_lines,revenue,views,add_to_carts,review_count,rating_sum"}
    assert pinned[LAYOUT_VERSION] == names
