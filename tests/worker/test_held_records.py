"""Records wait for the tick that names them."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from tests.worker.records import records_of
from worker.held_records import _MOST_HELD, ClosedError, HeldRecords
from worker.records import Records


def records(*offsets: int, topic: str = "orders") -> Records:
    return dataclasses.replace(records_of(topic, [b"x"] * len(offsets)), offsets=offsets)


async def take(held: HeldRecords, position: int, next_offset: int, topic: str = "orders") -> list[int]:
    """Offsets of what was taken."""
    taken = await held.take(topic, position, next_offset)
    return [] if taken is None else list(taken.offsets)


async def test_take_gives_exactly_what_is_asked_for() -> None:
    held = HeldRecords(["orders"])
    await held.hold(records(3, 4, 5, 6))
    assert await take(held, 4, 6) == [4, 5]
    assert await take(held, 6, 6) == []
    assert held.next_offset("orders") == 7


async def test_take_waits_for_what_has_not_arrived() -> None:
    held = HeldRecords(["orders"])
    taking = asyncio.create_task(take(held, 0, 3))
    await held.hold(records(0, 1))
    await asyncio.sleep(0)
    assert not taking.done()
    await held.hold(records(2, 3))
    assert await taking == [0, 1, 2]


async def test_take_passes_over_holes_that_compaction_left() -> None:
    held = HeldRecords(["products"])
    await held.hold(records(0, 5, 9, topic="products"))
    assert await take(held, 0, 8, "products") == [0, 5]


async def test_hold_waits_while_there_is_plenty() -> None:
    held = HeldRecords(["orders"])
    holding = asyncio.create_task(held.hold(records(*range(_MOST_HELD + 1))))
    await asyncio.sleep(0)
    assert not holding.done()
    assert len(await take(held, 0, 1)) == 1
    await holding


async def test_a_tick_that_needs_more_than_plenty_gets_it() -> None:
    held = HeldRecords(["orders"])
    taking = asyncio.create_task(take(held, 0, _MOST_HELD + 10))
    await asyncio.sleep(0)
    await held.hold(records(*range(_MOST_HELD + 5)))
    await held.hold(records(*range(_MOST_HELD + 5, _MOST_HELD + 20)))
    assert len(await taking) == _MOST_HELD + 10


async def test_close_lets_a_waiting_take_go() -> None:
    held = HeldRecords(["orders"])
    taking = asyncio.create_task(take(held, 0, 3))
    await asyncio.sleep(0)
    held.close()
    with pytest.raises(ClosedError):
        await taking
