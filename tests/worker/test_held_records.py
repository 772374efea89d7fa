"""Records wait for the tick that names them."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest

from worker.held_records import _MOST_HELD, ClosedError, HeldRecords


class Offset(NamedTuple):
    offset: int


def offsets(*numbers: int) -> list[Offset]:
    return [Offset(n) for n in numbers]


async def test_take_gives_exactly_what_is_asked_for() -> None:
    held: HeldRecords[Offset] = HeldRecords(["orders"])
    await held.hold("orders", offsets(3, 4, 5, 6))
    assert await held.take("orders", 4, 6) == offsets(4, 5)
    assert await held.take("orders", 6, 6) == []
    assert held.next_offset("orders") == 7


async def test_take_waits_for_what_has_not_arrived() -> None:
    held: HeldRecords[Offset] = HeldRecords(["orders"])
    taking = asyncio.create_task(held.take("orders", 0, 3))
    await held.hold("orders", offsets(0, 1))
    await asyncio.sleep(0)
    assert not taking.done()
    await held.hold("orders", offsets(2, 3))
    assert await taking == offsets(0, 1, 2)


async def test_take_passes_over_holes_that_compaction_left() -> None:
    held: HeldRecords[Offset] = HeldRecords(["products"])
    await held.hold("products", offsets(0, 5, 9))
    assert await held.take("products", 0, 8) == offsets(0, 5)


async def test_hold_waits_while_there_is_plenty() -> None:
    held: HeldRecords[Offset] = HeldRecords(["orders"])
    holding = asyncio.create_task(held.hold("orders", offsets(*range(_MOST_HELD + 1))))
    await asyncio.sleep(0)
    assert not holding.done()
    assert len(await held.take("orders", 0, 1)) == 1
    await holding


async def test_a_tick_that_needs_more_than_plenty_gets_it() -> None:
    held: HeldRecords[Offset] = HeldRecords(["orders"])
    taking = asyncio.create_task(held.take("orders", 0, _MOST_HELD + 10))
    await asyncio.sleep(0)
    await held.hold("orders", offsets(*range(_MOST_HELD + 5)))
    await held.hold("orders", offsets(*range(_MOST_HELD + 5, _MOST_HELD + 20)))
    assert len(await taking) == _MOST_HELD + 10


async def test_close_lets_a_waiting_take_go() -> None:
    held: HeldRecords[Offset] = HeldRecords(["orders"])
    taking = asyncio.create_task(held.take("orders", 0, 3))
    await asyncio.sleep(0)
    held.close()
    with pytest.raises(ClosedError):
        await taking
