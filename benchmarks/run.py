"""Run every benchmark in turn and keep its figures in `benchmarks/results/NAME.json`."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.report import machine

NAMES = ("forecast", "latency", "ingest")  # run when none is named
# These need data files that are not in this repository.
SHOPS = {
    f"accuracy_{shop}": ("accuracy", "--dataset", shop)
    for shop in ("m5", "walmart", "online_retail", "dunnhumby", "dunnhumby_promotions")
}
SHOPS |= {f"calibration_{shop}": ("calibration", "--dataset", shop) for shop in ("online_retail", "dunnhumby")}
NEED_DATA = ("replay", "store", "replenishment", *SHOPS)
_RESULTS = Path(__file__).parent / "results"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES + NEED_DATA))
def command(names: tuple[str, ...]) -> None:
    """Run the benchmarks named, by default all that need no data files, each in a process of its own."""
    _RESULTS.mkdir(exist_ok=True)
    failed = [name for name in names or NAMES if not _run(name)]
    if failed:
        click.echo(f"failed: {', '.join(failed)}", err=True)
        sys.exit(1)


def _run(name: str) -> bool:
    before = machine()
    module, *options = SHOPS.get(name, (name,))
    called = ["-m", f"benchmarks.{module}", *options]
    done = subprocess.run([sys.executable, *called, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    table, _, figures = done.stdout.rstrip("\n").rpartition("\n")
    click.echo(table)
    if done.returncode != 0:
        return False
    result = {
        "name": name,
        "command": f"python {' '.join(called)}",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": before,
        "figures": json.loads(figures),
    }
    (_RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return True


if __name__ == "__main__":
    command()
