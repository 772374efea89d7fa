"""The alerts that a backtest's forecasts raise: judged as a worker would, with what it remembers kept here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from feature_store.alert_state import AlertLevels, ItemAlerts
from feature_store.calendar_time import ShopCalendar
from feature_store.items import Item, ProductState
from forecaster.inputs import ModelInputs, ModelOutputs
from worker.alert_levels import added
from worker.alert_messages import Sources, alerts_made
from worker.alert_table import AlertRules
from worker.backtest_collector import ForecastBatch
from worker.schemas import Alert


class _LaneMemory(NamedTuple):
    """What a worker keeps in Redis: by item_id, and by name."""

    items: dict[str, ItemAlerts]
    levels: dict[str, AlertLevels]


class _Read(NamedTuple):
    """What was read of a lane's items, with what is remembered of them here."""

    cutoff_ms: int
    subjects: list[tuple[Item, ProductState]]
    alerts: list[ItemAlerts | None]
    alert_levels: dict[str, AlertLevels]


class RaisedAlerts:
    """An evaluator: what it finds are all messages about items, in the order of their making. Forecasts of a backtest
    have no forecast_id, so alerts have none either, and other alert_ids than a worker's."""

    def __init__(self, rules: Mapping[str, AlertRules], calendar: ShopCalendar) -> None:
        self._rules, self._calendar = rules, calendar
        self._remembered: dict[tuple[int, str], _LaneMemory] = {}  # by partition and frequency
        self._found: list[Alert] = []

    def take(self, batch: ForecastBatch) -> None:
        """Judge one lane's forecasts of one moment after the other."""
        rules, start = self._rules.get(batch.freq), 0
        for prepared in batch.prepared if rules is not None else ():
            stop = start + len(prepared.read.subjects)
            memory = self._remembered.setdefault((prepared.lane.partition, batch.freq), _LaneMemory({}, {}))
            item_ids = [item.item_id for item, _ in prepared.read.subjects]
            states = [memory.items.get(item_id) for item_id in item_ids]
            read = _Read(prepared.read.cutoff_ms, prepared.read.subjects, states, memory.levels)
            sources = Sources(
                ModelInputs._make(column[start:stop] for column in batch.inputs),
                ModelOutputs._make(column[start:stop] for column in batch.outputs),
                [""] * len(item_ids),
            )
            assert rules is not None
            made = alerts_made(batch.freq, read, sources, rules, self._calendar)
            new = zip(item_ids, made.states, strict=True)
            memory.items.update({item_id: state for item_id, state in new if state is not None})
            for name, levels in made.levels.items():
                memory.levels[name] = added(memory.levels.get(name), levels)
            self._found += [alert for _, alert in made.messages]
            start = stop

    def result(self) -> list[Alert]:
        """All messages."""
        return self._found


def episodes(alerts: Iterable[Alert]) -> list[dict[str, Any]]:
    """One row an alert, in the order in which they opened: as it last stood, and when it closed."""
    by_id: dict[tuple[str, int], list[Alert]] = {}
    for alert in alerts:
        by_id.setdefault((alert.alert_id, alert.opened_at), []).append(alert)
    rows = []
    for told in by_id.values():
        last, worst = told[-1], told[-2] if told[-1].episode_state == "close" and len(told) > 1 else told[-1]
        kept = ("kind", "item_id", "subject", "channel", "freq", "opened_at", "window_start", "severity")
        rows.append(
            {name: getattr(last, name) for name in kept}
            | {"closed_at": last.event_time if last.episode_state == "close" else None, "messages": len(told)}
            | {name: getattr(worst, name) for name in ("observed", "expected", "tail_probability", "reason")}
        )
    return sorted(rows, key=lambda row: (row["opened_at"], row["kind"], row["item_id"], row["subject"]))


def alerts_summary(alerts: Sequence[Alert]) -> dict[str, Any]:
    """What backtest.json says of alerts."""
    found = episodes(alerts)
    kinds = Counter(row["kind"] for row in found)
    return {"raised": len(found), "by_kind": dict(sorted(kinds.items())), "episodes": found}


def alerts_line(summary: Mapping[str, Any]) -> str:
    """The same in a line."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["by_kind"].items())
    return f"{summary['raised']} alerts{': ' if kinds else ''}{kinds}"


def as_alert(value: bytes | None) -> Alert:
    """A message as it was to be sent."""
    return msgspec.json.decode(value or b"", type=Alert)
