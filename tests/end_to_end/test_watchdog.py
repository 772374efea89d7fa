"""A worker whose consumption is stuck ends by itself and says why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.shop import PATIENCE_S, Shop
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker

# The real worker, but for lanes that take a batch and never come back: one waits for what does not come, the other
# blocks the event loop, so that the worker can't even stop in order.
_STUCK = """
import asyncio, sys, time
import worker.watchdog
from worker.cli import main
from worker.lane import Lane

async def waits_forever(self, *_):
    await asyncio.Event().wait()

async def blocks_forever(self, *_):
    time.sleep(1e6)

worker.watchdog._GRACE_S = {grace_s}
Lane.handle = {handle}
sys.argv = ["shelfcast", "worker"]
main()
"""


class StuckWorker(LocalWorker):
    """`handle` is one of the functions above."""

    def __init__(self, shop: Shop, handle: str, grace_s: float) -> None:
        super().__init__(shop.directory, shop.environment | {"SHELFCAST_WATCHDOG_S": "2"}, name="worker-stuck")
        self._program = _STUCK.format(handle=handle, grace_s=grace_s)

    def _command(self) -> list[str]:
        return [sys.executable, "-c", self._program]


@pytest.fixture
def shop(stack: LocalStack, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(stack, tmp_path)
    yield shop
    shop.close()


@pytest.mark.parametrize(("handle", "grace_s"), [("waits_forever", 90), ("blocks_forever", 1)])
def test_worker_that_stands_still_ends_and_the_last_line_says_why(shop: Shop, handle: str, grace_s: float) -> None:
    with StuckWorker(shop, handle, grace_s) as worker:
        order = shop.order("mug")
        assert order["quantity"] == 1
        worker.wait_until_ended(2 * PATIENCE_S)
    assert worker.exit_code == 1
    last = worker.log_path.read_text(encoding="utf-8").splitlines()[-1]
    assert last.startswith(f"error: {shop.settings.topic_orders} partition ")
    assert "has not been read from for 2 s although Kafka holds records" in last
    assert "SHELFCAST_WATCHDOG_S" in last
    # Nothing is lost: a worker that is not stuck goes on.
    shop.start_worker()
    assert shop.forecast("mug", "1d").observed == 1
