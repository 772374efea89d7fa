"""However events are cut into batches and ordered, the sums are those of a dict."""

from collections import defaultdict
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.chunks import CHUNK, LARGE, MOST_ROWS_A_BUCKET
from feature_store.features import SOURCE_FEATURES
from feature_store.items import Item
from feature_store.layout import MAX_EXACT, STORED_FREQS
from feature_store.store import Claim, FeatureStore, SumOverflowError
from tests.feature_store.stores import Added, apply, batch, by_hand, fresh_namespace, open_store, row, sums
from worker.local_stack import LocalRedis

TOPIC = "shop.orders.v1"
SERIES = ("mug", "pot")
# Few chunks, so that batches meet in them; buckets around an edge.
BUCKETS = {freq: st.integers(0, size + 8) for freq, size in CHUNK.items()}
SMALL = st.integers(-3, 9)
VALUES = st.lists(SMALL, min_size=8, max_size=8).filter(any)
NEAR_LIMIT = st.sampled_from(
    [LARGE - 1, LARGE, -LARGE, MAX_EXACT // 2, MAX_EXACT - 2, -MAX_EXACT // 2, 9_007_199_254_740_000, 992_000, 1, 2]
)
LARGE_VALUES = st.lists(st.just(0) | NEAR_LIMIT, min_size=8, max_size=8).filter(any)
Key = tuple[str, str, int]  # freq, series_id, bucket


def keys(most: int) -> st.SearchStrategy[list[Key]]:
    one = st.sampled_from(STORED_FREQS).flatmap(
        lambda freq: st.tuples(st.just(freq), st.sampled_from(SERIES), BUCKETS[freq])
    )
    return st.lists(one, min_size=1, max_size=most, unique=True)


def batches(values: st.SearchStrategy[list[int]], most: int) -> st.SearchStrategy[list[dict[Key, list[int]]]]:
    a_batch = keys(20).flatmap(lambda found: st.fixed_dictionaries(dict.fromkeys(found, values)))
    return st.lists(a_batch, min_size=1, max_size=most)


def added(step: dict[Key, list[int]]) -> list[Added]:
    return [sums(name, [bucket, *values], freq=freq) for (freq, name, bucket), values in step.items()]


async def open_items(store: FeatureStore) -> Claim:
    """A partition in which the series are items, so that they can be looked up."""
    claim = await store.claim(0)
    items = {name: Item(name, name, "", 1, 1) for name in SERIES}
    await apply(store, claim, batch(claim, {TOPIC: 1}, items=items))
    return claim


async def looked_up(store: FeatureStore) -> dict[Key, list[int]]:
    found = {}
    for name in SERIES:
        item = await store.look_up(0, name, "")
        assert item is not None
        for freq, (buckets, values) in item.sums.items():
            assert buckets.tolist() == sorted(set(buckets.tolist()))
            for bucket, cell in zip(buckets.tolist(), values.tolist(), strict=True):
                found[freq, name, bucket] = cell
    return found


async def read(store: FeatureStore, claim: Claim) -> dict[Key, list[int]]:
    """The same, as forecasts read them."""
    found: dict[Key, list[int]] = defaultdict(lambda: [0] * 8)
    for freq in STORED_FREQS:
        rows = (await store.read(claim, "1h", [], freq, SERIES, 0, 2 * CHUNK[freq])).rows
        for at, bucket, values in zip(rows.item.tolist(), rows.bucket.tolist(), rows.values.tolist(), strict=True):
            cell = found[freq, SERIES[at], bucket]
            cell[:] = [a + b for a, b in zip(cell, values, strict=True)]
    return dict(found)


@settings(max_examples=40)
@given(batches(VALUES, 12))
async def test_batches_in_any_order_and_cut_add_up(
    each_redis_server: LocalRedis, steps: list[dict[Key, list[int]]]
) -> None:
    expected: dict[Key, list[int]] = defaultdict(lambda: [0] * 8)
    async with open_store(each_redis_server.url, fresh_namespace()) as store:
        claim = await open_items(store)
        for n, step in enumerate(steps, start=2):
            await apply(store, claim, batch(claim, {TOPIC: n}, added(step)))
            for key, values in step.items():
                expected[key] = [a + b for a, b in zip(expected[key], values, strict=True)]
        assert await looked_up(store) == expected
        assert await read(store, claim) == expected


@settings(max_examples=40)
@given(batches(VALUES | LARGE_VALUES, 10))
async def test_a_batch_is_refused_exactly_when_a_sum_would_reach_2_to_the_53(
    each_redis_server: LocalRedis, steps: list[dict[Key, list[int]]]
) -> None:
    expected: dict[Key, list[int]] = {}
    position = 1
    async with open_store(each_redis_server.url, fresh_namespace()) as store:
        claim = await open_items(store)
        for step in steps:
            after = {k: [a + b for a, b in zip(expected.get(k, [0] * 8), v, strict=True)] for k, v in step.items()}
            fits = all(abs(value) < MAX_EXACT for values in after.values() for value in values)
            try:
                await apply(store, claim, batch(claim, {TOPIC: position + 1}, added(step)))
            except SumOverflowError:
                assert not fits
                continue
            assert fits
            position += 1
            expected |= after
        assert await looked_up(store) == expected
        assert await read(store, claim) == expected


@pytest.mark.parametrize(("freq", "source"), [("5m", "orders"), ("1h", "clicks"), ("1d", "reviews")])
async def test_a_chunk_stays_small_however_late_its_rows_come(each_redis_url: str, freq: str, source: str) -> None:
    """Rows that come out of order are appended; once they are many they are added up, and no sum changes."""
    size, columns, random = CHUNK[freq], SOURCE_FEATURES[source], Random(1)
    expected: dict[int, int] = defaultdict(int)
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await open_items(store)
        name = f"{{shop:0}}:{claim.incarnation}:sums:mug"
        counts = []
        for n in range(2, 200):
            chosen = random.sample(range(size), k=random.randint(1, 6))
            rows = [[bucket, *(int(column == columns.start) for column in range(8))] for bucket in chosen]
            await apply(store, claim, batch(claim, {TOPIC: n}, [sums("mug", *rows, freq=freq)]))
            for bucket in chosen:
                expected[bucket] += 1
            (text,) = await client.hvals(name)
            counts.append(text.count(";"))
        found = {bucket: values[columns.start] for (_, _, bucket), values in (await looked_up(store)).items()}
        assert found == expected
        assert sum(before > after for before, after in pairwise(counts)) >= 2  # added up, and grown again
        assert max(counts) <= (MOST_ROWS_A_BUCKET + 2) * size


async def test_events_of_the_running_bucket_add_to_its_row(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await store.claim(0)
        name = f"{{shop:0}}:{claim.incarnation}:sums:mug"
        texts = []
        for n, rows in enumerate(([row(3, 1)], [row(3, 2), row(4, 1)], [row(4, 5)], [row(3, 9)], [row(3, 1)]), start=1):
            await apply(store, claim, batch(claim, {TOPIC: n}, [sums("mug", *rows)]))
            texts.append(await client.hget(name, "ho0"))
        assert texts == [
            "3:1,0,0,0;",
            "3:3,0,0,0;4:1,0,0,0;",
            "3:3,0,0,0;4:6,0,0,0;",
            "3:3,0,0,0;4:6,0,0,0;3:9,0,0,0;",
            "3:3,0,0,0;4:6,0,0,0;3:10,0,0,0;",
        ]


async def test_a_chunk_near_the_limit_of_exact_numbers_is_marked_and_kept_added_up(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await store.claim(0)
        name = f"{{shop:0}}:{claim.incarnation}:sums:mug"
        texts = []
        for n, (bucket, value) in enumerate([(5, LARGE - 1), (5, 1), (3, 7), (3, 2), (5, -1), (3, 1)], start=1):
            await apply(store, claim, batch(claim, {TOPIC: n}, [sums("mug", row(bucket, value))]))
            texts.append(await client.hget(name, "ho0"))
        assert texts == [
            f"5:{LARGE - 1},0,0,0;",
            f"+5:{LARGE},0,0,0;",
            f"+3:7,0,0,0;5:{LARGE},0,0,0;",
            f"+3:9,0,0,0;5:{LARGE},0,0,0;",
            f"3:9,0,0,0;5:{LARGE - 1},0,0,0;",
            f"3:9,0,0,0;5:{LARGE - 1},0,0,0;3:1,0,0,0;",
        ]
