"""How many events a second one worker process takes from Kafka into exact features, and what other Python libraries
make of the same job, in the same run and on the same servers.

One rule for all: a program is started and has stored a warm-up; then its process is stopped (SIGSTOP) while the backlog
is sent to its topic. The clock runs from its going on (SIGCONT) to its last write into Redis: start and first join of
the group are outside, all work on the backlog is inside. Then everything stored is compared, cell by cell, with a plain
dict. Programs take turns, and each starts with a topic of its own and an empty Redis.

The job: sums of orders by product and bucket of event time. Peers keep units and revenue in 5-minute buckets; the
worker keeps all its features in its three frequencies. Forecasting is put off (forecast_interval_ms of an hour, no
model server): what the worker owes is marked all the same, which is part of taking an event in.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import redis

from benchmarks import mix, shop
from benchmarks.contestants import BUCKET_MS, Contestant, Peer, Shelfcast
from benchmarks.peer_environment import DEFAULT_DIRECTORY, PEERS, PeerEnvironment
from benchmarks.report import cpu_s, peak_rss_mb, show
from benchmarks.shop import Cells, Zipf, environment
from worker.errors import LocalStackError
from worker.local_server import LocalServer
from worker.local_stack import LocalStack
from worker.settings import load_settings
from worker.topics import ensure_topics

_PRODUCTS, _SEED = 5_000, 1
_SPAN_MS = 6 * 3_600_000  # of event time; the last event happens as the benchmark begins
_WARM_UP = 20_000
_STEP = 20_000  # batches and checkpoints of all peers divide it, so that none waits at the end for one to fill up
_PATIENCE_S = 600.0


class Backlog(NamedTuple):
    """What a program is to read: (source, key, value) of each record, the warm-up first; and what is in it."""

    records: list[tuple[str, str, bytes]]
    truth: Cells

    @property
    def events(self) -> int:
        """Without the warm-up."""
        return len(self.records) - _WARM_UP


class Run(NamedTuple):
    """One timed run of one program."""

    events: int
    seconds: float
    cpu_s: float
    peak_rss_mb: float
    servers_cpu_s: dict[str, float]
    correct: bool
    libraries: Mapping[str, str]

    @property
    def events_per_s(self) -> float:
        return self.events / self.seconds


def job_backlog(events: int, now_ms: int, event_ids: bool, span_ms: int = _SPAN_MS) -> Backlog:
    """Orders of about 100 bytes; without an event_id none can be known for a duplicate."""
    zipf = Zipf(_PRODUCTS, now_ms - span_ms, now_ms, _SEED)
    orders = shop.make_orders(_WARM_UP + events, zipf, event_ids)
    records = [("orders", order.product_id, shop.encode(order)) for order in orders]
    return Backlog(records, shop.sum_cells(map(shop.contribution, orders), BUCKET_MS))


def full_backlog(events: int, now_ms: int, span_ms: int = _SPAN_MS) -> Backlog:
    """Full-size orders, clicks and reviews."""
    zipf = Zipf(_PRODUCTS, now_ms - span_ms, now_ms, _SEED)
    mixed = mix.make_mix(_WARM_UP + events, zipf, first_order_all=True)  # an item is looked up by its orders
    records = [(event.source, event.product_id, mix.encode_event(event)) for event in mixed]
    return Backlog(records, shop.sum_cells(map(mix.contribution, mixed), BUCKET_MS))


def time_run(
    stack: LocalStack, contestant: Contestant, backlog: Backlog, settle: Callable[[], None] = lambda: None
) -> Run:
    """One run, from the creation of its topics to the comparison with the truth.

    1. Send the warm-up, start the program, wait until it has stored that, and then for whatever else it is to have
       done before it is timed.
    2. Stop it, send the rest, let it go on: now the clock runs, until all is stored.
    3. Compare. Leave nothing behind.
    """
    settings, server = contestant.settings, contestant.server
    topics = {source: getattr(settings, f"topic_{source}") for source in mix.SOURCES}
    records = [(topics[source], key, value) for source, key, value in backlog.records]
    _empty(settings.redis_url)
    shop.create_topics(settings, topics.values())
    ensure_topics(settings)
    try:
        shop.send(settings, records[:_WARM_UP])  # 1
        server.launch()
        contestant.wait_until_stored(_WARM_UP, _PATIENCE_S)
        settle()
        _signal(server, signal.SIGSTOP)  # 2
        shop.send(settings, records[_WARM_UP:])
        before = {each.name: cpu_s(each) for each in (server, stack.kafka, stack.redis)}
        began_s = time.monotonic()
        _signal(server, signal.SIGCONT)
        ended_s = contestant.wait_until_stored(len(records), _PATIENCE_S)
        used = {each.name: round(cpu_s(each) - before[each.name], 2) for each in (server, stack.kafka, stack.redis)}
        peak_mb = peak_rss_mb(server)
    finally:
        server.kill()  # a worker would first make the forecasts it owes
    stored = contestant.stored({key for _, key, _ in records})  # 3
    truth = {cell: value for cell, value in backlog.truth.items() if contestant.keeps(cell[1], cell[3])}
    shop.delete_topics(settings, topics.values())
    correct = +stored == +Cells(truth)
    own_cpu_s = used.pop(server.name)
    return Run(backlog.events, ended_s - began_s, own_cpu_s, peak_mb, used, correct, contestant.libraries())


def _signal(server: LocalServer, number: signal.Signals) -> None:
    os.killpg(server.pid, number)  # its children too


def _empty(redis_url: str) -> None:
    """Empty Redis and its append-only file, which is then rewritten between runs only: a rewrite takes a core."""
    client = redis.Redis.from_url(redis_url)
    client.config_set("auto-aof-rewrite-percentage", 0)
    _wait_for_rewrite(client)
    client.flushall()
    client.bgrewriteaof()
    _wait_for_rewrite(client)
    client.close()


def _wait_for_rewrite(client: redis.Redis) -> None:
    while True:
        found = client.info("persistence")
        if not (found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"]):
            return
        time.sleep(0.01)


class Contest:
    """All programs, backlogs and runs on one stack."""

    def __init__(self, stack: LocalStack, events: int, environments: Mapping[str, Path]) -> None:
        now_ms = time.time_ns() // 1_000_000
        self._stack = stack
        self._pythons = environments
        self._backlogs = {
            "job": job_backlog(events, now_ms, event_ids=False),
            "job_ids": job_backlog(events, now_ms, event_ids=True),
            "full": full_backlog(events, now_ms),
        }
        self.programs = ("shelfcast", "shelfcast_dedup", *environments, "full")
        self.runs: dict[str, list[Run]] = {name: [] for name in self.programs}
        self.failures: dict[str, str] = {}

    def run(self, number: int) -> None:
        """Each program once. A peer that fails is out of the contest; our own failure is the benchmark's."""
        for name in self.programs:
            if name in self.failures:
                continue
            try:
                self.runs[name].append(self._run_one(name, f"ingest-{name.replace('_', '-')}-{number}"))
            except LocalStackError as error:
                if name not in self._pythons:
                    raise
                self.failures[name] = str(error)

    def _run_one(self, name: str, namespace: str) -> Run:
        variables = environment(self._stack, namespace, kafka_session_timeout_s=10, forecast_interval_ms=3_600_000)
        settings, directory = load_settings(variables), self._stack.directory
        if name not in self._pythons:
            backlog = self._backlogs[{"shelfcast": "job", "shelfcast_dedup": "job_ids"}.get(name, name)]
            return time_run(self._stack, Shelfcast(directory, variables), backlog)
        backlog = self._backlogs["job"]
        milestones = _WARM_UP, len(backlog.records)
        return time_run(self._stack, Peer(directory, name, settings, milestones, self._pythons[name]), backlog)


def measure(events: int, runs: int, peers: Sequence[str], peers_venv: Path) -> dict[str, Any]:
    """All programs in turn, `runs` times."""
    peer_environment = PeerEnvironment(peers_venv)
    absent = {peer: reason for peer in peers if (reason := peer_environment.install(peer)) is not None}
    pythons = {peer: peer_environment.python for peer in peers if peer not in absent}
    with LocalStack(triton=False) as stack:
        contest = Contest(stack, events, pythons)
        for number in range(runs):
            contest.run(number)
    found = {name: _summary(timed) for name, timed in contest.runs.items() if name not in contest.failures}
    full = found.pop("full")
    job = found | {peer: {"absent": reason} for peer, reason in (absent | contest.failures).items()}
    return {"job": job, "full": full, "products": _PRODUCTS, "partitions": 4, "warm_up": _WARM_UP, "runs": runs}


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    """The median run, with the range of all."""
    rates = sorted(run.events_per_s for run in runs)
    median = sorted(runs, key=lambda run: run.events_per_s)[len(runs) // 2]
    return {
        "events_per_s": round(statistics.median(rates)),
        "events_per_s_range": [round(rates[0]), round(rates[-1])],
        "events": median.events,
        "seconds": round(median.seconds, 3),
        "cpu_s": median.cpu_s,
        "peak_rss_mb": round(max(run.peak_rss_mb for run in runs)),
        "servers_cpu_s": median.servers_cpu_s,
        "correct": all(run.correct for run in runs),
        "libraries": median.libraries,
    }


def _row(name: str, found: Mapping[str, Any], ours: float | None) -> list[str]:
    if "absent" in found:
        return [name, "absent"]
    rate, servers = found["events_per_s"], found["servers_cpu_s"]
    return [
        name,
        f"{rate:,}",
        "{:,}–{:,}".format(*found["events_per_s_range"]),
        f"{ours / rate:.2f}" if ours else "",
        f"{found['cpu_s']:.2f}",
        f"{servers['redis']:.2f}",
        f"{found['peak_rss_mb']}",
        "yes" if found["correct"] else "NO",
    ]


def _chosen(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    names = [] if value == "none" else list(PEERS) if value == "all" else value.split(",")
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise click.BadParameter(f"no peer {', '.join(unknown)}: choose from {', '.join(PEERS)}, all, none")
    return names


def _whole_steps(_: click.Context, __: click.Parameter, value: int) -> int:
    if value < 1 or value % _STEP:
        raise click.BadParameter(
            f"{value} is no multiple of {_STEP}: peers that store in batches would wait at the end"
        )
    return value


@click.command()
@click.option("--events", default=400_000, show_default=True, callback=_whole_steps, help="Events in the backlog.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="The median is shown.")
@click.option("--peers", default="all", show_default=True, callback=_chosen, help="all, none, or some by name: a,b.")
@click.option(
    "--peers-venv",
    default=DEFAULT_DIRECTORY,
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Where the peers are installed. [default: {DEFAULT_DIRECTORY}]",
)
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(events: int, runs: int, peers: list[str], peers_venv: Path, as_json: bool) -> None:
    """Events a second of one worker process, from Kafka into exact features, and of other libraries beside it."""
    figures = measure(events, runs, peers, peers_venv)
    job, full = figures["job"], figures["full"]
    ours = job["shelfcast"]["events_per_s"]
    rows = [_row(name, found, ours) for name, found in job.items()] + [_row("full", full, None)]
    header = ("program", "events/s", "range", "ours is ×", "CPU s", "Redis CPU s", "peak MB", "correct")
    show(f"Kafka to features, {events:,} events, median of {runs}", header, rows, figures, as_json)
    absent = {name: found["absent"] for name, found in job.items() if "absent" in found}
    for name, reason in absent.items():
        click.echo(f"{name} is absent: {reason}", err=True)
    all_correct = all(found["correct"] for found in [*job.values(), full] if "absent" not in found)
    sys.exit(0 if all_correct else 1)


if __name__ == "__main__":
    command()
