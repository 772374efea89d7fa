"""The consumer of docs/alerts.md does what the page says of it; the page's settings are the class's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from worker.local_stack import LocalBroker
from worker.schemas import Alert
from worker.settings import Settings
from worker.topics import WantedTopic, create_topics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_consumer_of_the_page_tells_each_message_once(broker: LocalBroker) -> None:
    topic = "docs.alerts.v1"
    config = {"bootstrap.servers": broker.bootstrap_servers}
    create_topics(AdminClient(config), [WantedTopic(topic, 1, compacted=False)], -1)
    alert = msgspec.json.decode((ROOT / "tests" / "golden" / "alert_v1_full.json").read_bytes(), type=Alert)
    producer = Producer(config)
    for state, sequence in (("open", 1), ("open", 1), ("update", 2), ("close", 3)):
        one = msgspec.structs.replace(alert, episode_state=state, sequence=sequence)
        producer.produce(topic, msgspec.json.encode(one), f"{one.item_id}|{one.kind}")
    assert producer.flush(30) == 0
    done = subprocess.run(
        [sys.executable, "-c", block("python"), broker.bootstrap_servers, topic],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        ["open", "mug@york", "demand_above"],
        ["close", "mug@york", "demand_above"],
    ]


def test_the_message_of_the_page_has_the_fields_of_the_class() -> None:
    assert set(msgspec.json.decode(block("json"))) <= {field.name for field in msgspec.structs.fields(Alert)}


def test_the_page_names_every_setting_with_its_default() -> None:
    for field in msgspec.structs.fields(Settings):
        if field.name.startswith(("alert_", "silence_")):
            default = ",".join(field.default) if isinstance(field.default, tuple) else f"{field.default:g}"
            assert re.search(rf"`SHELFCAST_{field.name.upper()}` \| `?{default}`? \|", PAGE), field.name
