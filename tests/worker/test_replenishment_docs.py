"""The consumer of docs/replenishment.md does what the page says of it; the page's policies file is one."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec

from tests.worker.replenishing import DAY_MS, MONDAY_MS, ReplenishedShop, forecast, stock
from worker.local_stack import LocalBroker
from worker.replenishment_policies import Policies, Section

PAGE = (Path(__file__).parents[2] / "docs" / "replenishment.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_consumer_of_the_page_orders_each_need_once(broker: LocalBroker, tmp_path: Path) -> None:
    shop = ReplenishedShop(broker, tmp_path)
    shop.policies('[default]\nlead_time = "2d"\n')
    for day in range(2):
        at = MONDAY_MS + day * DAY_MS
        shop.send(shop.reports, [("mug", stock("mug", at - 1, 0.0))])
        shop.send(shop.forecasts, [("mug|1d", forecast("mug", at, 10.0, revision=day + 1))])
    assert shop.run("--to-end", "--replay").returncode == 0
    orders = shop.sent()
    again = [(order.item_id, msgspec.json.encode(order)) for order in orders]
    shop.send(shop.orders, again)  # as after an accident
    bought = subprocess.run(
        [sys.executable, "-c", block("python"), shop.environment["SHELFCAST_KAFKA_BOOTSTRAP_SERVERS"], shop.orders],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = bought.stdout.splitlines()
    assert len(lines) == len(orders) == 2
    assert lines[0] == "order 57 of mug: 0 on hand and 0 on order are at or below 57: up to 57"


def test_the_policies_file_of_the_page_is_read() -> None:
    policies = Policies(tomllib.loads(block("toml")))
    assert policies.of("milk", "milk", "dairy").service_level == 0.8
    assert policies.of("mug@york", "mug", "").pack == 12.0


def test_the_page_names_every_key_with_its_default() -> None:
    table = PAGE.partition("| key |")[2].partition("\n\n")[0]
    for field in msgspec.structs.fields(Section):
        assert f"`{field.name}`" in table, field.name
        if field.default not in (None, 0.0, 1.0):
            assert f"`{field.default}`" in table, field.name
