"""Alerts on spikes laid over two real shops, beside other detectors tuned to as many alerts on other weeks.

Orders go in event time through the worker's own rules (`alert_runs`); `alert_streams` says how spikes are made. The
data are public sets that are not in this repository, as Parquet files of one folder (`--data`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.accuracy_models import SHIPPED
from benchmarks.alert_peers import HISTORY_H, PEERS, TRAILING_H, openings_of, threshold_for, trailing
from benchmarks.alert_runs import Opening, Run, Verdict, counts_of, forecasts_of, verdict_of
from benchmarks.alert_streams import (
    DAY_MS,
    DONOR_WEEKS,
    HOUR_MS,
    RATIOS,
    SHOPS,
    WEEK_MS,
    Shop,
    Spike,
    Stream,
    fast_and_slow,
    spikes_of,
)
from benchmarks.report import show
from forecaster.predictor import DemandModel, load_model
from worker.alert_evidence import spread_of, tail_probability
from worker.rules import alert_rules
from worker.settings import Settings

_RATIO = 3  # spikes of this size and more are what the headline is of
_ALERTS_AN_ITEM_DAY = 0.01
_SPIKES = 250  # at most


def ours(shop: Shop, stream: Stream, spiked: Stream, model: DemandModel) -> list[list[Opening]]:
    """Openings in the weeks of tuning, in the judged ones, and in those with spikes."""
    tuned, judged, end = shop.tuned_from_ms, shop.judged_from_ms, shop.end_ms
    rules = alert_rules(Settings(), "1h")
    forecasts = forecasts_of(model, shop.table(stream), tuned, end)
    plain = Run(stream, forecasts, rules, tuned, end)
    before = plain.run(tuned, judged)
    later = forecasts_of(model, shop.table(spiked), judged, end)
    with_spikes = Run(spiked, later, rules, judged, end)
    with_spikes.follow(plain)
    return [before, plain.run(judged, end), with_spikes.run(judged, end)]


def peers(shop: Shop, stream: Stream, spiked: Stream, spikes: list[Spike], most: int) -> dict[str, Any]:
    """Of each peer the verdict of its best trailing window; thresholds raise at most `most` alerts in the weeks of
    tuning."""
    first = shop.tuned_from_ms - HISTORY_H * HOUR_MS
    hours = [_hourly(one, first, shop.end_ms) for one in (stream, spiked)]
    split = (shop.judged_from_ms - first) // HOUR_MS
    found: dict[str, Any] = {}
    for name, score in PEERS.items():
        for length in TRAILING_H:
            plain, with_spikes = (score(trailing(one, length)) for one in hours)
            for scores in (plain, with_spikes):
                scores[:, :HISTORY_H] = scores.min()
            threshold = threshold_for(plain[:, :split], most)
            untouched = openings_of(plain[:, split:], threshold, shop.judged_from_ms // HOUR_MS)
            openings = openings_of(with_spikes[:, split:], threshold, shop.judged_from_ms // HOUR_MS)
            figures = _figures(shop, stream, spikes, openings, untouched) | {"trailing_h": length}
            if name not in found or figures["recall"] > found[name]["recall"]:
                found[name] = figures
    return found


def _hourly(stream: Stream, from_ms: int, end_ms: int) -> Any:
    orders = counts_of(stream, from_ms, end_ms).orders
    return orders.reshape(len(stream.item_ids), -1, 12).sum(axis=2).astype(np.float64)


def _figures(
    shop: Shop, stream: Stream, spikes: list[Spike], openings: list[Opening], untouched: list[Opening]
) -> dict[str, Any]:
    verdict = verdict_of([(s.item, s.start_ms, s.end_ms) for s in spikes], openings, untouched)
    days = (shop.end_ms - shop.judged_from_ms) / DAY_MS
    ratios, usual = np.array([s.ratio for s in spikes]), np.array([s.usual_orders for s in spikes])
    large = ratios >= _RATIO
    groups = {f"{ratio}x": ratios == ratio for ratio in RATIOS}
    groups |= {"3x and more, 10 orders and more": large & (usual >= 10), "3x and more, fewer": large & (usual < 10)}
    return {
        "recall": _recall(verdict, large),
        "precision": round(verdict.true / max(verdict.true + verdict.false, 1), 3),
        "delay": _delay(verdict, large),
        "alerts_an_item_day": round(len(untouched) / len(stream.item_ids) / days, 5),
        "by_group": {
            name: {"spikes": int(own.sum()), "recall": _recall(verdict, own), "delay": _delay(verdict, own)}
            for name, own in groups.items()
        },
    }


def _known(stream: Stream, spiked: Stream, spikes: list[Spike]) -> float:
    """Recall of 3 x and more by who is told each window, with what the item usually sells in it, and looks once, at its
    end: more orders than the alerts allowed an item-day would have by chance. No detector knows so much."""
    found = []
    for spike in (one for one in spikes if one.ratio >= _RATIO):
        own = spiked.time_ms[spiked.item == spike.item]
        first, last = np.searchsorted(own, [spike.start_ms, spike.end_ms])
        past = stream.time_ms[stream.item == spike.item]
        began, ended = np.searchsorted(past, [spike.start_ms - DONOR_WEEKS * WEEK_MS, spike.start_ms])
        spread = float(spread_of(np.array([(ended - began) / (7 * DONOR_WEEKS)]))[0])
        chance = tail_probability(float(last - first), spike.usual_orders, spread, above=True)
        found.append(chance <= _ALERTS_AN_ITEM_DAY * (spike.end_ms - spike.start_ms) / DAY_MS)
    return round(float(np.mean(found)), 3)


def _recall(verdict: Verdict, own: Any) -> float:
    return round(float(np.isfinite(verdict.found[own]).mean()), 3) if own.any() else 0.0


def _delay(verdict: Verdict, own: Any) -> float | None:
    found = verdict.found[own]
    found = found[np.isfinite(found)]
    return round(float(np.median(found)), 3) if len(found) else None


def figures_of(shop: Shop, fast: int, slow: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures of a shop."""
    stream = shop.stream.of(fast_and_slow(shop, fast, slow, 0))
    spikes, spiked = spikes_of(stream, shop.judged_from_ms, shop.end_ms - DAY_MS, seed, _SPIKES)
    before, untouched, openings = ours(shop, stream, spiked, load_model(SHIPPED, threads=1))
    say("shelfcast: done")
    lengths = np.array([s.end_ms - s.start_ms for s in spikes]) // 60_000
    return {
        "items": len(stream.item_ids),
        "spikes": len(spikes),
        "lengths_min": {str(n): int((lengths == n).sum()) for n in np.unique(lengths).tolist()},
        "usual_orders": [round(float(x), 1) for x in np.quantile([s.usual_orders for s in spikes], [0.1, 0.5, 0.9])],
        "recall_knowing_the_window": _known(stream, spiked, spikes),
        "detectors": {
            "shelfcast": _figures(shop, stream, spikes, openings, untouched),
            **peers(shop, stream, spiked, spikes, len(before)),
        },
    }


@click.command()
@click.option("--dataset", type=click.Choice(list(SHOPS)), required=True, help="Which shop.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("../shared/data"),
    show_default=True,
    help="Folder of the Parquet files.",
)
@click.option("--fast", default=200, show_default=True, help="Items with most orders.")
@click.option("--slow", default=100, show_default=True, help="Others, drawn.")
@click.option("--seed", default=1, show_default=True, help="By which spikes are drawn.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(dataset: str, data: Path, fast: int, slow: int, seed: int, as_json: bool) -> None:
    """Find spikes in a real shop's orders."""
    figures = figures_of(SHOPS[dataset](data), fast, slow, seed, lambda line: click.echo(line, err=True))
    header = ["detector", "recall", "precision", "delay", "alerts an item-day"]
    rows = [
        [name, *(str(one[key]) for key in ("recall", "precision", "delay", "alerts_an_item_day"))]
        for name, one in figures["detectors"].items()
    ]
    knowing = f"who knew each window would find {figures['recall_knowing_the_window']:.2f}"
    title = f"{dataset}: {figures['spikes']} spikes, shown of those of 3 x and more; {knowing}"
    show(title, header, rows, {"dataset": dataset, **figures}, as_json)


if __name__ == "__main__":
    command()
