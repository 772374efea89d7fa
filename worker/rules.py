"""What settings mean for lanes and forecasts: the same live, in a replay and in a backtest."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence

from feature_store.events import CalendarEntry
from feature_store.features import SOURCES
from feature_store.plan import Retention
from feature_store.store import Remembered
from forecaster.inputs import ModelInputs
from worker.accuracy_reports import ReportRules
from worker.alert_levels import Budget
from worker.alert_table import AlertRules
from worker.challenger import ChallengeRules, Shadowed
from worker.forecast_messages import ForecastRules, Reply
from worker.lane_state import LaneRules, Send
from worker.scoring import ScoringRules
from worker.settings import Settings, stored_buckets, stored_freq
from worker.silence import SilenceRules, Stream
from worker.silence_watch import WatchRules
from worker.transport import murmur2_partition

_HOURS_A_DAY = 24
_BUCKETS_A_DAY = {"1h": 24, "1d": 1}


def lane_rules(settings: Settings, *, clock_topic: str, send: Send) -> LaneRules:
    """Rules of lanes; an empty `clock_topic` means that they are live."""
    count = settings.partition_count
    return LaneRules(
        sources=settings.input_topics,
        clock_topic=clock_topic,
        retention=Retention(settings.shop_calendar(), settings.retention),
        forecast_freqs=settings.forecast_freqs,
        remembered={
            freq: Remembered(
                calibration=freq in settings.calibrated_freqs,
                scores=bool(settings.scored_steps(freq)),
                alerts=freq in settings.alert_freqs,
            )
            for freq in settings.forecast_freqs
        },
        limits=settings.decode_limits(lambda product_id: murmur2_partition(product_id, count)),
        dedup_window_ms=settings.dedup_window_ms,
        out_of_orderness_ms=settings.out_of_orderness_ms,
        max_future_ms=settings.max_future_ms,
        live_days=settings.live_days,
        max_reject_share=settings.max_reject_share,
        reject_window=settings.reject_window,
        send=send,
        touched_freqs=settings.touched_freqs,
        refreshed_freqs=settings.refreshed_freqs,
    )


def scoring_rules(settings: Settings) -> dict[str, ScoringRules]:
    """How forecasts are scored, by frequency; absent = they are not."""
    return {
        freq: ScoringRules(freq, steps, settings.score_correction(freq))
        for freq in settings.forecast_freqs
        if (steps := settings.scored_steps(freq))
    }


def report_rules(settings: Settings) -> ReportRules:
    """When and where accuracy is published."""
    days = {"1h": 1 / 24, "1d": 1, "1w": 7}
    return ReportRules(
        settings.topic_accuracy,
        settings.topic_alerts if settings.alert_freqs else "",
        settings.model_name,
        settings.accuracy_interval_s * 1000,
        {freq: math.ceil(rules.correction * days[freq]) for freq, rules in scoring_rules(settings).items()},
    )


def challenge_rules(settings: Settings) -> ChallengeRules:
    """Which version is compared with the published one."""
    scoring, calendar = scoring_rules(settings), settings.shop_calendar()
    return ChallengeRules(settings.challenger_version, settings.challenger_share, scoring, calendar)


def forecast_rules(
    settings: Settings,
    *,
    live: bool,
    global_entries: Callable[[int], Sequence[CalendarEntry]],
    infer: Callable[[ModelInputs], Awaitable[Reply]],
    model_is_away: Callable[[], bool],
    shadow: Callable[[Sequence[Shadowed]], Awaitable[None]] | None = None,
) -> ForecastRules:
    """Rules of forecasts. A forecast that is not live is issued at its cutoff, so that it comes out the same again."""
    return ForecastRules(
        topic=settings.topic_forecasts,
        freqs=settings.forecast_freqs,
        calibrated_freqs=settings.calibrated_freqs,
        scoring=scoring_rules(settings),
        shadow=shadow,
        alert_rules={
            freq: alert_rules(settings, freq) for freq in settings.forecast_freqs if freq in settings.alert_freqs
        },
        topic_alerts=settings.topic_alerts,
        topic_accuracy=settings.topic_accuracy,
        item_accuracy_freqs=settings.item_accuracy_freqs,
        input_drift_freqs=settings.input_drift_freqs,
        stored_freq={freq: stored_freq(freq) for freq in settings.forecast_freqs},
        stored_buckets={freq: stored_buckets(freq) for freq in settings.forecast_freqs},
        prediction_length={freq: settings.prediction_length(freq) for freq in settings.forecast_freqs},
        calendar=settings.shop_calendar(),
        global_entries=global_entries,
        config_hash=settings.config_hash(),
        model_name=settings.model_name,
        batch_size=settings.forecast_batch_size,
        refresh_per_s=settings.refresh_per_s,
        infer=infer,
        model_is_away=model_is_away,
        issued_at_ms=(lambda _: time.time_ns() // 1_000_000) if live else (lambda cutoff_ms: cutoff_ms),
    )


def watch_rules(settings: Settings, entries: Callable[[int], Sequence[CalendarEntry]]) -> WatchRules | None:
    """Which streams are listened to; None = none are."""
    known = [Stream(topic, source) for topic, source in settings.input_topics.items() if source in SOURCES]
    if not settings.silence_sources:
        return None
    return WatchRules(
        streams=[stream for stream in known if stream.source in settings.silence_sources],
        known=known,
        topic_alerts=settings.topic_alerts,
        freq=settings.forecast_freqs[0],
        partition_count=settings.partition_count,
        silence=SilenceRules(
            round(settings.silence_least_s * 1000), round(settings.alert_update_s * 1000), settings.time_zone
        ),
        entries=entries,
    )


def alert_rules(settings: Settings, freq: str) -> AlertRules:
    """Rules of alerts that are judged by forecasts of a frequency."""
    per_day = _BUCKETS_A_DAY[freq]
    return AlertRules(
        per_day=per_day,
        budget=Budget(share=settings.alert_false_share),
        cooldown=math.ceil(settings.alert_cooldown_h * per_day / _HOURS_A_DAY),
        update_ms=round(settings.alert_update_s * 1000),
    )
