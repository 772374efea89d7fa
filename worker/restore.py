"""`shelfcast restore`: bring a snapshot back."""

from __future__ import annotations

import os
from pathlib import Path

import click

from worker.settings import load_settings
from worker.snapshot import TimeType, restore, restore_rules, run_on_store


@click.command("restore")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--partition", "partitions", type=click.IntRange(min=0), multiple=True, help="Only these; repeatable.")
@click.option(
    "--positions",
    type=click.Choice(["keep", "none"]),
    default="keep",
    show_default=True,
    help="none: topics are read from their start, as in a replay, whose topics are new.",
)
@click.option(
    "--before",
    type=TimeType(),
    help="Where positions are not kept: live orders, clicks and reviews of before this time are in the snapshot.",
)
@click.option("--replace", is_flag=True, help="Throw away what stands in the partitions.")
def command(folder: Path, partitions: tuple[int, ...], positions: str, before: int | None, replace: bool) -> None:
    """Bring back what `shelfcast snapshot` has saved in FOLDER, into the namespace of the settings.

    Into another number of partitions, products are dealt out anew and positions are dropped: they belong to other
    topics. Killed, it leaves nothing that a worker would take for features; run it again.
    """
    settings = load_settings(os.environ)
    marks = dict.fromkeys(("orders", "clicks", "reviews"), before) if before is not None else {}
    rules = restore_rules(settings, keep_positions=positions == "keep", before=marks, replace=replace)
    run_on_store(settings, lambda store: restore(settings, store, folder, rules, partitions))
