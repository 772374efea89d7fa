"""What is sent and stored of alerts: a lane's forecasts of one frequency and cutoff, judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from feature_store.alert_state import AlertLevels, ItemAlerts
from feature_store.calendar_time import ShopCalendar, bucket_start_ms
from feature_store.features import FEATURE_INDEX
from feature_store.items import Item, ProductState
from forecaster.inputs import ModelInputs, ModelOutputs, running_buckets
from worker.alert_evidence import KINDS
from worker.alert_levels import NAME
from worker.alert_table import AlertRules, Looks
from worker.alerts import SEVERITIES, News, judge, withdrawn
from worker.schemas import Alert

_UNITS = FEATURE_INDEX["units"]
_WORDS = {"order_lines": "order lines", "add_to_carts": "add-to-carts", "ratings": "stars short of five, over four"}


class LaneRead(Protocol):
    """What was read of a lane's items."""

    @property
    def cutoff_ms(self) -> int: ...
    @property
    def subjects(self) -> list[tuple[Item, ProductState]]: ...
    @property
    def alerts(self) -> list[ItemAlerts | None]: ...
    @property
    def alert_levels(self) -> dict[str, AlertLevels]: ...


class AlertsMade(NamedTuple):
    """states: of each item, None = as it stands. messages: what is to be sent, and their keys. levels: by name."""

    states: Sequence[ItemAlerts | None]
    messages: list[tuple[str, Alert]]
    levels: Mapping[str, AlertLevels]


class Sources(NamedTuple):
    """Forecasts as they are sent, with what they were made of, row for row."""

    inputs: ModelInputs
    outputs: ModelOutputs
    forecast_ids: Sequence[str]


def alerts_made(freq: str, read: LaneRead, sources: Sources, rules: AlertRules, calendar: ShopCalendar) -> AlertsMade:
    """Judge what has happened to the items."""
    zones = [calendar.zone(item.location_id) for item, _ in read.subjects]
    running = running_buckets(freq, read.cutoff_ms, zones)
    outputs, now = sources.outputs, sources.inputs.running
    step = min(rules.per_day, outputs.mean.shape[1] - 1)
    mean = outputs.mean.astype(np.float64)
    looks = Looks(
        item_ids=[item.item_id for item, _ in read.subjects],
        forecast_ids=sources.forecast_ids,
        cutoff_ms=read.cutoff_ms,
        running=running,
        elapsed=sources.inputs.elapsed_fraction[:, 0].astype(np.float64),
        closed=sources.inputs.context,
        now=now,
        mean=mean,
        total=outputs.cumulative_quantiles[:, step].astype(np.float64),
        total_mean=np.maximum(mean[:, : step + 1].sum(axis=1) - now[:, _UNITS], 1e-3),
        states=read.alerts,
        levels=read.alert_levels.get(NAME),
    )
    judged = judge(looks, rules)
    messages = [_message(one, read.subjects[one.row][0], freq, zones[one.row], read.cutoff_ms) for one in judged.news]
    levels = {NAME: judged.levels} if judged.levels is not None else {}
    return AlertsMade(judged.states, messages, levels)


def not_judged(count: int) -> AlertsMade:
    """Of so many items nothing."""
    return AlertsMade([None] * count, [], {})


def closed_alerts(freq: str, read: LaneRead, rows: Sequence[int], calendar: ShopCalendar) -> list[tuple[str, Alert]]:
    """Of items that are withdrawn."""
    out = []
    for row in rows:
        state, item = read.alerts[row], read.subjects[row][0]
        zone = calendar.zone(item.location_id)
        running = int(running_buckets(freq, read.cutoff_ms, [zone])[0])
        for one in withdrawn(state, running, read.cutoff_ms) if state is not None else ():
            out.append(_message(one, item, freq, zone, read.cutoff_ms))
    return out


def _message(news: News, item: Item, freq: str, zone: str, cutoff_ms: int) -> tuple[str, Alert]:
    kind, episode = KINDS[news.episode.kind], news.episode
    what = _WORDS.get(news.channel, news.channel)
    reason = f"{news.observed:g} {what} where {news.expected:.4g} were expected" if what else "no longer sold"
    alert = Alert(
        alert_id=episode.alert_id,
        episode_state=news.state,
        sequence=episode.sequence,
        kind=kind,
        event_time=cutoff_ms,
        opened_at=episode.opened_ms,
        window_start=int(bucket_start_ms(freq, np.array([news.first_bucket]), zone)[0]),
        item_id=item.item_id,
        product_id=item.product_id,
        location_id=item.location_id,
        channel=news.channel,
        freq=freq,
        observed=round(news.observed, 3),
        expected=round(news.expected, 3),
        tail_probability=news.tail_probability,
        severity=SEVERITIES[episode.severity],
        forecast_id=news.forecast_id,
        reason=reason,
    )
    return f"{item.item_id}|{kind}", alert
