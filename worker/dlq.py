"""`shelfcast dlq list|show|retry`: dead letters looked at, mended, and sent again, each once."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from feature_store.decoding import Reason
from worker.dead_letters import DeadLetter, Place
from worker.dlq_desk import Change, Desk, Verdict
from worker.dlq_screen import print_letter, print_letters, readable, wide_console
from worker.mending import parse_fields, whole_value, with_fields
from worker.settings import INPUT_SOURCES, load_settings

_LOOK_AGAIN_S = 1.0


class _PlaceType(click.ParamType):
    name = "PARTITION/OFFSET"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        try:
            return value if isinstance(value, Place) else Place.parse(value)
        except ValueError as error:
            self.fail(f"{error}; `shelfcast dlq list` shows where letters stand", param, ctx)


_source = click.option(
    "--source", type=click.Choice(INPUT_SOURCES), default="orders", show_default=True, help="Whose dead letters."
)
_reasons = click.option(
    "--reason",
    "reasons",
    multiple=True,
    type=click.Choice([reason.value for reason in Reason]),
    metavar="REASON",
    help="Only those set aside for this; repeatable.",
)


@click.group("dlq")
def command() -> None:
    """Look at the records that workers could not use, mend them, and send them again."""


@command.command("list")
@_source
@_reasons
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(min=0), help="How many, the newest; 0 = all."
)
def list_letters(source: str, reasons: tuple[str, ...], limit: int) -> None:
    """List dead letters: where they stand, what is wrong with them, and which were retried."""
    print_letters(wide_console(), Desk(load_settings(os.environ), source), reasons, limit)


@command.command("show")
@click.argument("place", type=_PlaceType(), metavar="PARTITION/OFFSET")
@_source
def show_letter(place: Place, source: str) -> None:
    """Show one dead letter, the one at PARTITION/OFFSET of the dead-letter topic: all of it, and what a worker would
    say of it now."""
    desk = Desk(load_settings(os.environ), source)
    for letter, record in desk.records([desk.letter_at(place)]):
        print_letter(wide_console(), desk, letter, record)


@command.command("retry")
@click.argument("places", type=_PlaceType(), nargs=-1, metavar="[PARTITION/OFFSET]...")
@click.option("--all", "everything", is_flag=True, help="All letters that were not retried yet.")
@_reasons
@_source
@click.option("--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Change a field; repeatable.")
@click.option(
    "--edit",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="File with the whole new value of one letter; - = standard input.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
def retry_letters(  # noqa: PLR0913 - each is an independent option
    places: tuple[Place, ...],
    everything: bool,
    reasons: tuple[str, ...],
    source: str,
    assignments: tuple[str, ...],
    edit: str | None,
    dry_run: bool,
) -> None:
    """Send dead letters to their topic again, mended or as they are. Each goes once, however often this is run and
    whenever it is killed.

    Letters are named as PARTITION/OFFSET of the dead-letter topic, or chosen by --all or --reason. What a worker would
    reject again is not sent. Exit code 1 when that or something else kept a letter back.
    """
    if bool(places) == bool(everything or reasons):
        raise click.UsageError(
            "name letters as PARTITION/OFFSET, or choose them by --all or --reason; `shelfcast dlq list` shows them"
        )
    if edit is not None and (assignments or len(places) != 1):
        raise click.UsageError("--edit gives the whole value of one letter: name that one, without --set")
    change = _change(source, assignments, edit)
    desk = Desk(load_settings(os.environ), source)
    letters = [desk.letter_at(place) for place in places] or desk.chosen(reasons)
    if not dry_run:
        _wait_for_others(desk, letters)
    verdicts = []
    for verdict in desk.preview(letters, change) if dry_run else desk.retry(letters, change):
        verdicts.append(verdict)
        click.echo(f"{verdict.letter.place}  {readable(verdict.text)}")
    click.echo(_summary(verdicts))
    sys.exit(0 if all(verdict.is_well for verdict in verdicts) else 1)


def _wait_for_others(desk: Desk, letters: Sequence[DeadLetter]) -> None:
    """Until no other run, killed or alive, can still send one of the letters."""
    told = False
    while left_ms := desk.wait_ms(letters):
        if not told:
            click.echo(
                f"another run has begun with these letters and not ended; if it was killed, this one goes on in "
                f"{left_ms // 1000 + 1} s",
                err=True,
            )
        told = True
        time.sleep(min(_LOOK_AGAIN_S, left_ms / 1000))


def _change(source: str, assignments: Sequence[str], edit: str | None) -> Change:
    """What --set or --edit make of a letter's value."""
    if edit is not None:
        text = click.get_binary_stream("stdin").read() if edit == "-" else Path(edit).read_bytes()
        new = whole_value(text, "standard input" if edit == "-" else edit)
        return lambda _: new
    fields = parse_fields(source, assignments)
    return lambda value: with_fields(value, fields) if fields else value


def _summary(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "there are no such letters left to retry"
    words = {"ready": "would be sent", "sent": "sent", "earlier": "retried before", "unconfirmed": "not confirmed"}
    counts = Counter(words.get(verdict.how, "not sent") for verdict in verdicts)
    letters = "1 letter" if len(verdicts) == 1 else f"{len(verdicts)} letters"
    return f"{letters}: " + ", ".join(f"{n} {word}" for word, n in counts.items())
