"""A dead letter goes back once: run twice, run by two at a time, killed at any moment and run again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest

from tests.worker.letters import LEASE_OVER_MS, ORDER, Shop, unchanged
from worker.dlq_desk import Desk, Verdict
from worker.local_stack import LocalBroker
from worker.topic_reading import Bounds, TopicReading
from worker.transport import murmur2_partition

# Dies by kill -9 at the nth time that a retry hands a record to the network or hears of one.
_KILLED = """
import itertools, os, signal, sys, time
from confluent_kafka import Producer
from worker import retry
from worker.dlq_desk import Desk
from worker.settings import load_settings

n, later_ms = int(sys.argv[1]), int(sys.argv[2])
moments = itertools.count(1)

def moment():
    if next(moments) == n:
        os.kill(os.getpid(), signal.SIGKILL)

class Mortal(Producer):
    def produce(self, *arguments, on_delivery, **options):
        def heard(error, message):
            on_delivery(error, message)
            moment()
        super().produce(*arguments, on_delivery=heard, **options)
        moment()

retry.Producer = Mortal
desk = Desk(load_settings(os.environ), "orders", lambda: time.time_ns() // 1_000_000 + later_ms)
for verdict in desk.retry(desk.chosen(), lambda value: value):
    pass
"""


@pytest.fixture
def shop(broker: LocalBroker) -> Shop:
    return Shop(broker)


def retry(desk: Desk) -> list[Verdict]:
    return list(desk.retry(desk.chosen(), unchanged))


def run_killed(shop: Shop, nth: int, later_ms: int = 0) -> int:
    """Exit code of a retry that is killed at its nth moment, if it has as many."""
    command = [sys.executable, "-c", _KILLED, str(nth), str(later_ms)]
    return subprocess.run(command, env=os.environ | shop.environment, check=False).returncode


def test_a_letter_goes_back_under_its_products_key_with_its_own_headers(shop: Shop) -> None:
    shop.set_aside(
        ORDER | {"product_id": "lid"},
        reason="wrong_partition",
        headers=[("trace", b"a1"), ("trace", b"a2"), ("shelfcast.topic", b"forged"), ("empty", b"")],
    )
    (verdict,) = retry(shop.desk())
    assert verdict.how == "sent"
    (record,) = shop.arrived()
    assert (record.key, record.partition) == (b"lid", 1)
    assert murmur2_partition("lid", 2) == 1
    assert record.value == ORDER | {"product_id": "lid"}
    *own, (name, letter) = record.headers
    assert own == [("trace", b"a1"), ("trace", b"a2"), ("empty", b"")]
    assert name == "shelfcast.retry_of"
    assert letter.startswith(f"{shop.topic()}/0/0/".encode())
    assert f"1/{record.offset}" in verdict.text


def test_run_twice_it_goes_once(shop: Shop) -> None:
    shop.set_aside(ORDER)
    first, second = shop.desk(), shop.desk()  # the second has read the letters before the first sends them
    assert [v.how for v in retry(first)] == ["sent"]
    assert [v.how for v in retry(second)] == ["earlier"]
    assert retry(shop.desk()) == []
    (letter,) = shop.desk().ledger.letters.values()
    assert [v.how for v in shop.desk().retry([letter], unchanged)] == ["earlier"]
    assert len(shop.arrived()) == 1


def test_copies_of_a_letter_go_once(shop: Shop) -> None:
    places = [shop.set_aside(ORDER, offset=7), shop.set_aside(ORDER, offset=7)]
    other = shop.set_aside(ORDER, offset=8)
    desk = shop.desk()
    assert [str(letter.place) for letter in desk.chosen()] == [places[0], other]
    assert [v.how for v in retry(desk)] == ["sent", "sent"]
    shop.set_aside(ORDER, offset=7)  # once more, by a worker that builds its features anew
    assert shop.desk().chosen() == []
    assert len(shop.arrived()) == 2


def test_a_topic_made_anew_has_letters_of_its_own(shop: Shop) -> None:
    shop.set_aside(ORDER, offset=7)
    retry(shop.desk())
    shop.set_aside(ORDER | {"quantity": 3}, offset=7)  # offsets began at 0 again: the same place, another record
    assert [v.how for v in retry(shop.desk())] == ["sent"]
    assert sorted(record.value["quantity"] for record in shop.arrived()) == [2, 3]


@pytest.mark.parametrize(
    ("moment", "has_arrived"),
    [(2, False), (3, None), (4, True)],
    ids=["before it is sent", "while it is sent", "before the receipt"],
)
def test_a_run_killed_is_gone_on_with(shop: Shop, moment: int, has_arrived: bool | None) -> None:
    shop.set_aside(ORDER)
    assert run_killed(shop, moment) == -signal.SIGKILL
    at_once = shop.desk()
    assert at_once.wait_ms(at_once.chosen()) > 0  # it can't be known yet that nothing is on its way any more
    assert [v.how for v in retry(at_once)] == ["busy"]
    later = shop.desk(later_ms=LEASE_OVER_MS)
    assert later.wait_ms(later.chosen()) == 0
    (verdict,) = retry(later)
    if has_arrived is not None:
        assert verdict.how == ("earlier" if has_arrived else "sent")
    assert len(shop.arrived()) == 1
    assert shop.desk().chosen() == []


def test_letters_go_once_through_kills_at_any_moment(shop: Shop) -> None:
    moments = random.Random(7)  # a seeded choice
    kills = runs = letters = 0
    while kills < 6:
        for _ in range(5):
            product = "mug" if letters % 3 else "lid"
            shop.set_aside(ORDER | {"product_id": product, "order_id": str(letters)}, partition=letters % 2)
            letters += 1
        left = len(shop.desk().chosen())
        # Up to six moments a letter: two each for the first receipt, the record and the second receipt.
        kills += run_killed(shop, moments.randint(1, 6 * left), runs * LEASE_OVER_MS) == -signal.SIGKILL
        runs += 1
        assert runs < 50
    retry(shop.desk(later_ms=runs * LEASE_OVER_MS))
    orders = Counter(record.value["order_id"] for record in shop.arrived())
    assert orders == Counter(str(n) for n in range(letters))
    assert shop.desk().chosen() == []


def test_of_runs_at_the_same_time_one_sends(shop: Shop) -> None:
    letters, runs = 40, 4
    for n in range(letters):
        shop.set_aside(ORDER | {"order_id": str(n)})
    verdicts: list[Verdict] = []
    start = threading.Barrier(runs)

    def run(desk: Desk) -> None:
        start.wait()
        verdicts.extend(retry(desk))

    threads = [threading.Thread(target=run, args=(shop.desk(),)) for _ in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(verdicts) == letters * runs
    sent = Counter(record.value["order_id"] for record in shop.arrived())
    assert max(sent.values()) == 1
    # Where two saw each other both may have stood back: what is left goes with the next run.
    retry(shop.desk(later_ms=LEASE_OVER_MS))
    assert Counter(record.value["order_id"] for record in shop.arrived()) == Counter(str(n) for n in range(letters))


def test_where_receipts_may_have_been_deleted_the_input_topic_is_searched(shop: Shop) -> None:
    shop.set_aside(ORDER, offset=7)
    retry(shop.desk())
    shop.set_aside(ORDER, offset=7)
    desk = shop.desk()
    # As a broker leaves it that has deleted all but the copy; the embedded one can't delete.
    desk.ledger.retried.clear()
    desk.ledger.unfinished.clear()
    desk.ledger.shortened = {0}
    assert [v.how for v in retry(desk)] == ["earlier"]
    assert len(shop.arrived()) == 1


def test_what_can_no_longer_be_known_is_not_sent(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.set_aside(ORDER)
    assert run_killed(shop, 2) == -signal.SIGKILL
    shop.put(shop.topic(), b'"another\'s"')
    desk = shop.desk(later_ms=LEASE_OVER_MS)
    bounds = TopicReading.bounds

    def shortened(self: TopicReading, topic: str, partitions: object) -> dict[int, Bounds]:
        """As a broker tells it that has deleted the input topic's first records; the embedded one can't delete."""
        return {p: held._replace(first=1) for p, held in bounds(self, topic, partitions).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(TopicReading, "bounds", shortened)
    (verdict,) = retry(desk)
    assert (verdict.how, verdict.is_well) == ("unknown", False)
    assert "shelfcast show" in verdict.text
    assert [record.value for record in shop.arrived()] == ["another's"]


def test_what_a_worker_would_reject_again_is_not_sent(shop: Shop) -> None:
    shop.set_aside(ORDER | {"currency": "SEK"})
    shop.set_aside(ORDER)
    desk = shop.desk()
    refused, sent = retry(desk)
    assert (refused.how, refused.is_well, sent.how) == ("refused", False, "sent")
    assert "other_currency" in refused.text
    assert "SEK" in refused.text
    assert len(shop.arrived()) == 1
    assert [letter.place for letter in shop.desk().chosen()] == [refused.letter.place]


def test_a_preview_sends_nothing_and_leaves_no_receipt(shop: Shop) -> None:
    shop.set_aside(ORDER)
    desk = shop.desk()
    (verdict,) = desk.preview(desk.chosen(), unchanged)
    assert verdict.how == "ready"
    assert shop.arrived() == []
    assert shop.desk().ledger.unfinished == {}


def product(event_time: int, title: str) -> bytes:
    return b'{"event_time": %d, "product_id": "mug", "title": "%s"}' % (event_time, title.encode())


def test_product_data_never_takes_the_place_of_newer(shop: Shop) -> None:
    shop.put(shop.topic("products"), product(2_000, "new"))
    shop.set_aside(product(1_000, "old"), source="products", offset=0, reason="wrong_type")
    (verdict,) = retry(shop.desk("products"))
    assert verdict.how == "refused"
    assert "newer" in verdict.text
    shop.set_aside(product(3_000, "newest"), source="products", offset=1, reason="wrong_type")
    assert [v.how for v in retry(shop.desk("products"))] == ["refused", "sent"]
    assert [record.value["title"] for record in shop.arrived("products")] == ["new", "newest"]


def test_a_tombstone_that_went_astray_withdraws_only_what_nothing_is_said_of(shop: Shop) -> None:
    shop.set_aside(None, source="products", partition=1, reason="wrong_partition")
    shop.set_aside(None, source="products", partition=0, key=b"lid", reason="wrong_partition")
    shop.put(shop.topic("products"), product(2_000, "here"))
    by_key = {verdict.letter.key: verdict.how for verdict in retry(shop.desk("products"))}
    assert by_key == {b"mug": "refused", b"lid": "sent"}
    assert [(r.key, r.partition) for r in shop.arrived("products") if r.value is None] == [(b"lid", 1)]
