"""`python -m tests.chaos`: the long form. Two casts play at the same time, each on servers of its own; the last line is
`N kills, M faults, D differences`, and the exit code is 1 when anything differs."""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import click

from tests.chaos import acts
from tests.chaos.stage import run

_IN_WORKERS = 10  # one crash point in so many is in a whole worker, which takes seconds to begin


@click.command()
@click.option("--events", default=500_000, show_default=True, help="Records sent while workers and Redis are hurt.")
@click.option("--kills", default=60, show_default=True, help="Workers killed with a batch in flight, at least.")
@click.option("--crash-points", default=500, show_default=True, help="Crash points, a tenth of them in whole workers.")
@click.option("--seed", default=1, show_default=True)
def main(events: int, kills: int, crash_points: int, seed: int) -> None:
    """Inflict faults on workers while data flows, and compare every cell with a recomputation."""
    in_workers = crash_points // _IN_WORKERS
    casts = [
        [partial(acts.kills_and_outages, seed=seed, events=events, kills=kills)],
        [
            partial(acts.crash_points_in_workers, seed=seed + 1, points=in_workers, kills=5),
            partial(acts.crash_points_in_lanes, seed=seed + 2, points=crash_points - in_workers),
        ],
    ]
    directory = Path(tempfile.mkdtemp(prefix="shelfcast-chaos-"))
    tally = run(casts, directory, click.echo)
    if tally.differences:
        click.echo(f"logs of workers and servers are kept in {directory}")
    else:
        shutil.rmtree(directory)
    for line in tally.summary():
        click.echo(line)
    sys.exit(1 if tally.differences else 0)


if __name__ == "__main__":
    main()
