"""Alerts: demand, interest and ratings that leave what was forecast. Pure functions: state in, state and news out.

Of each item the forecast made before is kept, bucket by bucket, and everything that happens is held against it
(`alert_evidence.py` has the sums, `alert_levels.py` how much of it opens an alert). Each look judges what the running
bucket has counted so far against the part of its expectation that has passed. While evidence speaks for a change the
reference stands still: a forecast made after a spike began has seen it, and would call it normal.

An episode closes when evidence has fallen so far from its peak that it is rather over (100 to 1), or when the reference
reaches no further. Then nothing is opened for the item until forecasts have forgotten what happened.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.alert_state import AlertLevels, Episode, ItemAlerts
from forecaster.contract import QUANTILE_LEVELS
from worker.alert_evidence import (
    CARTS,
    CHANNELS,
    DETECTORS,
    KIND_OF,
    KINDS,
    LEAST_SPREAD,
    LINES,
    RATINGS,
    UNITS,
    VIEWS,
    spread_of,
    spread_of_quantiles,
    strength_of,
    tail_probability,
)
from worker.alert_levels import level_of, levels_in
from worker.alert_table import (
    COLUMNS,
    LONGEST,
    REVIEWS,
    SPREADS,
    STARS,
    THOUSAND,
    AlertRules,
    Evidence,
    Looks,
    Table,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

SEVERITIES: tuple[Literal["minor", "major", "critical"], ...] = ("minor", "major", "critical")
_SEVERE = (1e-6, 1e-12)  # tail probabilities from which on an alert is major, and critical
_ABOVE = tuple(kind != "demand_below" for kind in KINDS)
_MOST_RATINGS = 400  # beyond, old ones count half
_HOT = 2.0  # strength from which on a reference stands still: about one day in eight has as much by chance
_LEAST_EVIDENCE = 3.5  # log; a few orders of an item that hardly ever sells are no alert
_PRIOR_DAYS, _PRIOR_SPREAD = 3.0, 1.4
_FORECAST_ERROR = 1.15  # by how much days differ more from their forecast than from the same weekday before
# Share of days that tell of the spread, and the mean of so many of the lowest squares of a normal variable.
_CENTRAL, _CENTRAL_MEAN = 0.75, 0.4
_CLICKS = [CARTS, VIEWS]
_FEWEST_CLICKS = 20
_QUIET_SHARE = 0.05  # a bucket is never expected to hold less than this share of the mean one: nights are not empty
_WEEK, _HISTORY_DAYS = 7, 56
_UNTOLD_DAYS = 2  # the last ones, which may be a part of what is to be found, tell nothing of how days differ
_LESSER_DAY = 0.35  # quantile
_MOST_TRAIT = 1e9
_LEVELS: Floats = np.array(QUANTILE_LEVELS)


class News(NamedTuple):
    """A message to be sent. row: of the item. episode: as it stands after it. state: open, update or close.
    first_bucket: where its window begins."""

    row: int
    episode: Episode
    state: Literal["open", "update", "close"]
    channel: str
    first_bucket: int
    observed: float
    expected: float
    tail_probability: float
    forecast_id: str


class Judged(NamedTuple):
    """states: of each item, None = nothing new. levels: what the lane's levels are to be added; None = nothing."""

    states: list[ItemAlerts | None]
    news: list[News]
    levels: AlertLevels | None


def judge(looks: Looks, rules: AlertRules) -> Judged:
    """One look at some items.

    1. Bring evidence up to the begin of the running bucket.
    2. Add what has been counted in it.
    3. Open, tell of and close episodes.
    4. Where a bucket has closed or something was told: the new state, with a new reference where nothing speaks
       against the old one.
    """
    period = int(looks.running.max()) // rules.per_day if len(looks.running) else 0
    levels = levels_in(looks.levels, period, rules.budget)
    table = Table(looks, rules)
    folded = table.folded()  # 1
    present = table.added(*folded, 0, table.elapsed)  # 2
    strength = strength_of(np.maximum(present.evidence, 0.0))
    threshold = -np.log(level_of(levels, rules.budget))
    news, episodes = _episodes(table, present, strength, threshold)  # 3
    is_hot = _is_hot(table, folded.evidence) | _is_hot(table, present.evidence)
    states: list[ItemAlerts | None] = [None] * len(looks.states)
    told = sorted({one.row for one in news})
    changed = np.flatnonzero(table.fresh | np.isin(np.arange(len(states)), told))
    if len(changed):
        ended = Counter(one.row for one in news if one.state == "close")
        parts = _Parts(folded, is_hot, episodes, ended)
        for row, state in zip(changed.tolist(), _states(table, parts, changed), strict=True):  # 4
            states[row] = state
    sums = [sum(one.state == "open" for one in news), int(table.new_period.sum())]
    own = AlertLevels(levels.period, levels.wealth, levels.judged, sums) if any(sums) else None
    return Judged(states, news, own)


def _is_hot(table: Table, evidence: Floats) -> Booleans:
    """Whether evidence speaks for a change, in an item of which something was expected."""
    speaks = (strength_of(np.maximum(evidence, 0.0)) >= _HOT).any(axis=1) & (evidence >= _HOT).any(axis=1)
    return np.asarray(speaks & np.isfinite(table.expected(0)[:, 0]))


def _episodes(
    table: Table, present: Evidence, strength: Floats, threshold: float
) -> tuple[list[News], dict[int, list[Episode]]]:
    """News, and by row the episodes that are open after it; only of rows that have or had any."""
    looks = table.looks
    quiet = np.array([s.quiet_until if s else 0 for s in looks.states], dtype=np.int64)
    opens = (strength >= threshold) & (looks.running >= quiet)[:, None]
    opens &= np.stack(
        [(present.evidence[:, kind == KIND_OF] >= _LEAST_EVIDENCE).any(axis=1) for kind in range(len(KINDS))], axis=1
    )
    have = [i for i, s in enumerate(looks.states) if s is not None and s.episodes]
    news: list[News] = []
    after: dict[int, list[Episode]] = {}
    for i in sorted({*have, *np.flatnonzero(opens.any(axis=1)).tolist()}):
        state = looks.states[i]
        if state is None:
            continue
        if not table.kept[i]:  # nothing was judged for too long
            news += [one._replace(row=i) for one in withdrawn(state, int(looks.running[i]), looks.cutoff_ms)]
            continue
        teller = _Teller(table, present, strength, i, state)
        news += teller.news(opens[i])
        after[i] = teller.episodes
    return news, after


class _Teller:
    """One item's episodes."""

    def __init__(self, table: Table, present: Evidence, strength: Floats, row: int, state: ItemAlerts) -> None:
        self._table, self._present, self._strength = table, present, strength[row]
        self._row, self._state = row, state
        self.episodes: list[Episode] = []

    def news(self, opens: Booleans) -> list[News]:
        """What is to be said of the item now."""
        found = [one for episode in self._state.episodes if (one := self._go_on(episode)) is not None]
        running = {episode.kind for episode in self._state.episodes}
        for kind in np.flatnonzero(opens).tolist():
            if kind not in running:
                found.append(self._open(kind, len(found)))
        return found

    def _go_on(self, episode: Episode) -> News | None:
        table, rules, cutoff_ms = self._table, self._table.rules, self._table.looks.cutoff_ms
        strength = float(self._strength[episode.kind])
        peak = max(episode.peak, round(strength * THOUSAND)) if table.fresh[self._row] else episode.peak
        episode = msgspec.structs.replace(episode, peak=peak)
        reaches = np.isfinite(table.expected(0)[self._row, 0]) or KINDS[episode.kind] == "review_below"
        if not reaches or strength * THOUSAND <= max(peak, 0) - rules.closing * THOUSAND:
            return self._tell(episode, "close")
        one = self._tell(episode, "update")
        if one.episode.severity > episode.severity or cutoff_ms - episode.told_ms >= rules.update_ms:
            self.episodes.append(one.episode)
            return one
        self.episodes.append(episode)
        return None

    def _open(self, kind: int, n: int) -> News:
        looks, state = self._table.looks, self._state
        # The state stands still until Kafka has the message: found again after a crash, it is the same episode.
        identity = [looks.item_ids[self._row], KINDS[kind], state.forecast_id, state.closed]
        digest = hashlib.blake2b(msgspec.json.encode(identity), digest_size=12).hexdigest()
        peak = round(float(self._strength[kind]) * THOUSAND)
        one = self._tell(Episode(kind, digest, 0, looks.cutoff_ms, looks.cutoff_ms, 0, peak), "open")
        self.episodes.append(one.episode)
        return one

    def _tell(self, episode: Episode, state: Literal["open", "update", "close"]) -> News:
        table, row, kind = self._table, self._row, episode.kind
        best = int(np.argmax(np.where(kind == KIND_OF, self._present.evidence[row], -np.inf)))
        channel, age = DETECTORS[best].channel, int(self._present.ages[row, best])
        observed, expected = table.window(row, age, channel)
        spread = 2.0 if channel == RATINGS else max(float(table.traits[row, SPREADS][channel]), LEAST_SPREAD)
        tail = tail_probability(observed, expected, spread, above=_ABOVE[kind])
        severity = max(episode.severity, sum(tail <= limit for limit in _SEVERE))
        after = msgspec.structs.replace(
            episode, sequence=episode.sequence + 1, told_ms=table.looks.cutoff_ms, severity=severity
        )
        first = int(table.looks.running[row]) - age
        return News(row, after, state, CHANNELS[channel], first, observed, expected, tail, self._state.forecast_id)


class _Parts(NamedTuple):
    """What new states are made of, row for row; episodes and how many have closed now, by row where there are any."""

    folded: Evidence
    is_hot: Booleans
    episodes: Mapping[int, list[Episode]]
    ended: Mapping[int, int]


def _states(table: Table, parts: _Parts, rows: Integers) -> list[ItemAlerts]:
    """New states of some rows."""
    looks = table.looks
    traits = _traits(looks, rows, table.rules.per_day)
    ahead = _ahead(looks, rows)
    reviewed = np.nansum(looks.closed[rows][:, :, REVIEWS], axis=1) > 0
    evidence = np.rint(parts.folded.evidence * THOUSAND).astype(np.int64)
    out = []
    for n, row in enumerate(rows.tolist()):
        state = looks.states[row] if table.kept[row] else None
        ended = parts.ended.get(row, 0)
        begins = state is None or ended > 0
        ages = [0] * len(DETECTORS) if begins else parts.folded.ages[row].tolist()
        renews = begins or (bool(table.fresh[row]) and not parts.is_hot[row])
        first, rates = _rates(table, row, state, max(ages), ahead[n] if renews else None)
        out.append(
            ItemAlerts(
                bucket=int(looks.running[row]),
                first=first,
                rates=rates,
                forecast_id=looks.forecast_ids[row] if state is None or renews else state.forecast_id,
                traits=traits[n] if state is None or renews else state.traits,
                evidence=[0] * len(DETECTORS) if begins else evidence[row].tolist(),
                ages=ages,
                past_ratings=_past_ratings(table, row, learns=bool(reviewed[n]) and not parts.is_hot[row]),
                episodes=parts.episodes.get(row, []),
                closed=(state.closed if state else 0) + ended,
                quiet_until=_quiet_until(table, row, state, ended),
            )
        )
    return out


def _quiet_until(table: Table, row: int, state: ItemAlerts | None, ended: int) -> int:
    if ended:
        return int(table.looks.running[row]) + table.rules.cooldown
    return state.quiet_until if state is not None else 0


def _ahead(looks: Looks, rows: Integers) -> list[list[int]]:
    """Thousandths of a unit forecast for the buckets after the running one."""
    mean = looks.mean[rows, 1:LONGEST]
    if not mean.shape[1]:
        return [[] for _ in rows]
    quiet = _QUIET_SHARE * mean.mean(axis=1, keepdims=True)
    packed: list[list[int]] = np.rint(np.maximum(mean, quiet) * THOUSAND).astype(np.int64).tolist()
    return packed


def _rates(
    table: Table, row: int, state: ItemAlerts | None, age: int, ahead: Sequence[int] | None
) -> tuple[int, list[int]]:
    """The first bucket of which a rate is kept, and the rates: of the window that evidence is from, and as far as the
    reference reaches. The running bucket's is never of a forecast made in it, which has seen a part of it.

    ahead: what is forecast now, where the reference is renewed.
    """
    running = int(table.looks.running[row])
    first, rates = (running, [-1]) if state is None else (state.first, state.rates)
    begin = min(max(running - age, first), running)
    rates = [*rates[begin - first :], *([-1] * max(running + 1 - first - len(rates), 0))]
    if ahead is None:
        return begin, rates
    # The next half day stays as it was forecast half a day ago: what has begun unnoticed is not in it. After an episode
    # too: the forecasts made in it have seen it.
    stays = rates[running + 1 - begin :][: table.rules.per_day // 2]
    return begin, [*rates[: running + 1 - begin], *stays, *ahead[len(stays) :]]


def _traits(looks: Looks, rows: Integers, per_day: int) -> list[list[int]]:
    """What else is to be expected of items, from their own past days; see alert_table.py."""
    end = looks.closed.shape[1] - _UNTOLD_DAYS * per_day
    days = min(end // per_day, _HISTORY_DAYS)
    past = looks.closed[rows, end - days * per_day : end][:, :, COLUMNS].astype(np.float64)
    by_day = past.reshape(len(rows), days, per_day, len(COLUMNS)).sum(axis=2)  # NaN where the item was not yet sold
    lines, units, carts, views = np.nansum(by_day, axis=1).T
    spread = spread_of(np.nansum(by_day, axis=1) / np.maximum(np.isfinite(by_day).sum(axis=1), 1))
    # Of order lines, steps between days tell less than what shops have in common; sessions of clicks differ by shop.
    spread[:, _CLICKS] = np.maximum(spread[:, _CLICKS], _spreads(by_day[:, :, _CLICKS]))
    spread[:, UNITS] = spread_of_quantiles(looks.total[rows], _LEVELS, looks.total_mean[rows])
    some = np.maximum(lines, 1.0)
    a_line = [
        np.where(lines > 0, units / some, 1.0),
        np.where(carts >= _FEWEST_CLICKS, carts / some, 0.0),
        np.where(views >= _FEWEST_CLICKS, views / some, 0.0),
    ]
    a_day = looks.mean[rows, 1:].mean(axis=1) * per_day if looks.mean.shape[1] > 1 else looks.mean[rows, 0]
    # After a rush forecasts are too high: a drop is one only below what the item's own lesser days sell, too.
    usual = np.quantile(np.nan_to_num(by_day[:, :, LINES]), _LESSER_DAY, axis=1) if days else np.zeros(len(rows))
    share = np.minimum(usual * np.maximum(a_line[0], 1 / THOUSAND) / np.maximum(a_day, 1e-3), 1.0)
    traits = np.column_stack([*a_line, spread, share])
    traits[:, 0] = np.maximum(traits[:, 0], 1 / THOUSAND)
    packed: list[list[int]] = np.rint(np.minimum(traits, _MOST_TRAIT) * THOUSAND).astype(np.int64).tolist()
    return packed


def _spreads(by_day: Floats) -> Floats:
    """Variance over mean of days: float64 (item, channel), from float64 (item, day, channel). From steps between the
    same weekdays, for what differs by weekday is forecast; days that stand out are left out of it, since they may be
    what is to be found."""
    step = by_day[:, _WEEK:] - by_day[:, :-_WEEK]
    ratio = np.square(step) / np.maximum(by_day[:, _WEEK:] + by_day[:, :-_WEEK], 1.0)  # 1 on average, were it Poisson
    known = np.sort(np.where(np.isfinite(ratio), ratio, np.inf), axis=1)
    count = np.isfinite(ratio).sum(axis=1)
    kept = np.floor(_CENTRAL * count)
    inside = np.arange(known.shape[1])[None, :, None] < kept[:, None]
    total = np.where(inside, known, 0.0).sum(axis=1) / _CENTRAL_MEAN
    return np.asarray(_FORECAST_ERROR * (total + _PRIOR_DAYS * _PRIOR_SPREAD) / (kept + _PRIOR_DAYS))


def _past_ratings(table: Table, row: int, *, learns: bool) -> list[int]:
    """Ratings up to the begin of the running bucket; while evidence speaks for a change, those before it."""
    looks, state = table.looks, table.looks.states[row] if table.kept[row] else None
    if state is not None and (not learns or not table.gap[row]):
        return state.past_ratings
    past = looks.closed[row] if state is None else looks.closed[row, -int(table.gap[row]) :]
    count, stars = np.nan_to_num(past[:, [REVIEWS, STARS]]).sum(axis=0).astype(np.int64).tolist()
    if state is not None:
        count, stars = count + state.past_ratings[0], stars + state.past_ratings[1]
    return [count // 2, stars // 2] if count > _MOST_RATINGS else [count, stars]


def withdrawn(state: ItemAlerts, running: int, cutoff_ms: int) -> list[News]:
    """The end of an item's open episodes, with nothing to be said of it any more: it is no longer sold."""
    return [
        News(
            0,
            msgspec.structs.replace(one, sequence=one.sequence + 1, told_ms=cutoff_ms),
            "close",
            "",
            running,
            0.0,
            0.0,
            1.0,
            state.forecast_id,
        )
        for one in state.episodes
    ]
