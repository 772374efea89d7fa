"""What counts as standing still, asked of Kafka and judged."""

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from hypothesis import given
from hypothesis import strategies as st

from feature_store.outage import Outage
from worker.errors import WatchdogError
from worker.local_stack import LocalBroker
from worker.watchdog import KafkaAside, LastWords, Partition, Standstill, Watchdog

ORDERS: Partition = ("orders", 0)
PATIENCE_S = 10.0
LOOK_EVERY_S = 2.0


class Look(NamedTuple):
    """One look at one partition."""

    step_s: float
    position: int | None
    end: int
    excused: bool = False


def judge(looks: Iterable[Look]) -> list[bool]:
    """Whether the partition was found standing still, look by look."""
    standstill, now_s, found = Standstill(PATIENCE_S, LOOK_EVERY_S), 1000.0, []
    for look in looks:
        now_s += look.step_s
        stands = standstill.look(now_s, {ORDERS: look.position}, {ORDERS: look.end}, excused=look.excused)
        assert stands in ([], [ORDERS])
        found.append(bool(stands))
    return found


def test_standing_still_with_lag_is_found_when_patience_ends() -> None:
    assert judge([Look(2, 5, 9)] * 7) == [False] * 5 + [True] * 2


def test_a_partition_never_read_from_though_it_has_records_is_found_too() -> None:
    assert judge([Look(2, None, 9)] * 6)[-1]


def test_without_lag_nothing_stands_still() -> None:
    assert not any(judge([Look(2, 9, 9)] * 20))
    assert not any(judge([Look(2, None, 0)] * 20))
    assert not any(judge([Look(2, 9, 8)] * 20))  # a broker that tells too low an end


def test_each_move_begins_the_count_anew_also_one_backwards() -> None:
    looks = [Look(2, 5, 9)] * 5 + [Look(2, 3, 9)] * 5
    assert not any(judge(looks))
    assert judge([*looks, Look(2, 3, 9)])[-1]


def test_an_outage_is_not_counted_nor_what_came_before_it() -> None:
    looks = [Look(2, 5, 9)] * 5 + [Look(2, 5, 9, excused=True)] * 20 + [Look(2, 5, 9)] * 4
    assert not any(judge(looks))


def test_a_process_that_was_stopped_itself_has_not_watched_meanwhile() -> None:
    assert judge([Look(2, 5, 9), Look(3600, 5, 9), Look(2, 5, 9)]) == [False] * 3


def test_partitions_are_judged_one_by_one_and_forgotten_when_given_away() -> None:
    standstill = Standstill(PATIENCE_S, LOOK_EVERY_S)
    other = ("orders", 1)
    for n in range(5):
        standstill.look(2.0 * n, {ORDERS: 5, other: n}, {ORDERS: 9, other: 9}, excused=False)
    assert standstill.look(10, {ORDERS: 5, other: 6}, {ORDERS: 9, other: 9}, excused=False) == [ORDERS]
    assert standstill.look(12, {other: 7}, {other: 9}, excused=False) == []
    assert standstill.look(14, {ORDERS: 5, other: 8}, {ORDERS: 9, other: 9}, excused=False) == []


@given(
    st.lists(
        st.builds(
            Look,
            st.floats(0.1, 20),
            st.one_of(st.none(), st.integers(0, 2)),
            st.integers(0, 3),
            st.sampled_from([False, False, False, True]),
        )
    )
)
def test_verdict_equals_a_recomputation_over_the_whole_history(looks: list[Look]) -> None:
    assert judge(looks) == [_stands(looks[: n + 1]) for n in range(len(looks))]


def _stands(history: Sequence[Look]) -> bool:
    """Backwards from the last look: how long has nothing moved that should have?"""
    still_s = 0.0
    for at in range(len(history) - 1, 0, -1):
        look, before = history[at], history[at - 1]
        if look.excused or look.position != before.position or look.end <= (look.position or 0):
            break
        still_s += min(look.step_s, 2 * LOOK_EVERY_S)
    return still_s >= PATIENCE_S - 1e-9


@pytest.fixture
def topic(broker: LocalBroker) -> str:
    return new_topic(broker)


def new_topic(broker: LocalBroker) -> str:
    name = f"watched-{uuid.uuid4().hex}"
    admin = AdminClient(config_of(broker))
    admin.create_topics([NewTopic(name, 2, 1)])[name].result()
    return name


def config_of(broker: LocalBroker) -> dict[str, Any]:
    return {"bootstrap.servers": broker.bootstrap_servers, "log_level": 2}


def send(broker: LocalBroker, topic: str, count: int) -> None:
    """Records one by one: the embedded broker knows the beginning of the last batch only."""
    producer = Producer(config_of(broker))
    for _ in range(count):
        producer.produce(topic, b"{}", partition=0)
        producer.flush()


def test_kafka_tells_ends_and_whether_there_is_a_record(broker: LocalBroker, topic: str) -> None:
    send(broker, topic, 3)
    kafka = KafkaAside(config_of(broker))
    assert kafka.ends([(topic, 0), (topic, 1)]) == {(topic, 0): 3, (topic, 1): 0}
    assert [kafka.holds_record((topic, 0), position) for position in (0, 2, 3)] == [True, True, False]
    assert not kafka.holds_record((topic, 1), 0)


def test_kafka_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with LocalBroker(tmp_path) as broker:
        topic = new_topic(broker)
        kafka = KafkaAside(config_of(broker))
        assert kafka.ends([(topic, 0)])
        broker.send_signal(signal.SIGSTOP)
        with pytest.raises(KafkaException, match="no answer within 5 s"):
            kafka.ends([(topic, 0)])
        broker.kill()
        with pytest.raises(KafkaException):
            kafka.ends([(topic, 0)])


class Counting(KafkaAside):
    """Lets a test wait until the watchdog has looked so many times; may tell an end that is too high, as Kafka does
    after a transaction."""

    def __init__(self, broker: LocalBroker, too_high: int = 0) -> None:
        super().__init__(config_of(broker))
        self._too_high = too_high
        self.looks, self.doubts = threading.Semaphore(0), threading.Semaphore(0)

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        self.looks.release()
        return {partition: end + self._too_high for partition, end in super().ends(partitions).items()}

    def holds_record(self, partition: Partition, position: int) -> bool:
        self.doubts.release()
        return super().holds_record(partition, position)


class Watched:
    """A watchdog on a real broker and a position that the test sets."""

    def __init__(self, kafka: KafkaAside, topic: str, position: int, patience_s: float = 0.4) -> None:
        self.barked: list[WatchdogError] = []
        self.ended: list[WatchdogError] = []
        self.has_ended = threading.Event()
        outage = Outage(logging.getLogger(__name__), "away (%s)", "back after %.1f s")
        self.dog = Watchdog(
            kafka,
            outage,
            lambda: {(topic, 0): position},
            excused=lambda: False,
            bark=self.barked.append,
            last_words=LastWords(topic),
            patience_s=patience_s,
            end_process=self._end_process,
        )

    def _end_process(self, error: WatchdogError) -> None:
        self.ended.append(error)
        self.has_ended.set()

    def __enter__(self) -> Watched:
        self.dog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.dog.stop()


def test_watchdog_barks_with_what_to_look_at_and_then_bites(
    broker: LocalBroker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.watchdog._GRACE_S", 0)
    send(broker, topic, 3)
    with Watched(KafkaAside(config_of(broker)), topic, 1) as watched:
        logging.getLogger(topic).warning("fetching from node %d failed", 7)
        assert watched.has_ended.wait(60)
    assert watched.barked == watched.ended
    message = str(watched.barked[0])
    assert message.startswith(f"{topic} partition 0 has stood at offset 1 for 0.4 s")
    assert "'fetching from node 7 failed'" in message
    assert "SHELFCAST_WATCHDOG_S" in message


def test_watchdog_does_not_take_an_end_for_a_record(broker: LocalBroker, topic: str) -> None:
    send(broker, topic, 3)
    kafka = Counting(broker, too_high=2)
    with Watched(kafka, topic, 3) as watched:
        for _ in range(3):
            assert kafka.doubts.acquire(timeout=60)
    assert not watched.barked


def test_watchdog_without_patience_only_looks(broker: LocalBroker, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    send(broker, topic, 3)
    monkeypatch.setattr("worker.watchdog._LOOK_EVERY_S", 0.05)
    kafka = Counting(broker)
    with Watched(kafka, topic, 1, patience_s=0) as watched:
        for _ in range(10):
            assert kafka.looks.acquire(timeout=60)
    assert not watched.barked
    assert not kafka.doubts.acquire(blocking=False)


def test_last_words_grow_old(topic: str) -> None:
    words = LastWords(topic)
    logging.getLogger(topic).info("not a warning")
    assert words.since(60) == ""
    logging.getLogger(topic).error("gone")
    assert words.since(60) == "gone"
    assert words.since(-1) == ""
