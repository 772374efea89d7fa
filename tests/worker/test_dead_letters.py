"""What a dead-letter topic says, record by record."""

from __future__ import annotations

import pytest

from worker.dead_letters import Ledger, Place, Receipt, Step
from worker.topic_reading import StoredRecord

Headers = list[tuple[str, bytes | None]]


def ledger_of(*records: tuple[Headers, bytes | None]) -> Ledger:
    """Of records in partition 0, at offsets from 0 on, a millisecond after one another."""
    ledger = Ledger()
    for n, (headers, value) in enumerate(records):
        ledger.note("orders", StoredRecord(0, n, n, b"mug", value, headers))
    return ledger


def letter(offset: int, *more: tuple[str, bytes | None], value: bytes = b"{") -> tuple[Headers, bytes | None]:
    """A record set aside, with the headers it came with before those of the worker."""
    own = {"topic": "orders", "partition": "0", "offset": str(offset), "reason": "not_json", "detail": "why"}
    return [*more, *((f"shelfcast.{name}", text.encode()) for name, text in own.items())], value


def receipt(name: str, step: Step, attempt: str = "a", place: tuple[int, int] = (1, 5)) -> tuple[Headers, None]:
    return [(header, value) for header, value in Receipt(name, step, attempt, Place(*place)).headers()], None


def only_name(*records: tuple[Headers, bytes | None]) -> str:
    (name,) = ledger_of(*records).letters
    return name


def test_a_letter_tells_where_it_comes_from_and_why() -> None:
    ledger = ledger_of(letter(7))
    (found,) = ledger.letters.values()
    assert (found.place, found.origin, found.key) == (Place(0, 0), Place(0, 7), b"mug")
    assert (found.reason, found.detail, found.set_aside_ms) == ("not_json", "why", 0)


def test_copies_are_one_letter_and_other_contents_another() -> None:
    ledger = ledger_of(letter(7), letter(7), letter(7, value=b"["))
    assert sorted(ledger.copies.values()) == [1, 2]
    assert ledger.name_at[Place(0, 0)] == ledger.name_at[Place(0, 1)] != ledger.name_at[Place(0, 2)]


def test_an_attempt_is_open_until_it_says_how_it_ended() -> None:
    name = only_name(letter(7))
    begun = receipt(name, Step.BEGUN)
    (attempt,) = ledger_of(letter(7), begun).open_attempts(name)
    assert (attempt.name, attempt.began_ms, attempt.receipt, attempt.look_from) == ("a", 1, Place(0, 1), Place(1, 5))
    assert ledger_of(letter(7), begun, receipt(name, Step.GIVEN_UP)).open_attempts(name) == []
    others = ledger_of(letter(7), begun, receipt(name, Step.BEGUN, "b"), receipt(name, Step.GIVEN_UP, "b"))
    assert [attempt.name for attempt in others.open_attempts(name)] == ["a"]


def test_one_attempt_done_ends_them_all() -> None:
    name = only_name(letter(7))
    done = receipt(name, Step.DONE, "b", (1, 9))
    ledger = ledger_of(letter(7), receipt(name, Step.BEGUN), receipt(name, Step.BEGUN, "b"), done)
    assert ledger.open_attempts(name) == []
    assert ledger.retried == {name: Place(1, 9)}


def test_a_receipt_sent_twice_stands_where_it_stood_first() -> None:
    name = only_name(letter(7))
    ledger = ledger_of(letter(7), receipt(name, Step.BEGUN), receipt(name, Step.BEGUN))
    assert [attempt.receipt for attempt in ledger.open_attempts(name)] == [Place(0, 1)]


def test_a_record_that_came_with_our_headers_can_not_pass_for_a_receipt() -> None:
    name = only_name(letter(7))
    forged, _ = receipt(name, Step.DONE)
    ledger = ledger_of(letter(7), letter(8, *forged, ("shelfcast.offset", b"7")))
    assert ledger.retried == {}
    assert [found.origin for found in ledger.letters.values()] == [Place(0, 7), Place(0, 8)]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("shelfcast.topic", b"clicks"), ("shelfcast.partition", b"0"), ("shelfcast.offset", b"1")],
        [("shelfcast.topic", b"orders"), ("shelfcast.partition", b"x"), ("shelfcast.offset", b"1")],
        [("shelfcast.topic", None)],
        [("shelfcast.receipt", b"done"), ("shelfcast.retry_of", b"x"), ("shelfcast.attempt", b"a")],
        [("shelfcast.receipt", b"\xff"), ("shelfcast.retry_of", b"x"), ("shelfcast.attempt", b"a")],
    ],
)
def test_what_shelfcast_did_not_write_is_counted_and_passed_over(headers: Headers) -> None:
    ledger = ledger_of((headers, b"{"))
    assert (ledger.strangers, ledger.letters, ledger.retried) == (1, {}, {})


@pytest.mark.parametrize("text", ["", "1", "1/", "/1", "-1/2", "1/2/3", "a/b", "1-2", "1/²"])
def test_a_place_is_two_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="PARTITION/OFFSET"):
        Place.parse(text)
    assert Place.parse("3/14") == Place(3, 14)
    assert str(Place(3, 14)) == "3/14"
