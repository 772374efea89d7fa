"""Ids of events counted are kept for a window of event time; who sends one again is told, and nothing is written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.features import SOURCES
from feature_store.layout import EventIds
from feature_store.store import BehindError, DuplicateEventsError, FencedError, SumOverflowError
from tests.feature_store.stores import apply, batch, by_hand, fresh_namespace, open_store, row, sums, units
from worker.local_stack import LocalRedis

TOPIC = "shop.orders.v1"
TOO_MUCH = sums("mug", row(7, 2**53))


async def test_an_event_counted_before_is_told_and_nothing_is_written(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await store.claim(0)
        seen = [EventIds("orders", 5, ["a", "b", "c"]), EventIds("clicks", 5, ["a"])]
        await apply(store, claim, batch(claim, {TOPIC: 1}, [sums("mug", row(7, 1))], event_ids=seen))
        before = {name: await client.dump(name) for name in await client.keys()}
        again = [
            EventIds("orders", 5, ["new", "b"]),
            EventIds("orders", 6, ["c", "d"]),
            EventIds("clicks", 4, ["b", "a"]),
            EventIds("reviews", 5, ["a"]),
        ]
        step = batch(claim, {TOPIC: 2}, [sums("mug", row(7, 1))], dirty=["mug"], event_ids=again)
        with pytest.raises(DuplicateEventsError) as told:
            await store.apply(claim, step)
        assert told.value.ids == {"orders": {"b", "c"}, "clicks": {"a"}}
        assert {name: await client.dump(name) for name in await client.keys()} == before
        rest = [EventIds("orders", 5, ["new"]), EventIds("orders", 6, ["d"]), EventIds("clicks", 4, ["b"])]
        await apply(store, claim, step._replace(event_ids=rest))
        assert await units(store, claim, "mug") == {7: 2}
        assert claim.generations == {"orders": {5, 6}, "clicks": {4, 5}, "reviews": set()}
        assert (await store.claim(0)).generations == claim.generations


async def test_what_is_checked_before_what(each_redis_url: str) -> None:
    """A batch applied before is no duplicate of itself; one that is fenced or behind is not looked at any further."""
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        ids = [EventIds("orders", 5, ["a"])]
        step = batch(claim, {TOPIC: 1}, [sums("mug", row(7, 1))], event_ids=ids, oldest_generation={"orders": 5})
        sequence = await store.apply(claim, step)
        claim.generations.clear()  # as if the reply had been lost
        assert await store.apply(claim, step) == sequence
        assert claim.generations == {"orders": {5}}
        claim.positions[TOPIC] = 1
        with pytest.raises(DuplicateEventsError):
            await store.apply(claim, batch(claim, {TOPIC: 2}, [TOO_MUCH], event_ids=ids))
        with pytest.raises(SumOverflowError):
            await store.apply(claim, batch(claim, {TOPIC: 2}, [TOO_MUCH], event_ids=[EventIds("orders", 5, ["b"])]))
        await apply(store, claim, batch(claim, {TOPIC: 2}, event_ids=[EventIds("orders", 5, ["b"])]))
        behind = batch(claim, {}, event_ids=ids)._replace(positions={TOPIC: (1, 3)})
        with pytest.raises(BehindError):
            await store.apply(claim, behind)
        await store.claim(0)
        with pytest.raises(FencedError):
            await store.apply(claim, batch(claim, {TOPIC: 3}, event_ids=ids))


async def test_generations_that_left_the_window_are_dropped(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store, by_hand(each_redis_url) as client:
        claim = await store.claim(0)

        async def add(n: int, *ids: EventIds, **oldest: int) -> set[str]:
            await apply(store, claim, batch(claim, {TOPIC: n}, event_ids=ids, oldest_generation=oldest))
            assert (await store.claim(0)).generations == claim.generations
            return {name.partition(":ids:")[2] for name in await client.keys("*:ids:*")}

        claim = await store.claim(0)
        assert await add(1, EventIds("orders", 5, ["a"]), EventIds("orders", 7, ["b"])) == {"orders:5", "orders:7"}
        claim = await store.claim(0)
        assert await add(2, EventIds("clicks", 5, ["a"]), orders=5, clicks=5) == {"orders:5", "orders:7", "clicks:5"}
        claim = await store.claim(0)
        assert await add(3, orders=6) == {"orders:7", "clicks:5"}
        claim = await store.claim(0)
        # What comes later than the window is counted, and nothing is remembered of it.
        assert await add(4, EventIds("orders", 5, ["z"]), orders=6) == {"orders:7", "clicks:5"}
        claim = await store.claim(0)
        assert await add(5, EventIds("orders", 9, ["y"]), orders=9, clicks=6) == {"orders:9"}
        assert claim.generations == {"orders": {9}, "clicks": set(), "reviews": set()}


async def test_more_ids_than_one_command_takes(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        ids = [f"order-{n}" for n in range(20_000)]
        await apply(store, claim, batch(claim, {TOPIC: 1}, event_ids=[EventIds("orders", 5, ids)]))
        step = batch(claim, {TOPIC: 2}, event_ids=[EventIds("orders", 6, [*ids[::-1], "new"])])
        with pytest.raises(DuplicateEventsError) as told:
            await store.apply(claim, step)
        assert told.value.ids == {"orders": set(ids)}


GENERATION = st.integers(0, 6)
STEPS = st.lists(
    st.tuples(
        st.dictionaries(
            st.tuples(st.sampled_from(SOURCES), st.text("abcé :", min_size=1, max_size=2)), GENERATION, max_size=8
        ),
        st.dictionaries(st.sampled_from(SOURCES), GENERATION),
    ),
    max_size=8,
)


@settings(max_examples=60)
@given(STEPS)
async def test_duplicates_are_those_of_a_plain_list(
    each_redis_server: LocalRedis, steps: list[tuple[dict[tuple[str, str], int], dict[str, int]]]
) -> None:
    """The list holds (source, id, generation) of all that was counted and is still remembered."""
    remembered: list[tuple[str, str, int]] = []
    async with open_store(each_redis_server.url, fresh_namespace()) as store:
        claim = await store.claim(0)
        for n, (sent, oldest) in enumerate(steps, start=1):
            known = {
                (source, name)
                for (source, name), generation in sent.items()
                if any((source, name) == kept[:2] and abs(kept[2] - generation) <= 1 for kept in remembered)
            }
            if known:
                with pytest.raises(DuplicateEventsError) as told:
                    await store.apply(claim, batch(claim, {TOPIC: n}, event_ids=grouped(sent)))
                assert {(source, name) for source, names in told.value.ids.items() for name in names} == known
            fresh = {key: generation for key, generation in sent.items() if key not in known}
            await apply(store, claim, batch(claim, {TOPIC: n}, event_ids=grouped(fresh), oldest_generation=oldest))
            remembered += [(*key, generation) for key, generation in fresh.items()]
            remembered = [kept for kept in remembered if kept[2] >= oldest.get(kept[0], 0)]


def grouped(sent: dict[tuple[str, str], int]) -> list[EventIds]:
    groups: dict[tuple[str, int], list[str]] = {}
    for (source, name), generation in sent.items():
        groups.setdefault((source, generation), []).append(name)
    return [EventIds(source, generation, names) for (source, generation), names in groups.items()]
