"""AccuracyReporter: publishes a lane's accuracy now and then, shows it as metrics, and alerts where it or inputs drift.

Due at every `interval_ms` of event time, the same live and in a replay: there a lane's sums stand still at a tick, so
the messages of a replay depend on neither its speed nor on kills. A worker that is killed between sending and noting
what it has sent leaves it to the next one to send the same again; of alerts, between noting and sending.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from feature_store.accuracy_store import AccuracyRead, Gone
from feature_store.alert_state import Untold
from feature_store.score_state import SCORE_SUMS
from feature_store.store import BehindError, Claim, FencedError
from feature_store.stream_store import STREAM_NOTE
from worker import metrics
from worker.accuracy_messages import Origin, Window, accuracy_message
from worker.accuracy_windows import ROLLING_DAYS, Rows, report, windows_of
from worker.alert_sending import untold_of
from worker.aside import Message
from worker.drift import DriftNews, drift_news, drifts, is_note
from worker.input_drift import input_drifts
from worker.input_sums import INPUTS
from worker.scoring import ALL

_AT = "at"  # under which the event time of the last report is noted, beside the windows
_METRIC_DAYS = ROLLING_DAYS[0]


class Lane(Protocol):
    """What is asked of a lane."""

    closed: bool
    partition: int
    claim: Claim

    def clock_ms(self) -> int: ...
    async def send(self, topic: str, messages: Sequence[Message]) -> None: ...
    async def tell(self, untold: Mapping[str, Untold]) -> None: ...
    async def tell_untold(self) -> None: ...


class Sums(Protocol):
    """What is asked of the feature store."""

    async def read(self, claim: Claim, freq: str) -> AccuracyRead: ...
    async def note_sent(
        self, claim: Claim, freq: str, sent: Mapping[str, str], gone: Gone, untold: Mapping[str, Untold]
    ) -> None: ...


class ReportRules(NamedTuple):
    """topic_alerts: for drift; empty = none is looked for. correction_days: by scored frequency, for how many
    days sums may still change."""

    topic: str
    topic_alerts: str
    model_name: str
    interval_ms: int
    correction_days: Mapping[str, int]


def _scores(rows: Rows) -> Rows:
    return {name: sums for name, sums in rows.items() if name.segment != INPUTS}


class AccuracyReporter:
    """Reports on any number of lanes; owns none."""

    def __init__(self, rules: ReportRules, sums: Sums) -> None:
        self._rules, self._sums = rules, sums
        self._last: WeakKeyDictionary[Lane, dict[str, int]] = WeakKeyDictionary()  # interval reported, by freq
        self._shown: dict[int, set[tuple[str, ...]]] = {}  # labels of metrics by partition

    async def report(self, lane: Lane) -> None:
        """Publish what has changed, where the interval is over.

        Raises:
            FencedError, BehindError: the lane has another owner; what was sent may be sent again by it.
        """
        await lane.tell_untold()
        last = self._last.setdefault(lane, {})
        for freq in self._rules.correction_days:
            now_ms = lane.clock_ms()
            interval = now_ms // self._rules.interval_ms
            if interval > last.get(freq, 0):
                await self._report(lane, freq, now_ms)
                last[freq] = interval

    async def _report(self, lane: Lane, freq: str, now_ms: int) -> None:
        """1. Look at the sums. 2. Send what has changed. 3. Note that it was sent. 4. Send alerts: they are noted."""
        rows, sent = await self._sums.read(lane.claim, freq)  # 1
        windows = {
            name: note
            for name, note in sent.items()
            if name != _AT and not is_note(name) and not name.startswith(STREAM_NOTE)
        }
        self._show(lane.partition, freq, rows)
        if int(sent.get(_AT, "0")) // self._rules.interval_ms >= now_ms // self._rules.interval_ms:
            return  # by the lane's last owner
        reported = report(rows, windows, _METRIC_DAYS + max(ROLLING_DAYS) + self._rules.correction_days[freq])
        origin = Origin(lane.partition, freq, self._rules.model_name, now_ms)
        messages = [
            accuracy_message(origin, due.segment, due.model_version, due.window, due.revision, due.sums)
            for due in reported.due
        ]
        await lane.send(self._rules.topic, [Message(key.encode(), value) for key, value in messages])  # 2
        drifted = self._drifted(rows, {name: note for name, note in sent.items() if is_note(name)}, origin)
        notes = {due.name: due.note for due in reported.due} | drifted.notes | {_AT: str(now_ms)}
        gone = Gone(reported.gone, [*reported.gone_windows, *drifted.gone])
        untold = untold_of(self._rules.topic_alerts, drifted.messages)
        await self._sums.note_sent(lane.claim, freq, notes, gone, untold)  # 3
        await lane.tell(untold)  # 4
        for _, alert in drifted.messages:
            metrics.ALERTS.labels(alert.kind, alert.episode_state, alert.severity).inc()

    def _drifted(self, rows: Rows, noted: Mapping[str, str], origin: Origin) -> DriftNews:
        """What is to be said of drift."""
        if not self._rules.topic_alerts:
            return DriftNews([], {}, [])
        return drift_news([*drifts(_scores(rows)), *input_drifts(rows)], noted, origin)

    def _show(self, partition: int, freq: str, rows: Rows) -> None:
        scores = _scores(rows)
        newest = max((name.day for name in scores), default=0)
        last_days = Window(newest - _METRIC_DAYS + 1, _METRIC_DAYS)
        for (version, segment, window), sums in windows_of(scores).items():
            if segment == ALL and window == last_days:
                for step, numbers in sums.items():
                    for name, number in zip(SCORE_SUMS, numbers, strict=True):
                        labels = (str(partition), freq, str(step), version, name)
                        metrics.ACCURACY.labels(*labels).set(number)
                        self._shown.setdefault(partition, set()).add(labels)

    async def report_all(self, lanes: Mapping[int, Lane]) -> None:
        """Live: report on the lanes that run here, by partition, and show no longer those that other workers run now.
        A lane that is fenced is left to its forecasts to notice."""
        for partition in set(self._shown).difference(lanes):
            for labels in self._shown.pop(partition):
                metrics.ACCURACY.remove(*labels)
        for lane in [lane for lane in lanes.values() if not lane.closed]:
            with contextlib.suppress(FencedError, BehindError):
                await self.report(lane)
