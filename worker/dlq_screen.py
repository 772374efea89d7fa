"""How dead letters look on a terminal. What they hold came from outside: it is printed so that no byte of it can steer
the terminal."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from zoneinfo import ZoneInfo

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.dead_letters import OURS, DeadLetter
from worker.dlq_desk import Desk
from worker.topic_reading import StoredRecord

_PIPE_WIDTH = 200  # where there is no terminal whose width is known
_DETAIL_LENGTH, _KEY_LENGTH = 80, 24


def wide_console() -> Console:
    """On standard output; colours only on a terminal."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=_PIPE_WIDTH)


def print_letters(console: Console, desk: Desk, reasons: Sequence[str], limit: int) -> None:
    """A table of the newest letters, oldest first, then how many there are of each reason."""
    ledger = desk.ledger
    letters = [letter for letter in ledger.letters.values() if not reasons or letter.reason in reasons]
    letters.sort(key=lambda letter: letter.set_aside_ms)
    if not letters:
        console.print(f"{desk.letter_topic} holds no dead letters{' of this reason' if reasons else ''}")
        return
    shown = letters[-limit:] if limit else letters
    console.print(_letters_table(desk, shown))
    if len(shown) < len(letters):
        console.print(f"the newest {len(shown)} of {len(letters)}; --limit 0 shows all")
    console.print()
    console.print(_totals_table(desk, letters))
    copies = sum(ledger.copies[letter.name] - 1 for letter in letters)
    if copies:
        console.print(f"{copies} more are copies of these, from workers that were killed or built their features anew")
    if ledger.strangers:
        console.print(f"{ledger.strangers} records there were not written by shelfcast and are not shown")
    console.print(f"\nshelfcast dlq show {shown[-1].place} --source {desk.source}   shows all of the last one")


def _letters_table(desk: Desk, letters: Sequence[DeadLetter]) -> Table:
    zone = desk.settings.time_zone
    table = Table(
        title=f"{desk.letter_topic}, times in {zone}\n",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for name in ("letter", "original", "set aside"):
        table.add_column(name, no_wrap=True)
    for name in ("key", "retried", "what is wrong"):
        table.add_column(name, overflow="fold")
    for letter in letters:
        table.add_row(
            str(letter.place),
            str(letter.origin),
            _when(letter.set_aside_ms, zone),
            _short(readable(letter.key), _KEY_LENGTH),
            _retried(desk, letter),
            f"{letter.reason}: {_short(readable(letter.detail), _DETAIL_LENGTH)}",
        )
    return table


def _totals_table(desk: Desk, letters: Sequence[DeadLetter]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("reason")
    for name in ("letters", "retried", "left"):
        table.add_column(name, justify="right")
    total = Counter(letter.reason for letter in letters)
    retried = Counter(letter.reason for letter in letters if letter.name in desk.ledger.retried)
    for reason, count in total.most_common():
        table.add_row(reason, str(count), str(retried[reason]), str(count - retried[reason]))
    if len(total) > 1:
        table.add_row("all", str(total.total()), str(retried.total()), str(total.total() - retried.total()))
    return table


def print_letter(console: Console, desk: Desk, letter: DeadLetter, record: StoredRecord) -> None:
    """Everything about one letter: where from, why, its headers and value, and what a worker would say of it now."""
    lines = {
        "letter": f"{letter.place} of {desk.letter_topic}",
        "original": f"{letter.origin} of {desk.topic}",
        "set aside": f"{_when(letter.set_aside_ms, desk.settings.time_zone)} {desk.settings.time_zone}",
        "reason": letter.reason,
        "detail": readable(letter.detail),
        "key": readable(letter.key),
        **{f"header {readable(name)}": readable(v) for name, v in record.headers if not name.startswith(OURS)},
        "retried": _retried(desk, letter),
    }
    copies = desk.ledger.copies[letter.name]
    if copies > 1:
        lines["copies"] = f"{copies}; a retry of one is a retry of all"
    width = max(len(name) for name in lines)
    for name, text in lines.items():
        console.print(Text(name.ljust(width), style="dim"), text, soft_wrap=True)
    size = "null" if record.value is None else f"{len(record.value)} bytes"
    console.print(Text(f"\nvalue, {size}", style="dim"))
    if record.value is not None:
        console.print(_pretty(record.value), soft_wrap=True)
    console.print()
    _print_prospect(console, desk, letter, record)


def _print_prospect(console: Console, desk: Desk, letter: DeadLetter, record: StoredRecord) -> None:
    """What can be done about it."""
    if letter.name in desk.ledger.retried:
        console.print("It was retried: there is nothing to do.")
        return
    as_it_is = desk.mend(letter, record, record.value)
    again = f"shelfcast dlq retry {letter.place} --source {desk.source}"
    if as_it_is.refusal:
        console.print(f"As it is, {readable(as_it_is.refusal)}", soft_wrap=True)
        console.print("Mend it and send it again with one of")
        console.print(f"  {again} --set FIELD=VALUE\n  {again} --edit FILE", soft_wrap=True)
    else:
        where = f"keyed {readable(as_it_is.key)} in partition {as_it_is.partition}"
        console.print(f"As it is, a worker would take it now, {where}. Send it again with", soft_wrap=True)
        console.print(f"  {again}", soft_wrap=True)


def _retried(desk: Desk, letter: DeadLetter) -> str:
    place = desk.ledger.retried.get(letter.name)
    if place is not None:
        return f"to {place}"
    return "begun, not finished" if desk.ledger.open_attempts(letter.name) else "no"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _when(ms: int, zone: str) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M:%S")


def readable(text: str | bytes | None) -> str:
    """As it is where it can be printed, else with escapes; - = null."""
    if text is None:
        return "-"
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)


def _pretty(value: bytes) -> str:
    """JSON with indents, its numbers as they came; anything else line by line with escapes."""
    try:
        text = msgspec.json.format(value, indent=2).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = value.decode("utf-8", "backslashreplace")
    return "\n".join(line if line.isprintable() else repr(line)[1:-1] for line in text.split("\n"))
