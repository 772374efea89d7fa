"""Replies lost, workers killed, Redis killed: each event counts once."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.calendar_time import ShopCalendar
from feature_store.events import item_id_of
from feature_store.layout import STORED_FREQS
from feature_store.store import (
    BehindError,
    Claim,
    FeatureStore,
    FencedError,
    StoreClosedError,
    StoreRefusedError,
)
from tests.feature_store.builders import DAY_MS, NOON_MS, Happened, events_between, naive_bucket, naive_sums
from tests.feature_store.stores import (
    LossyWire,
    Noticed,
    apply,
    batch,
    by_hand,
    cells,
    fresh_namespace,
    open_store,
    row,
    server_setting,
    sums,
    units,
)
from worker.local_server import HOST
from worker.local_stack import LocalRedis, redis_binaries

TOPIC = "shop.orders.v1"
CALENDAR = ShopCalendar("Europe/London", {"york": "America/New_York"})


@pytest.fixture(params=list(redis_binaries()) or ["missing"])
def own_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalRedis]:
    """One that a test may stop and kill; what was written survives a stop."""
    with LocalRedis(tmp_path, binary=redis_binaries()[request.param]) as server:
        yield server


@asynccontextmanager
async def wire_to(server: LocalRedis) -> AsyncIterator[LossyWire]:
    async with LossyWire(HOST, server.port) as wire:
        yield wire


async def assert_counted_once(store: FeatureStore, claim: Claim, events: list[Happened]) -> None:
    """Every cell equals a recomputation over all events."""
    series = sorted({item_id_of(e.product_id, e.location_id) for e in events})
    for freq in STORED_FREQS:
        expected: dict[str, dict[int, list[int]]] = {name: {} for name in series}
        for (product, location, bucket), values in naive_sums(events, freq, CALENDAR).items():
            expected[item_id_of(product, location)][bucket] = list(values)
        span = [naive_bucket(freq, at, "America/New_York") for at in (NOON_MS - 3 * DAY_MS, NOON_MS + DAY_MS)]
        assert await cells(store, claim, freq, series, *span) == expected


LIVES = ("goes well", "loses the reply", "dies before", "dies after", "is fenced first", "is fenced after")
STEPS = st.lists(
    st.tuples(st.lists(events_between(NOON_MS - 2 * DAY_MS, NOON_MS), min_size=1, max_size=5), st.sampled_from(LIVES)),
    min_size=1,
    max_size=6,
)


async def take_step(
    store: FeatureStore, wire: LossyWire, claim: Claim, log: list[Happened], to: int, life: str
) -> Claim:
    """A worker applies the log from its position to `to`, or dies trying. Returns the claim of who goes on."""
    position = claim.positions.get(TOPIC, 0)
    added = [
        sums(item_id_of(product, location), [bucket, *values], freq=freq)
        for freq in STORED_FREQS
        for (product, location, bucket), values in naive_sums(log[position:to], freq, CALENDAR).items()
    ]
    step = batch(claim, {TOPIC: to}, added)
    if life == "dies before":
        return await store.claim(claim.partition)
    if life == "is fenced first":
        new = await store.claim(claim.partition)
        with pytest.raises(FencedError):
            await store.apply(claim, step)
        return new
    if life == "loses the reply":
        wire.lose_next_reply()
    await apply(store, claim, step)
    if life == "dies after":
        return await store.claim(claim.partition)
    if life == "is fenced after":
        new = await store.claim(claim.partition)
        with pytest.raises(FencedError):
            await store.apply(claim, step)
        return new
    return claim


@settings(max_examples=40)
@given(STEPS)
async def test_each_event_counts_once_whoever_dies_and_whatever_is_lost(
    each_redis_server: LocalRedis, steps: list[tuple[list[Happened], str]]
) -> None:
    log = [event for events, _ in steps for event in events]
    ends = list(itertools.accumulate(len(events) for events, _ in steps))
    async with wire_to(each_redis_server) as wire, open_store(wire.url, fresh_namespace()) as store:
        claim = await store.claim(0)
        for to, (_, life) in zip(ends, steps, strict=True):
            claim = await take_step(store, wire, claim, log, to, life)
        if claim.positions.get(TOPIC, 0) < len(log):
            claim = await take_step(store, wire, claim, log, len(log), "goes well")
        await assert_counted_once(store, claim, log)
        assert wire.lost == [life for _, life in steps].count("loses the reply")


async def test_a_batch_whose_reply_was_lost_is_recognised(each_redis_server: LocalRedis) -> None:
    async with wire_to(each_redis_server) as wire, open_store(wire.url, fresh_namespace()) as store:
        claim = await store.claim(0)
        await apply(store, claim, batch(claim, {TOPIC: 1}, [sums("mug", row(7, 1))]))
        wire.lose_next_reply()
        sequence = await apply(store, claim, batch(claim, {TOPIC: 2}, [sums("mug", row(7, 1))], dirty=["mug"]))
        assert wire.lost == 1
        assert await units(store, claim, "mug") == {7: 2}
        assert (await store.claim(0)).dirty["1h"] == {"mug": sequence}


async def test_a_claim_whose_reply_was_lost_holds(each_redis_server: LocalRedis) -> None:
    async with wire_to(each_redis_server) as wire, open_store(wire.url, fresh_namespace()) as store:
        before = await store.claim(0)
        wire.lose_next_reply()
        claim = await store.claim(0)
        assert (wire.lost, claim.incarnation) == (1, before.incarnation)
        await apply(store, claim, batch(claim, {TOPIC: 1}, [sums("mug", row(7, 1))]))


async def test_a_call_waits_while_redis_is_stopped_and_then_succeeds(own_redis: LocalRedis) -> None:
    async with open_store(own_redis.url) as store:
        claim = await store.claim(0)
        await apply(store, claim, batch(claim, {TOPIC: 1}, [sums("mug", row(7, 1))]))
        await asyncio.to_thread(own_redis.stop)
        with Noticed() as noticed:
            waiting = asyncio.create_task(store.apply(claim, batch(claim, {TOPIC: 2}, [sums("mug", row(7, 1))])))
            await noticed.in_call(waiting)
            await asyncio.to_thread(own_redis.start)
            await waiting
        claim.positions[TOPIC] = 2
        assert await units(store, claim, "mug") == {7: 2}


async def test_after_redis_was_killed_positions_and_sums_still_agree(own_redis: LocalRedis) -> None:
    """What its log had not been given yet may be lost, but always whole steps, and that is noticed."""
    async with open_store(own_redis.url) as store:
        claim = await store.claim(0)
        for n in range(1, 200):
            await apply(store, claim, batch(claim, {TOPIC: n}, [sums("mug", row(7, 1)), sums("pot", row(n, n))]))
        await asyncio.to_thread(own_redis.kill)
        await asyncio.to_thread(own_redis.start)
        last = batch(claim, {TOPIC: 200}, [sums("mug", row(7, 1)), sums("pot", row(200, 200))])
        with suppress(BehindError):
            await store.apply(claim, last)
        claim = await store.claim(0)
        kept = claim.positions.get(TOPIC, 0)
        assert await units(store, claim, "mug") == ({7: kept} if kept else {})
        assert await units(store, claim, "pot") == {n: n for n in range(1, kept + 1)}


async def test_closing_the_store_ends_calls_that_wait_for_redis(own_redis: LocalRedis) -> None:
    async with open_store(own_redis.url) as store:
        claim = await store.claim(0)
        await asyncio.to_thread(own_redis.stop)
        with Noticed() as noticed:
            waiting = asyncio.create_task(store.apply(claim, batch(claim, {TOPIC: 1})))
            await noticed.in_call(waiting)
            await store.close()
            with pytest.raises(StoreClosedError):
                await waiting


async def test_a_call_waits_while_redis_has_no_memory_left(each_redis_url: str) -> None:
    async with open_store(each_redis_url) as store:
        claim = await store.claim(0)
        with Noticed() as noticed:
            async with server_setting(each_redis_url, "maxmemory", "1"):
                step = batch(claim, {TOPIC: 1}, [sums("mug", row(7, 1))], dirty=["mug"])
                waiting = asyncio.create_task(store.apply(claim, step))
                await noticed.in_call(waiting)
            await waiting
        claim.positions[TOPIC] = 1
        assert await units(store, claim, "mug") == {7: 1}


@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@"])
async def test_a_wrong_password_is_refused_instead_of_waited_for(own_redis: LocalRedis, login: str) -> None:
    async with by_hand(own_redis.url) as client:
        await client.config_set("requirepass", "secret")
    async with open_store(own_redis.url.replace("//", f"//{login}")) as store:
        with pytest.raises(StoreRefusedError, match="password"):
            await store.claim(0)
    async with open_store(own_redis.url.replace("//", "//:secret@")) as store:
        await store.claim(0)
