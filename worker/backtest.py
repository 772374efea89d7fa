"""`shelfcast backtest RECORDING`: what would have been forecast, how good it would have been, and what would change."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from rich.console import Console

from feature_store.accuracy_store import Rows
from feature_store.recording_files import Recording, RecordingError
from feature_store.store import StoreError
from worker.backtest_alerts import alerts_line
from worker.backtest_changes import Changes, compare
from worker.backtest_lanes import LaneJob
from worker.backtest_live_scores import live_summary, live_tables, merged_scores
from worker.backtest_models import NONE
from worker.backtest_process import ProcessJob, ProcessResult, run_process
from worker.backtest_progress import progress_bar
from worker.backtest_scores import Sample, merged_sums, telling_samples
from worker.backtest_screen import accuracy_table
from worker.backtest_summary import changes_summary, recording_summary, variant_summary
from worker.backtest_variants import Variant, parse_variants, recorded_span_ms, spread
from worker.errors import BacktestError
from worker.local_stack import LocalRedis
from worker.recorded_snapshot import restore_recorded

logger = logging.getLogger(__name__)

_DAY = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


class BacktestOptions(NamedTuple):
    """How a backtest is run. Times are UTC; `processes` 0 = one a core."""

    output: Path
    processes: int = 0
    interval_ms: int = 3_600_000
    from_ms: int | None = None
    until_ms: int | None = None
    keep_forecasts: bool = False
    live_scoring: bool = False


class VariantRun(NamedTuple):
    """A variant, what its processes found, and seconds from their start to their end."""

    variant: Variant
    results: list[ProcessResult]
    wall_s: float


@click.command("backtest")
@click.argument("recording", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--model",
    "models",
    multiple=True,
    help="empirical, seasonal_naive, a folder with config.json and model.safetensors, triton:NAME, or none (only count "
    "features); several are compared as A, B, …  [default: the model that ships with shelfcast]",
)
@click.option(
    "--set", "sets", multiple=True, metavar="[B:]NAME=VALUE", help="A setting of all variants, or of B alone."
)
@click.option("--from", "since", type=click.DateTime(_DAY), help="Forecast from here on (UTC); before it only count.")
@click.option(
    "--until", type=click.DateTime(_DAY), help="Stop here (UTC); what comes after only tells how good it was."
)
@click.option("--tick", "tick_s", default=3600, show_default=True, help="Seconds of event time between forecasts.")
@click.option("--processes", default=0, help="Processes that share the partitions.  [default: one a core]")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("backtest"),
    show_default=True,
    help="Folder for backtest.json and report.html.",
)
@click.option(
    "--live-scoring", is_flag=True, help="Also score as a worker does, to what `shelfcast accuracy` would say."
)
@click.option("--keep-forecasts", is_flag=True, help="Keep all forecasts there too, as Parquet.")
def command(**arguments: Any) -> None:
    """Run RECORDING through the worker's own lanes and score every forecast against what then happened.

    No broker and no running worker are needed; Redis is started for the time being. Several variants, of models or
    settings, are run one after the other and compared.
    """
    options = BacktestOptions(
        output=arguments["output"],
        processes=arguments["processes"],
        interval_ms=arguments["tick_s"] * 1000,
        from_ms=_to_ms(arguments["since"]),
        until_ms=_to_ms(arguments["until"]),
        keep_forecasts=arguments["keep_forecasts"],
        live_scoring=arguments["live_scoring"],
    )
    console = Console()
    try:
        recording = Recording.open(arguments["recording"])
        variants = parse_variants(arguments["models"], arguments["sets"], os.environ, recording)
        summary = run_backtest(recording, variants, options, console, bar_console=Console(stderr=True))
    except RecordingError as error:
        raise BacktestError(str(error)) from error
    if any(variant["accuracy"] for variant in summary["variants"]):
        console.print(accuracy_table(summary))
    for variant in summary["variants"]:
        if variant["alerts"]["raised"]:
            console.print(f"{variant['label']}: {alerts_line(variant['alerts'])}")
    console.print(f"Written to {options.output}: backtest.json, report.html")


def _to_ms(moment: dt.datetime | None) -> int | None:
    return None if moment is None else int(moment.replace(tzinfo=dt.UTC).timestamp() * 1000)


def run_backtest(
    recording: Recording,
    variants: Sequence[Variant],
    options: BacktestOptions,
    console: Console | None = None,
    bar_console: Console | None = None,
) -> dict[str, Any]:
    """Run the variants one after the other, write backtest.json and report.html, return what is in backtest.json.
    `console` gets a line or two of each; `bar_console`, if it is a terminal, shows how far it is.

    Raises:
        BacktestError, RecordingError: names what can't be and the remedy.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    shares = spread(recording, variants[0].settings, options.processes or len(os.sched_getaffinity(0)))
    runs = []
    for variant in variants:
        if console is not None:
            console.print(f"[bold]{variant.label}[/bold] {_described(variant)} …")
        keep = options.keep_forecasts or len(variants) > 1
        runs.append(run_variant(recording, variant, options, shares, keep=keep, bar_console=bar_console))
        if console is not None:
            console.print(f"  {_pace(runs[-1])}")
            for table in live_tables(_live_scores(runs[-1])):
                console.print(table)
    summary = {
        "recording": recording_summary(recording, recorded_span_ms(recording, variants[0].settings)),
        "variants": [_summary(run) for run in runs],
        "changes": [
            changes_summary(runs[0].variant.label, run.variant.label, changes)
            for run in runs[1:]
            if (changes := _changes(runs[0], run, options)) is not None
        ],
    }
    if not options.keep_forecasts:
        _remove_kept(runs, options)
    text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    (options.output / "backtest.json").write_text(text, encoding="utf-8")
    _write_report(options.output / "report.html", summary, runs[0])
    return summary


def _write_report(path: Path, summary: dict[str, Any], first: VariantRun) -> None:
    samples: list[Sample] = [s for result in first.results for s in result.found.get("samples", [])]
    try:
        report = importlib.import_module("worker.backtest_report")  # what it needs, a backtest can do without
    except ModuleNotFoundError as error:
        logger.warning("%s is not written: it needs %s; pip install 'shelfcast[reports]'", path, error.name)
        return
    report.write_report(path, summary, telling_samples(samples))


def _described(variant: Variant) -> str:
    return " ".join([variant.model, *(f"{name}={value}" for name, value in variant.own.items())])


def _pace(run: VariantRun) -> str:
    events, forecasts = sum(r.lanes.events for r in run.results), sum(r.forecasts for r in run.results)
    seconds = max(r.seconds for r in run.results)
    pace = f"{events:,} events ({events / seconds:,.0f}/s), {forecasts:,} forecasts ({forecasts / seconds:,.0f}/s)"
    return f"{pace} in {seconds:.1f} s, {run.wall_s:.1f} s with starting"


def run_variant(
    recording: Recording,
    variant: Variant,
    options: BacktestOptions,
    shares: Sequence[tuple[int, ...]],
    *,
    keep: bool,
    bar_console: Console | None = None,
) -> VariantRun:
    """Run one variant on a Redis of its own, in a process for each share of the partitions."""
    first_ms, last_ms = recorded_span_ms(recording, variant.settings)
    shown_ms = first_ms, last_ms if options.until_ms is None else min(last_ms, options.until_ms)
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="shelfcast-backtest-") as folder,
        LocalRedis(Path(folder), append_only=False) as redis,
    ):
        settings = msgspec.structs.replace(variant.settings, redis_url=redis.url)
        try:
            asyncio.run(restore_recorded(recording, settings))
        except StoreError as error:
            raise BacktestError(str(error)) from error
        lanes = [
            LaneJob(recording.path, share, settings, options.interval_ms, options.from_ms, options.until_ms)
            for share in shares
        ]
        kept = [_kept_path(options, variant, n) if keep else None for n in range(len(lanes))]
        with progress_bar(bar_console, Path(folder), len(lanes), shown_ms) as notes:
            jobs = [
                ProcessJob(job, variant.model, last_ms, path, note, options.live_scoring)
                for job, path, note in zip(lanes, kept, notes, strict=True)
            ]
            results = _run_all(jobs)
    return VariantRun(variant, results, time.perf_counter() - began)


def _run_all(jobs: Sequence[ProcessJob]) -> list[ProcessResult]:
    if len(jobs) == 1:
        return [run_process(jobs[0])]
    # Not forked: this process has threads, that of the local servers at least.
    with ProcessPoolExecutor(len(jobs), mp_context=get_context("spawn")) as pool:
        return list(pool.map(run_process, jobs))


def _kept_path(options: BacktestOptions, variant: Variant, process: int) -> Path | None:
    if variant.model == NONE:
        return None
    return options.output / "forecasts" / variant.label / f"{process + 1:03d}.parquet"


def _summary(run: VariantRun) -> dict[str, Any]:
    sums = merged_sums([result.found["accuracy"] for result in run.results if "accuracy" in result.found])
    summary = variant_summary(run.variant, run.results, run.wall_s, sums)
    return summary | {"live_accuracy": live_summary(_live_scores(run))}


def _live_scores(run: VariantRun) -> dict[str, Rows]:
    return merged_scores([result.found["live_scores"] for result in run.results if "live_scores" in result.found])


def _changes(first: VariantRun, other: VariantRun, options: BacktestOptions) -> Changes | None:
    if NONE in (first.variant.model, other.variant.model):
        return None
    processes = range(len(first.results))
    pairs = [(_kept_path(options, first.variant, n), _kept_path(options, other.variant, n)) for n in processes]
    return compare([(a, b) for a, b in pairs if a is not None and b is not None])


def _remove_kept(runs: Sequence[VariantRun], options: BacktestOptions) -> None:
    for run in runs:
        for n in range(len(run.results)):
            path = _kept_path(options, run.variant, n)
            if path is not None and path.exists():
                path.unlink()
                for folder in (path.parent, path.parent.parent):
                    if not any(folder.iterdir()):
                        folder.rmdir()
