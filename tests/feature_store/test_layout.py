from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from feature_store.features import FEATURES
from feature_store.layout import LAYOUT_VERSION, MAX_EXACT, Keys, pack_hash, unpack_sums

EXACT = st.integers(-MAX_EXACT + 1, MAX_EXACT - 1)
ROWS = st.dictionaries(st.integers(0, 10**9), st.lists(EXACT, min_size=8, max_size=8), max_size=5)
TEXT = st.text(min_size=1, max_size=8)


@given(st.lists(ROWS, max_size=4))
def test_sums_read_back_as_they_were_written(hashes: list[dict[int, list[int]]]) -> None:
    flat = [
        [part.encode() for part in pack_hash({str(b): ",".join(map(str, row)) for b, row in rows.items()})]
        for rows in hashes
    ]
    origin, bucket, values = unpack_sums(flat)
    expected = [(i, b, row) for i, rows in enumerate(hashes) for b, row in rows.items()]
    assert list(zip(origin.tolist(), bucket.tolist(), values.tolist(), strict=True)) == expected
    assert values.shape == (len(expected), len(FEATURES))
    assert origin.dtype == bucket.dtype == values.dtype == np.int64


@given(st.integers(0, 999), TEXT, TEXT, TEXT)
def test_all_keys_of_a_partition_share_one_cluster_slot(partition: int, one: str, other: str, incarnation: str) -> None:
    slots: set[int] = set()
    for series in (one, other):
        keys = Keys("shop", partition, incarnation)
        names = [keys.meta, keys.items, keys.products, keys.dirty("1h"), keys.forecasts("1d"), keys.sums("5m", series)]
        slots.update(key_slot(name.encode()) for name in names)
    assert slots == {key_slot(f"shop:{partition}".encode())}


def test_keys_read_as_documented() -> None:
    keys = Keys("shop", 3, "ab12")
    assert keys.meta == "{shop:3}:meta"
    assert keys.items == "{shop:3}:ab12:items"
    assert keys.products == "{shop:3}:ab12:products"
    assert keys.dirty("1h") == "{shop:3}:ab12:dirty:1h"
    assert keys.forecasts("1h") == "{shop:3}:ab12:forecasts:1h"
    assert keys.sums("5m", "mug@york") == "{shop:3}:ab12:sums:5m:mug@york"


def names_of(keys: Keys) -> set[str]:
    return {keys.items, keys.products, keys.dirty("1h"), keys.forecasts("1h"), keys.sums("1h", "mug")}


@pytest.mark.parametrize("other", [("shop", 3, "cd34"), ("shop", 4, "ab12"), ("shop2", 3, "ab12")])
def test_no_key_is_shared_between_incarnations_partitions_or_namespaces(other: Any) -> None:
    assert names_of(Keys("shop", 3, "ab12")).isdisjoint(names_of(Keys(*other)))


def test_what_stands_in_redis_is_pinned_to_a_version() -> None:
    """Whoever changes the order or number of features changes what is stored: raise LAYOUT_VERSION with this line."""
    names = ",".join(feature.name for feature in FEATURES)
    pinned = {1: "units,returned_units,order_lines,revenue,views,add_to_carts,review_count,rating_sum"}
    assert pinned[LAYOUT_VERSION] == names
