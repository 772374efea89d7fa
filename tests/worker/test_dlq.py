"""`shelfcast dlq` as a person meets it: what it prints, and what it says when it can't do what was asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.worker.letters import ORDER, Shop
from worker.cli import shelfcast
from worker.errors import ShelfcastError, TopicError
from worker.local_stack import LocalBroker


@pytest.fixture
def shop(broker: LocalBroker) -> Shop:
    return Shop(broker)


def run(shop: Shop, *arguments: str, given: bytes | None = None, **settings: str) -> Result:
    environment = shop.environment | {f"SHELFCAST_{name.upper()}": value for name, value in settings.items()}
    return CliRunner().invoke(shelfcast, ["dlq", *arguments], env=environment, input=given)


def row_of(result: Result, place: str) -> list[str]:
    (row,) = [line.split() for line in result.output.splitlines() if line.startswith(f"{place} ")]
    return row


def test_list_shows_each_letter_and_the_totals(shop: Shop) -> None:
    assert "holds no dead letters" in run(shop, "list").output
    first = shop.set_aside(ORDER | {"currency": "SEK"}, offset=41)
    second = shop.set_aside(b"{", key=None, partition=1, offset=42, reason="not_json")
    shop.put(f"{shop.topic()}.dlq", b"a stranger's")
    assert run(shop, "retry", first, "--set", "currency=GBP").exit_code == 0

    listed = run(shop, "list")
    assert listed.exit_code == 0
    (sent,) = shop.arrived()
    letter, original, date, _, key, *retried, reason, _, about = row_of(listed, first)
    assert (letter, original, key, retried) == (first, "0/41", "mug", ["to", f"0/{sent.offset}"])
    assert (reason, about) == ("other_currency:", "41")
    assert len(date) == len("2026-03-04")
    assert row_of(listed, second)[4:] == ["-", "no", "not_json:", "about", "42"]
    assert [row_of(listed, name)[1:] for name in ("other_currency", "not_json", "all")] == [
        ["1", "1", "0"],
        ["1", "0", "1"],
        ["2", "1", "1"],
    ]
    assert "1 records there were not written by shelfcast" in listed.output


def test_list_can_be_narrowed(shop: Shop) -> None:
    places = [shop.set_aside(ORDER, offset=n, reason=("far_future", "not_json")[n % 2]) for n in range(6)]
    listed = run(shop, "list", "--reason", "not_json", "--limit", "2")
    shown = [line.split()[0] for line in listed.output.splitlines() if "not_json:" in line]
    assert shown == [places[3], places[5]]
    assert "the newest 2 of 3" in listed.output
    assert row_of(listed, "not_json")[1:] == ["3", "0", "3"]


def test_list_names_copies(shop: Shop) -> None:
    for _ in range(3):
        shop.set_aside(ORDER, offset=5)
    assert "2 more are copies" in run(shop, "list").output
    assert "3; a retry of one is a retry of all" in run(shop, "show", "0/2").output


def test_show_has_everything_and_the_next_step(shop: Shop) -> None:
    value = {"currency": "SEK", **ORDER, "note": "x" * 300}
    place = shop.set_aside(value, headers=[("trace", b"a-1")])
    shown = run(shop, "show", place)
    assert shown.exit_code == 0
    assert "header trace a-1" in shown.output
    assert json.loads(shown.output[shown.output.index("{") : shown.output.rindex("}") + 1]) == value
    assert "other_currency: currency 'SEK', but this shop's is 'GBP'" in shown.output
    assert f"shelfcast dlq retry {place} --source orders --set FIELD=VALUE" in shown.output

    run(shop, "retry", place, "--set", "currency=GBP")
    assert "nothing to do" in run(shop, "show", place).output


def test_show_says_when_a_letter_would_be_taken_as_it_is(shop: Shop) -> None:
    place = shop.set_aside(ORDER, partition=1, reason="wrong_partition")
    shown = run(shop, "show", place)
    assert "would take it now, keyed mug in partition 0" in shown.output
    assert run(shop, "retry", place).exit_code == 0


def test_nothing_in_a_letter_steers_the_terminal(shop: Shop) -> None:
    steer = b"\x1b[2J\x07\xc2\x9b31m"
    place = shop.set_aside(steer + b"[red]", key=steer, headers=[("h", steer)], reason="not_json")
    tombstone = shop.set_aside(None)
    outputs = [run(shop, "list"), run(shop, "show", place), run(shop, "retry", place), run(shop, "show", tombstone)]
    text = "".join(result.output for result in outputs)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "[red]" in text
    assert r"\x1b" in text


def test_retry_with_a_whole_new_value_from_a_file_or_standard_input(shop: Shop, tmp_path: Path) -> None:
    first, second = (shop.set_aside(b"{", reason="not_json") for _ in range(2))
    path = tmp_path / "order.json"
    path.write_text(json.dumps(ORDER | {"quantity": 7}, indent=2), encoding="utf-8")
    assert run(shop, "retry", first, "--edit", str(path)).exit_code == 0
    assert run(shop, "retry", second, "--edit", "-", given=json.dumps(ORDER).encode()).exit_code == 0
    assert sorted(record.value["quantity"] for record in shop.arrived()) == [2, 7]


def test_retry_by_reason_mends_what_was_chosen_and_tells_the_sum(shop: Shop) -> None:
    places = [shop.set_aside(ORDER | {"currency": "SEK", "order_id": str(n)}) for n in range(3)]
    other = shop.set_aside(b"{", reason="not_json")
    assert run(shop, "retry", "--reason", "other_currency", "--dry-run").exit_code == 1
    mended = ("retry", "--reason", "other_currency", "--set", "currency=GBP")
    preview = run(shop, *mended, "--dry-run")
    assert (preview.exit_code, preview.output.splitlines()[-1]) == (0, "3 letters: 3 would be sent")
    assert shop.arrived() == []

    done = run(shop, *mended)
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "3 letters: 3 sent")
    assert {record.value["currency"] for record in shop.arrived()} == {"GBP"}
    again = run(shop, "retry", *places, other)
    assert (again.exit_code, again.output.splitlines()[-1]) == (1, "4 letters: 3 retried before, 1 not sent")
    assert run(shop, *mended).output == "there are no such letters left to retry\n"
    assert len(shop.arrived()) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["retry"], "name letters as PARTITION/OFFSET"),
        (["retry", "0/0", "--all"], "name letters as PARTITION/OFFSET"),
        (["retry", "0-0"], "'0-0' is not PARTITION/OFFSET"),
        (["show", "0"], "`shelfcast dlq list` shows where letters stand"),
        (["show", "0/0", "--source", "sales"], "'orders', 'clicks', 'reviews'"),
        (["list", "--reason", "ugly"], "'not_json'"),
        (["retry", "0/0", "--edit", "no/such/file"], "no/such/file"),
        (["retry", "--all", "--edit", "-"], "--edit gives the whole value of one letter"),
        (["retry", "0/0", "--set", "quantity=1", "--edit", "-"], "without --set"),
    ],
)
def test_a_wrong_command_is_told_the_right_one(shop: Shop, arguments: list[str], says: str) -> None:
    result = run(shop, *arguments)
    assert result.exit_code == 2
    assert says in result.output


def refusal(result: Result, kind: type[Exception] = ShelfcastError) -> str:
    """The message of an error raised on purpose, which the command prints as one line."""
    assert isinstance(result.exception, kind)
    return str(result.exception)


def test_each_error_names_the_thing_and_the_remedy(shop: Shop) -> None:
    place = shop.set_aside(ORDER)
    assert "`shelfcast dlq list --source orders`" in refusal(run(shop, "show", "0/99"))
    assert "`shelfcast dlq list --source clicks`" in refusal(run(shop, "retry", place, "--source", "clicks"))
    assert "standard input is not a JSON object" in refusal(run(shop, "retry", place, "--edit", "-", given=b"{"))
    assert "they have event_time" in refusal(run(shop, "retry", place, "--set", "qty=1"))
    assert "SHELFCAST_CLOCK" in refusal(run(shop, "retry", place, clock="event"))
    no_topic = run(shop, "list", topic_orders="no.such.topic")
    assert "SHELFCAST_TOPIC_ORDERS" in refusal(no_topic, TopicError)
    assert "SHELFCAST_PARTITION_COUNT" in refusal(run(shop, "list", partition_count="3"), TopicError)
    no_broker = run(shop, "list", kafka_bootstrap_servers="127.0.0.1:1")
    assert "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS" in refusal(no_broker, TopicError)
    assert shop.arrived() == []
